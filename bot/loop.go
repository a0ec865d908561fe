package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/backoff"
)

// Bounds of what a server may ask for.
const (
	maxSleep  = time.Hour
	quickPoll = 500 * time.Millisecond // an answer sooner than this did not wait
)

// step polls once and does what the answer says.
func (b *Bot) step() {
	b.mu.Lock()
	b.turned = b.cfg.Now()
	b.mu.Unlock()
	b.renewCredential()
	key := newUUID()
	start := time.Now()
	res, manifest, err := b.poll(b.idle, key)
	if err != nil && b.idle.Err() != nil {
		// A task may have been handed to the poll that we broke off.
		res, manifest, err = b.pollLeaving(key)
		if err == nil && res.Cmd == botapi.CmdRun {
			b.act(res, manifest, start)
		}
		return
	}
	if err != nil {
		b.afterPoll("")
		b.pollFailed(err)
		b.idling()
		return
	}
	b.pollErrs.Reset()
	b.pass()
	b.afterPoll(res.Cmd)
	b.act(res, manifest, start)
	b.heed()
}

// poll asks until an answer comes or ctx ends, with the same key: a task that
// was given to a lost answer is given again. spec bot.md §2.7.
func (b *Bot) poll(ctx context.Context, key string) (*botapi.PollResponse, json.RawMessage, error) {
	for {
		res, manifest, err := b.pollOnce(ctx, key)
		switch {
		case err == nil:
			b.mu.Lock()
			b.polled = b.cfg.Now()
			b.mu.Unlock()
			return res, manifest, nil
		case ctx.Err() == nil && errors.Is(err, errComplete):
			continue
		case ctx.Err() != nil, !botapi.IsTransient(err), errors.Is(err, botapi.ErrBadCommand):
			return nil, nil, err
		}
		b.log.Warn("poll", "err", err)
		b.backingOff()
		if err := b.pollErrs.Sleep(ctx, retryAfter(err)); err != nil {
			return nil, nil, err
		}
	}
}

func (b *Bot) pollOnce(ctx context.Context, key string) (*botapi.PollResponse, json.RawMessage, error) {
	req := &botapi.PollRequest{RequestUUID: key}
	if b.cfg.Wait > 0 {
		req.Wait = b.cfg.Wait.Seconds()
	}
	if b.passed != nil { // new code proves itself by an answer, not by work
		req.Wait = min(req.Wait, provingWait.Seconds())
	}
	ready, news := b.cfg.Machine.Ready(), b.changed()
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	select {
	case <-ready:
		ready = nil
	default:
	}
	go func() {
		select {
		case <-ready:
		case <-news:
		case <-call.Done():
			return
		}
		cancel(errComplete) // poll again with all dimensions, or drained
	}()
	b.look()
	req.Attributes = b.attributes()
	b.prepare()
	res, manifest, err := b.cfg.Client.Poll(call, req)
	if err != nil && ctx.Err() == nil && context.Cause(call) == errComplete { //nolint:errorlint // our own value
		err = &completeError{err}
	}
	return res, manifest, err
}

// completeError marks a poll that we ended ourselves, as one to repeat.
type completeError struct{ error }

func (e *completeError) Is(target error) bool { return target == errComplete }

// pollLeaving asks once more with the key of a poll that a drain broke off. A
// server that had claimed a task for it answers with that task, which is ours
// to finish; the state says maintenance, so no server claims a new one.
func (b *Bot) pollLeaving(key string) (*botapi.PollResponse, json.RawMessage, error) {
	if b.hard.Err() != nil {
		return nil, nil, b.hard.Err()
	}
	ctx, cancel := context.WithTimeout(b.hard, 3*time.Second)
	defer cancel()
	return b.cfg.Client.Poll(ctx, &botapi.PollRequest{Attributes: b.attributes(), RequestUUID: key})
}

// pollFailed deals with refusals. A server that does not know our session (any
// more) gets a new handshake; the reference polls in vain then. spec bot.md §11.46.
func (b *Bot) pollFailed(err error) {
	switch botapi.StatusOf(err) {
	case http.StatusUnauthorized, http.StatusForbidden:
		b.log.Warn("the session is refused; shaking hands anew", "err", err)
		if b.pollErrs.Sleep(b.idle, 0) == nil {
			_ = b.handshake()
		}
		return
	}
	b.log.Warn("poll", "err", err)
	b.Error(fmt.Sprintf("poll: %v", err))
	_ = b.badCmds.Sleep(b.idle, retryAfter(err))
}

func (b *Bot) act(res *botapi.PollResponse, manifest json.RawMessage, polled time.Time) {
	if res.Cmd != botapi.CmdSleep {
		b.log.Info("told to", "cmd", res.Cmd)
	}
	idle := res.Cmd == botapi.CmdSleep
	b.mu.Lock()
	if idle {
		b.streak++
	} else {
		b.streak = 0
	}
	b.mu.Unlock()

	switch res.Cmd {
	case botapi.CmdSleep:
		b.hk.held = res.Quarantined != nil && !*res.Quarantined && b.ill() != ""
		b.keepGood(false)
		b.idling()
		b.sleep(*res.Duration, time.Since(polled))
	case botapi.CmdRun:
		b.rush.Reset()
		b.badCmds.Reset()
		b.runTask(res.Manifest, manifest)
	case botapi.CmdTerminate:
		b.terminate(res.TaskID)
	case botapi.CmdUpdate:
		b.update(res.Version)
	case botapi.CmdBotRestart:
		b.restart(res.Message)
	case botapi.CmdHostReboot, botapi.CmdRestart:
		b.reboot(res.Message)
	default:
		b.Error(fmt.Sprintf("told to do %q, which this bot does not know", res.Cmd))
		_ = b.badCmds.Sleep(b.idle, 0)
	}
}

// sleep waits secs, or less when there is a reason to poll at once. A server
// that answers at once with no time to sleep is not asked in a tight loop.
func (b *Bot) sleep(secs float64, took time.Duration) {
	d := clampSleep(secs)
	if d == 0 {
		if took >= quickPoll {
			b.rush.Reset()
			return
		}
		d = b.rush.Next()
	} else {
		b.rush.Reset()
	}
	ready, news := b.cfg.Machine.Ready(), b.changed()
	select {
	case <-ready:
		ready = nil // known already
	default:
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ready:
	case <-news:
	case <-b.idle.Done():
	}
}

func clampSleep(secs float64) time.Duration {
	switch {
	case math.IsNaN(secs), secs <= 0:
		return 0
	case secs > maxSleep.Seconds():
		return maxSleep
	}
	return time.Duration(secs * float64(time.Second))
}

// survive is contain with a pause after a panic, which ends with ctx.
func (b *Bot) survive(ctx context.Context, pause *backoff.Exponential, f func()) {
	if !b.contain(f) {
		_ = pause.Sleep(ctx, 0)
	}
}

// contain calls f and turns a panic into an event: as long as the bot can poll,
// the server can mend it. It reports whether there was none. Whatever runs
// beside the loop runs in it. spec bot.md §8.3, rows B25, B37.
func (b *Bot) contain(f func()) (whole bool) {
	defer func() {
		if r := recover(); r != nil {
			b.log.Error("panic", "err", r, "stack", string(debug.Stack()))
			b.Error(panicText(r, debug.Stack()))
		}
	}()
	f()
	return true
}

// panicText ends with the part of the stack that tells most.
func panicText(r any, stack []byte) string {
	const keep = 2048
	if len(stack) > keep {
		stack = stack[:keep]
	}
	return fmt.Sprintf("panic: %v\n%s", r, stack)
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*botapi.Error](err); ok {
		return e.RetryAfter
	}
	return 0
}

// prepare has the next run's processes started while the poll waits.
func (b *Bot) prepare() {
	if !b.cfg.StartAhead {
		return
	}
	if b.preparing != nil {
		select {
		case <-b.preparing:
		default:
			return
		}
	}
	done := make(chan struct{})
	b.preparing = done
	go func() {
		defer close(done)
		b.contain(func() {
			if err := b.cfg.Runner.Prepare(b.idle); err != nil && b.idle.Err() == nil {
				b.log.Warn("prepare the next run", "err", err)
			}
		})
	}()
}

func (b *Bot) waitPrepared() {
	if b.preparing != nil {
		<-b.preparing
	}
}
