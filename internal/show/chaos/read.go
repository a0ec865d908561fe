package chaos

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/show/chaos/payload"
)

// readers watch the output of some tasks while they run, through every outage:
// then it leaves the bots in small updates, and each byte must come once.
type readers struct {
	client *client.Client
	tasks  *submitter
	said   func(run string) string

	bytes atomic.Int64 // that came

	mu      sync.Mutex
	taken   map[string]bool
	streams map[string]string // by task id: what was wrong, "" = nothing
}

// run reads one task after the other until ctx ends.
func (r *readers) run(ctx context.Context) {
	for ctx.Err() == nil {
		id := r.take()
		if id == "" {
			select {
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		r.read(ctx, id)
	}
}

// take picks a task that is about to run.
func (r *readers) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := r.tasks.next(func(id string) bool { return r.taken[id] || r.said(runOf(id)) != "" })
	if id != "" {
		r.taken[id] = true
	}
	return id
}

func (r *readers) read(ctx context.Context, id string) {
	var got []byte
	state := pb.TaskState_PENDING
	pause := backoff.Exponential{Min: 20 * time.Millisecond, Max: 500 * time.Millisecond}
	wrong := func(format string, args ...any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.streams[id] = fmt.Sprintf(format, args...)
	}
	for {
		ans, err := r.client.Watch(ctx, id, int64(len(got)), state, 20*time.Second)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			if pause.Sleep(ctx, 0) != nil {
				return
			}
			continue
		}
		pause.Reset()
		if ans.Offset != int64(len(got)) {
			wrong("asked for %d, got %d", len(got), ans.Offset)
			return
		}
		got = append(got, ans.Output...)
		r.bytes.Add(int64(len(ans.Output)))
		state = ans.State
		if state == pb.TaskState_PENDING || state == pb.TaskState_RUNNING || len(ans.Output) > 0 {
			continue
		}
		wrong("%s", payload.Diff(runOf(id), got, state != pb.TaskState_COMPLETED))
		return
	}
}
