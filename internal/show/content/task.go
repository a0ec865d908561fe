package content

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
)

// job is a task to run on one bot.
type job struct {
	bot     string
	command []string
	inputs  cas.Digest // Empty or zero: none
	outputs []string
	secs    int32 // execution timeout; 0 = 300
}

// submit makes the task.
func (s *site) submit(ctx context.Context, j job) (string, error) {
	if j.secs == 0 {
		j.secs = 300
	}
	p := &pb.TaskProperties{
		Command: j.command, ExecutionTimeoutSecs: j.secs, GracePeriodSecs: 1, IoTimeoutSecs: 0, Outputs: j.outputs,
		Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}},
	}
	if j.bot != "" {
		p.Dimensions = append(p.Dimensions, &pb.StringPair{Key: "id", Value: j.bot})
	}
	if j.inputs != (cas.Digest{}) {
		p.CasInputRoot = &pb.CASReference{
			CasInstance: "projects/skep/instances/default",
			Digest:      &pb.Digest{Hash: j.inputs.Hash.String(), SizeBytes: j.inputs.Size},
		}
	}
	req := &pb.NewTaskRequest{
		Name: "show", Priority: 100, RequestUuid: uuid(),
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 600, WaitForCapacity: true, Properties: p}},
	}
	return patiently(ctx, func() (string, error) {
		ans, err := s.client.NewTask(ctx, req)
		return ans.GetTaskId(), err
	})
}

// uuid makes a call that is repeated the same call.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// patience is how long a server may be away.
const patience = time.Minute

// patiently calls again while the server is away.
func patiently[T any](ctx context.Context, call func() (T, error)) (v T, err error) {
	for began := time.Now(); ; {
		v, err = call()
		switch skep.KindOf(err) {
		case skep.Unavailable, skep.Internal: // a connection that broke is either
		default:
			return v, err
		}
		if err == nil || ctx.Err() != nil || time.Since(began) > patience {
			return v, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// outcome is a task that has ended.
type outcome struct {
	*pb.TaskResultResponse
	output string
}

// await waits for the end of a task, over any outage of the server.
func (s *site) await(ctx context.Context, id string) (outcome, error) {
	known, offset := pb.TaskState_PENDING, int64(0)
	for {
		w, err := patiently(ctx, func() (*skeppb.WatchResponse, error) {
			return s.client.Watch(ctx, id, offset, known, 10*time.Second)
		})
		if err != nil {
			return outcome{}, err
		}
		known, offset = w.State, offset+int64(len(w.Output))
		if !skep.TaskState(w.State).Final() {
			continue
		}
		// What comes last, such as statistics, is with the result.
		res, err := patiently(ctx, func() (*pb.TaskResultResponse, error) {
			return s.client.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: id, IncludePerformanceStats: true})
		})
		if err != nil {
			return outcome{}, err
		}
		out, err := patiently(ctx, func() (*pb.TaskOutputResponse, error) {
			return s.client.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: id})
		})
		if err != nil {
			return outcome{}, err
		}
		return outcome{res, string(out.Output)}, nil
	}
}

// run submits a task and waits for its end.
func (s *site) run(ctx context.Context, j job) (outcome, error) {
	id, err := s.submit(ctx, j)
	if err != nil {
		return outcome{}, err
	}
	return s.await(ctx, id)
}

// good returns an error for a task that did not succeed.
func (o outcome) good() error {
	if o.State == pb.TaskState_COMPLETED && o.ExitCode == 0 {
		return nil
	}
	return fmt.Errorf("task %s is %v, exit code %d, and printed %.500q", o.TaskId, o.State, o.ExitCode, o.output)
}

// download are the statistics of a task's inputs; nil when there are none.
func (o outcome) download() *pb.CASOperationStats {
	return o.GetPerformanceStats().GetIsolatedDownload()
}
