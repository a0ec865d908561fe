package runner

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/backoff"
)

// caller is what task_runner needs of botapi.Client.
type caller interface {
	TaskUpdate(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error)
	TaskError(context.Context, *botapi.TaskErrorRequest) error
	Session() string
}

// timing holds every pause and bound of reporting, so that tests can shorten
// them.
type timing struct {
	flush       time.Duration // unwatched output waits this long
	flushBytes  int64         // or until this much waits
	watchedGap  time.Duration // pause between two updates that somebody watches
	chunk       int           // bytes of output in one update
	wait        time.Duration // what the open question asks for
	waitDelay   time.Duration // a task that ends before this needs no question
	ignoredGap  time.Duration // pause between questions to a server that does not wait
	retryMin    time.Duration
	retryMax    time.Duration
	refusedMax  time.Duration // like retryMax, for refusals while the task runs
	finalTries  int           // refusals of the final report before it is given up
	finalFor    time.Duration // how long the final report is tried
	announceFor time.Duration // how long the announcement is tried
}

// defaultTiming is decisions.md 17 and what spec bot.md §4.5 leaves open.
var defaultTiming = timing{
	flush: 2 * time.Second, flushBytes: 100_000, watchedGap: 50 * time.Millisecond, chunk: 250_000,
	wait: 50 * time.Second, waitDelay: 80 * time.Millisecond, ignoredGap: 10 * time.Second,
	retryMin: 100 * time.Millisecond, retryMax: 10 * time.Second, refusedMax: 60 * time.Second,
	finalTries: 5, finalFor: 6 * time.Hour, announceFor: time.Hour,
}

// reporter sends one task's output and progress. Output leaves the spool only
// when the server has it, whatever it takes; while the task runs no answer of
// the server, and no silence, does it any harm.
type reporter struct {
	api    caller
	task   string
	spool  *spool
	cost   func() *float64
	stop   func(reason string) // the server wants the task stopped; may be called often
	timing timing
	log    *slog.Logger

	// relay delivers an update without a connection of ours, if it can; nil =
	// there is none. A connection of ours makes it needless.
	relay     func(context.Context, *botapi.TaskUpdate) bool
	connected atomic.Bool

	renew func(session string) // is told of the session of each answer; nil = nobody

	watched atomic.Bool
	wake    chan struct{} // capacity 1: output came, or watched changed
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run sends output as it comes until ended is closed. An update under way is
// finished first. ctx ends it at once.
func (r *reporter) run(ctx context.Context, ended <-chan struct{}) {
	retry := backoff.Exponential{Min: r.timing.retryMin, Max: r.timing.retryMax}
	refused := backoff.Exponential{Min: r.timing.retryMin, Max: r.timing.refusedMax}
	var last time.Time
	for {
		pause, any := r.due(time.Now(), last)
		var timer <-chan time.Time
		if any {
			timer = time.After(pause)
		}
		if !any || pause > 0 {
			select {
			case <-ended:
				return
			case <-ctx.Done():
				return
			case <-r.wake:
				continue
			case <-timer:
			}
		}
		last = time.Now()
		n, res, err := r.send(ctx, &botapi.TaskUpdate{})
		switch {
		case err == nil:
			r.spool.sent(n)
			r.heed(res)
			retry.Reset()
			refused.Reset()
			continue
		case ctx.Err() != nil:
			return
		case botapi.IsTransient(err):
			pause = retry.Next()
		default:
			pause = refused.Next()
		}
		r.log.Warn("output not delivered", "task", r.task, "err", err)
		if !sleepUnless(ctx, ended, max(pause, retryAfter(err))) {
			return
		}
	}
}

// due says when the next update with output should go.
func (r *reporter) due(now, last time.Time) (pause time.Duration, any bool) {
	n, since := r.spool.unsent()
	switch {
	case n == 0:
		return 0, false
	case n >= r.timing.flushBytes:
		return 0, true
	case r.watched.Load():
		return last.Add(r.timing.watchedGap).Sub(now), true
	default:
		return since.Add(r.timing.flush).Sub(now), true
	}
}

// send fills u with the next piece of output and makes one attempt.
func (r *reporter) send(ctx context.Context, u *botapi.TaskUpdate) (int, *botapi.TaskUpdateResponse, error) {
	b, offset, err := r.spool.next(r.timing.chunk, time.Now())
	if err != nil {
		return 0, nil, err
	}
	u.TaskID, u.CostUSD = r.task, r.cost()
	u.Output, u.OutputChunkStart = nil, 0
	if len(b) > 0 {
		u.Output, u.OutputChunkStart = b, offset
	}
	if u.Final() && r.relay != nil && !r.connected.Swap(true) && r.relay(ctx, u) {
		return len(b), &botapi.TaskUpdateResponse{OK: true}, nil
	}
	res, err := r.call(ctx, u)
	return len(b), res, err
}

// call makes one attempt over a connection of ours.
func (r *reporter) call(ctx context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
	r.connected.Store(true)
	res, err := r.api.TaskUpdate(ctx, u)
	if err == nil && r.renew != nil {
		r.renew(res.Session)
	}
	return res, err
}

func (r *reporter) heed(res *botapi.TaskUpdateResponse) {
	if res.MustStop {
		r.stop(res.StopReason)
	}
}

// ask keeps one question open at the server until ctx ends: must the task
// stop, does somebody watch? decisions.md 17. A server that answers at once
// without news is asked at the pace of existing bots.
func (r *reporter) ask(ctx context.Context) {
	retry := backoff.Exponential{Min: r.timing.retryMin, Max: r.timing.retryMax}
	ignored, stopping := 0, false
	pause := r.timing.waitDelay
	for sleepUnless(ctx, nil, pause) {
		asked, began := r.watched.Load(), time.Now()
		res, err := r.call(ctx, &botapi.TaskUpdate{
			TaskID: r.task, CostUSD: r.cost(), Wait: r.timing.wait.Seconds(), Watched: asked,
		})
		pause = 0
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			pause = max(retry.Next(), retryAfter(err))
			r.log.Warn("question not answered", "task", r.task, "err", err)
			continue
		case res.MustStop:
			if !stopping {
				stopping = true
				r.stop(res.StopReason)
			}
			pause = r.timing.ignoredGap // the grace period may outlast the patience with a silent bot
			continue
		}
		retry.Reset()
		if res.Watched != asked {
			r.watched.Store(res.Watched)
			r.poke()
			ignored = 0
		} else if time.Since(began) < min(time.Second, r.timing.wait/2) {
			if ignored++; ignored > 1 { // once: the server is being restarted
				pause = r.timing.ignoredGap
			}
		} else {
			ignored = 0
		}
	}
}

// final delivers all remaining output, the last piece of it with u, and keeps
// trying for hours. It gives up when ctx ends or after several refusals; the
// error is then the last one.
func (r *reporter) final(ctx context.Context, u *botapi.TaskUpdate) error {
	retry := backoff.Exponential{Min: r.timing.retryMin, Max: 3 * r.timing.retryMax}
	deadline := time.Now().Add(r.timing.finalFor)
	refusals := 0
	for {
		n, _ := r.spool.unsent()
		part := &botapi.TaskUpdate{}
		last := n <= int64(r.timing.chunk)
		if last {
			part = u
		}
		sent, _, err := r.send(ctx, part)
		if err == nil {
			r.spool.sent(sent)
			retry.Reset()
			refusals = 0
			if last {
				return nil
			}
			continue
		}
		if !botapi.IsTransient(err) {
			refusals++
		}
		r.log.Warn("final report not delivered", "task", r.task, "err", err)
		if ctx.Err() != nil || refusals >= r.timing.finalTries || time.Now().After(deadline) {
			return err
		}
		if !sleepUnless(ctx, nil, max(retry.Next(), retryAfter(err))) {
			return err
		}
	}
}

// fail delivers a task_error like final.
func (r *reporter) fail(ctx context.Context, e *botapi.TaskErrorRequest) error {
	retry := backoff.Exponential{Min: r.timing.retryMin, Max: 3 * r.timing.retryMax}
	deadline := time.Now().Add(r.timing.finalFor)
	for refusals := 0; ; {
		err := r.api.TaskError(ctx, e)
		if err == nil {
			return nil
		}
		if !botapi.IsTransient(err) {
			refusals++
		}
		r.log.Warn("task_error not delivered", "task", r.task, "err", err)
		if ctx.Err() != nil || refusals >= r.timing.finalTries || time.Now().After(deadline) {
			return err
		}
		if !sleepUnless(ctx, nil, max(retry.Next(), retryAfter(err))) {
			return err
		}
	}
}

// retryAfter is the pause that a server asked for, 0 for none.
func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*botapi.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// sleepUnless pauses for d and reports whether neither ctx nor ended cut it
// short.
func sleepUnless(ctx context.Context, ended <-chan struct{}, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-ended:
		return false
	case <-t.C:
		return true
	}
}
