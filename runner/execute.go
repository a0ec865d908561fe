package runner

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// execute runs the announced task to its end and reports it.
func (r *taskRunner) execute(ctx context.Context, s Summary) Summary {
	news := make(chan isolatedNews, 2)
	if r.iso.news != nil {
		go func() {
			dec := json.NewDecoder(r.iso.news)
			for {
				var n isolatedNews
				if dec.Decode(&n) != nil {
					return
				}
				news <- n
			}
		}()
	} else {
		news <- isolatedNews{Started: true}
	}
	pumped := make(chan struct{})
	go func() { defer close(pumped); r.pump() }()
	r.word(isolatedWord{Go: true})

	live, endLive := context.WithCancel(ctx)
	over := make(chan struct{})
	reported, asked := make(chan struct{}), make(chan struct{})
	go func() { defer close(reported); r.rep.run(ctx, over) }()
	go func() { defer close(asked); r.rep.ask(live) }()

	why := r.watch(news)
	if !why.done {
		r.sweep()
	}
	r.drainPipe(pumped)
	_ = r.say(runnerNews{Ended: true}) // only the report is left
	endLive()
	close(over)
	<-reported
	<-asked
	return r.conclude(ctx, s, why)
}

func (r *taskRunner) word(w isolatedWord) {
	if err := json.NewEncoder(r.iso.words).Encode(w); err != nil {
		r.log.Warn("run_isolated does not listen", "task", r.manifest.TaskID, "err", err)
	}
}

// endings of a task that run_isolated does not know of.
type ending struct {
	done      bool // run_isolated has cleaned up and left a result
	ioTimeout bool
	signal    bool   // we were told to stop: the bot goes away
	reason    string // why it was stopped; "" = it ended by itself
}

// watch waits for run_isolated to end, and makes it end when it must.
func (r *taskRunner) watch(news <-chan isolatedNews) (why ending) {
	m := r.manifest
	var ioTimer, hung <-chan time.Time
	stop := func(reason string) {
		if why.reason != "" {
			return // a second reason has no further effect
		}
		why.reason = reason
		r.log.Info("stopping the task", "task", m.TaskID, "reason", reason)
		r.word(isolatedWord{Stop: true})
		// One share of the grace period is the task's, one is for the rest.
		hung = time.After(time.Duration(2*m.GracePeriod)*time.Second + hungGrace)
	}
	limit := time.Duration(m.IOTimeout) * time.Second
	for {
		select {
		case <-r.iso.p.Done():
			why.done = r.lastWord(news)
			return why
		case n := <-news:
			if n.Done {
				why.done = true
				return why
			}
			if limit > 0 {
				r.lastIO.Store(int64(r.now()))
				ioTimer = time.After(limit)
			}
		case <-ioTimer:
			quiet := r.now() - time.Duration(r.lastIO.Load())
			if quiet < limit {
				ioTimer = time.After(limit - quiet)
				continue
			}
			ioTimer = nil
			if why.reason == "" {
				why.ioTimeout = true
				stop("no output for longer than io_timeout")
			}
		case reason := <-r.stopped:
			why.signal = why.signal || reason == stoppedBySignal
			stop(reason)
		case <-hung:
			r.log.Error("run_isolated hangs; killing it", "task", m.TaskID)
			_ = r.iso.p.Kill()
		}
	}
}

// lastWord reports whether run_isolated, which is gone, had said that it was
// done: the word may still be in the pipe.
func (r *taskRunner) lastWord(news <-chan isolatedNews) bool {
	if r.iso.news == nil {
		return false
	}
	late := time.After(100 * time.Millisecond)
	for {
		select {
		case n := <-news:
			if n.Done {
				return true
			}
		case <-late:
			return false
		}
	}
}

// hungGrace is what run_isolated gets beyond the grace periods to clean up.
const hungGrace = 30 * time.Second

// sweep ends what run_isolated, had it been killed, would have left.
func (r *taskRunner) sweep() {
	if err := errors.Join(r.Place.Kill(sweepLimit), proc.SweepChildren(sweepLimit)); err != nil {
		r.log.Error("processes of the task survive", "task", r.manifest.TaskID, "err", err)
	}
}

const sweepLimit = 5 * time.Second

// pump takes the task's output as fast as it comes.
func (r *taskRunner) pump() {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.iso.output.Read(buf)
		if n > 0 {
			r.lastIO.Store(int64(r.now()))
			for !r.rep.spool.add(buf[:n], time.Now()) {
				// Neither memory nor disk: the task has to wait.
				sleepUnless(context.Background(), r.rep.spool.room, time.Second)
			}
			r.rep.poke()
		}
		if err != nil {
			return
		}
	}
}

// drainPipe waits for the end of the output; a process that nothing can kill
// may hold the pipe open.
func (r *taskRunner) drainPipe(pumped <-chan struct{}) {
	if sleepUnless(context.Background(), pumped, 10*time.Second) {
		_ = r.iso.output.SetReadDeadline(time.Now())
		<-pumped
	}
	if n := r.rep.spool.dropped; n > 0 {
		r.log.Warn("output beyond the limit was dropped", "task", r.manifest.TaskID, "bytes", n)
	}
}

// end makes sure that nothing runs any more, whatever happened.
func (r *taskRunner) end() {
	if r.tokens != nil {
		r.tokens.close()
	}
	if r.iso == nil {
		return
	}
	_ = r.iso.words.Close()
	select {
	case <-r.iso.p.Done():
	case <-time.After(hungGrace):
		_ = r.iso.p.Kill()
		r.iso.p.Wait()
		r.sweep()
	}
}
