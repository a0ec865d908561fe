package remote

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/skepdev/skep/internal/backoff"
)

// fullTries is how often a storage without space is asked: it may be making
// some just now.
const fullTries = 5

// errMore is a step that went well and was not the last.
var errMore = errors.New("there is more to do")

// retry calls do until it succeeds, fails for good, or has made no progress
// for the client's patience. do reports whether it got further than before;
// it must be safe to repeat.
func (c *Client) retry(ctx context.Context, what string, do func(context.Context) (progress bool, err error)) error {
	pause := backoff.Exponential{Min: 50 * time.Millisecond, Max: 10 * time.Second}
	last, full := time.Now(), 0
	for {
		progress, err := do(ctx)
		if err == nil {
			return nil
		}
		if errors.Is(err, errMore) && ctx.Err() == nil {
			last, full = time.Now(), 0
			pause.Reset()
			continue
		}
		if progress {
			last, full = time.Now(), 0
			pause.Reset()
		}
		if codeOf(err) == resourceExhausted {
			full++
		}
		patience := c.opt.Patience
		if errors.Is(err, syscall.ECONNREFUSED) && !c.answered.Load() {
			patience = c.opt.Refused
		}
		if ctx.Err() != nil || !transient(err) || full >= fullTries || time.Since(last) >= patience {
			return c.outward(ctx, what, err)
		}
		c.opt.Log.DebugContext(ctx, "storage call is repeated", "what", what, "err", err)
		if pause.Sleep(ctx, 0) != nil {
			return c.outward(ctx, what, err)
		}
	}
}
