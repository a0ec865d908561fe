package chaos

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/prpc"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/backoff"
)

// submitter sends tasks as fast as it can and notes what was acknowledged in a
// file, before anybody counts it.
type submitter struct {
	client  *client.Client // makes no retries of its own
	tag     string         // marks the tasks of this run
	command []string
	file    *os.File

	pending atomic.Int64 // calls without an answer
	failed  atomic.Int64 // calls that had none, or one that is worth another try
	acked   atomic.Int64
	allowed atomic.Int64 // tasks of the first n that may be sent
	sent    int          // tasks that were to be acknowledged; to be read when run has returned

	mu      sync.Mutex
	ids     []string
	refused []string
}

// senders is how many calls are under way at a time.
const senders = 16

// run submits n tasks, each with a request_uuid, and repeats a call until it
// is answered. Then it submits one more whenever scarce says so, until done is
// closed. It returns when every call is answered, or ctx ends.
func (s *submitter) run(ctx context.Context, n int, scarce func() bool, done <-chan struct{}) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n) && s.may(ctx, i); i = next.Add(1) {
				s.one(ctx, int(i))
			}
		})
	}
	wg.Wait()
	for s.sent = n; ; {
		select {
		case <-ctx.Done():
			return
		case <-done:
			return
		case <-time.After(stroll):
		}
		if scarce() {
			s.sent++
			s.one(ctx, s.sent)
		}
	}
}

// may waits until task i may be sent; false when ctx ended.
func (s *submitter) may(ctx context.Context, i int64) bool {
	for i > s.allowed.Load() && ctx.Err() == nil {
		time.Sleep(stroll)
	}
	return ctx.Err() == nil
}

func (s *submitter) one(ctx context.Context, i int) {
	req := s.request(i)
	pause := backoff.Exponential{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}
	for {
		s.pending.Add(1)
		ans, err := s.client.NewTask(ctx, req)
		s.pending.Add(-1)
		switch {
		case err == nil:
			s.ack(ans.TaskId)
			return
		case ctx.Err() != nil:
			return
		case !prpc.Transient(err):
			s.mu.Lock()
			s.refused = append(s.refused, err.Error())
			s.mu.Unlock()
			return
		}
		s.failed.Add(1)
		if pause.Sleep(ctx, 0) != nil {
			return
		}
	}
}

func (s *submitter) ack(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.file.WriteString(id + "\n"); err != nil {
		s.refused = append(s.refused, "the client's list: "+err.Error())
		return
	}
	s.ids = append(s.ids, id)
	s.acked.Add(1)
}

// next returns the first acknowledged task for which skip is false, "" when
// there is none.
func (s *submitter) next(skip func(string) bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range s.ids {
		if !skip(id) {
			return id
		}
	}
	return ""
}

func (s *submitter) request(i int) *pb.NewTaskRequest {
	return &pb.NewTaskRequest{
		Name: fmt.Sprintf("chaos %d", i), Priority: 100, RequestUuid: fmt.Sprintf("%s-%d", s.tag, i), BotPingToleranceSecs: 60,
		Tags: []string{"show:" + s.tag},
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 3600, WaitForCapacity: true, Properties: &pb.TaskProperties{
			Command: s.command, ExecutionTimeoutSecs: 120, IoTimeoutSecs: 60, GracePeriodSecs: 5,
			Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}},
		}}},
	}
}
