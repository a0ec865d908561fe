package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/backoff"
)

const (
	// watchWait is how long the server may hold one Watch (decisions.md 17).
	watchWait = 45 * time.Second
	// outageNote is how long a server is gone before the user is told.
	outageNote = 2 * time.Second
	// outageLimit is how long a stream waits for its server to come back.
	outageLimit = 15 * time.Minute
)

// stream copies a task's output to w as it is written, from offset on, and
// returns how the task ended. Each answer carries its offset and the next
// question starts where the last one ended, so a server that restarts costs
// neither a byte nor shows one twice. onState hears of every new state.
func (f *fleet) stream(ctx context.Context, id string, offset int64, w io.Writer, onState func(pb.TaskState)) (*pb.TaskResultResponse, error) {
	known := pb.TaskState_INVALID
	for {
		res, err := f.watchOnce(ctx, id, offset, known)
		if err != nil {
			return nil, err
		}
		if skip := offset - res.Offset; skip > 0 { // repeated bytes
			res.Output = res.Output[min(skip, int64(len(res.Output))):]
		} else if skip < 0 && len(res.Output) > 0 {
			return nil, fmt.Errorf("task %s: the server answered output from byte %d, not %d", id, res.Offset, offset)
		}
		if _, err := w.Write(res.Output); err != nil {
			return nil, fmt.Errorf("write the output: %w", err)
		}
		offset += int64(len(res.Output))
		if res.State != known {
			known = res.State
			onState(known)
		}
		if isFinal(res.State) && len(res.Output) == 0 {
			if res.Result == nil {
				return f.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: id})
			}
			return res.Result, nil
		}
	}
}

// watchOnce asks until there is an answer: a server may be restarting.
func (f *fleet) watchOnce(ctx context.Context, id string, offset int64, known pb.TaskState) (*skeppb.WatchResponse, error) {
	pause := backoff.Exponential{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	var since time.Time
	noted := false
	for {
		res, err := f.Watch(ctx, id, offset, known, watchWait)
		switch {
		case err == nil:
			if noted {
				f.notef("%s answers again", f.url)
			}
			return res, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !isTransient(err):
			return nil, err
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > outageLimit:
			return nil, fmt.Errorf("the server has been gone for %s; the task may go on: skep task log -f -S %s %s: %w", outageLimit, f.url, id, err)
		case time.Since(since) > outageNote && !noted:
			noted = true
			f.notef("%v; trying again", err)
		}
		if err := pause.Sleep(ctx, 0); err != nil {
			return nil, err
		}
	}
}
