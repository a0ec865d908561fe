package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// fleet starts skep up with n real bots.
func (r *run) fleet(ctx context.Context, n int, env ...string) (*service, error) {
	s, err := r.start(ctx, "up", env, "--bots", strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	if got := len(s.bots()); got != n {
		return nil, errors.Join(fmt.Errorf("%d bots started, want %d: %s", got, n, s.lastWords()), s.stop())
	}
	return s, nil
}

// settle runs one task on every bot and lets them come to rest: caches are
// warm then, and the processes for the next task wait.
func (s *service) settle(ctx context.Context) error {
	ids, err := s.botIDs(ctx)
	if err != nil {
		return err
	}
	path, err := truePath()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := s.runTask(ctx, id, path); err != nil {
			return err
		}
	}
	return rest(ctx, 300*time.Millisecond)
}

// rest waits for d.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *service) botIDs(ctx context.Context) ([]string, error) {
	res, err := s.client.ListBots(ctx, &pb.BotsRequest{Limit: 100})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, b := range res.Items {
		ids = append(ids, b.BotId)
	}
	if len(ids) == 0 {
		return nil, errors.New("the server knows no bot")
	}
	return ids, nil
}

// request is a task that runs a command; bot "" leaves it to any of them.
func request(bot string, command ...string) *pb.NewTaskRequest {
	dims := []*pb.StringPair{{Key: "pool", Value: "default"}}
	if bot != "" {
		dims = append(dims, &pb.StringPair{Key: "id", Value: bot})
	}
	return &pb.NewTaskRequest{
		Name: "bench", Priority: 100,
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 60, WaitForCapacity: true, Properties: &pb.TaskProperties{
			Command: command, Dimensions: dims, ExecutionTimeoutSecs: 30, GracePeriodSecs: 1, IoTimeoutSecs: 30,
		}}},
	}
}

// runTask runs a command and returns its result; anything but success is an
// error.
func (s *service) runTask(ctx context.Context, bot string, command ...string) (*pb.TaskResultResponse, error) {
	ans, err := s.client.NewTask(ctx, request(bot, command...))
	if err != nil {
		return nil, err
	}
	return s.await(ctx, ans.TaskId)
}

// await waits for the end of a task, as skep run does.
func (s *service) await(ctx context.Context, id string) (*pb.TaskResultResponse, error) {
	known := pb.TaskState_PENDING
	offset := int64(0)
	for {
		w, err := s.client.Watch(ctx, id, offset, known, 10*time.Second)
		if err != nil {
			return nil, err
		}
		known, offset = w.State, offset+int64(len(w.Output))
		if !skep.TaskState(w.State).Final() {
			continue
		}
		if r := w.Result; w.State == pb.TaskState_COMPLETED && r.GetExitCode() == 0 {
			return r, nil
		}
		return nil, fmt.Errorf("task %s of the bench is %v, exit code %d: %s", id, w.State, w.Result.GetExitCode(), s.lastWords())
	}
}
