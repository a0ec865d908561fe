// Package script is the hook host: the child process in which hooks run. It
// links the Starlark interpreter; package hook is the bot's side.
package script

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/skepdev/skep/bot/hook"
)

// Main is the subcommand hook_host: it answers requests on standard input
// until that ends, or its parent dies. Nothing but answers is written to
// standard output.
func Main() int {
	limitMemory()
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(hook.MaxHeap * 3 / 4)
	debug.SetMaxStack(32 << 20)
	return serve(os.Stdin, os.Stdout)
}

// serve reads ahead while a hook runs, so that the end of its parent ends it
// at any moment.
func serve(r io.Reader, w io.Writer) int {
	h := &host{out: w, exit: os.Exit}
	requests := make(chan hook.Request)
	ended := make(chan error, 1)
	go func() {
		br := bufio.NewReader(r)
		for {
			var req hook.Request
			if err := hook.ReadFrame(br, &req); err != nil {
				h.silence()
				ended <- err
				close(requests)
				time.Sleep(50 * time.Millisecond) // an idle host returns; a busy one ends here
				os.Exit(0)
			}
			requests <- req
		}
	}()
	term := make(chan os.Signal, 1)
	signal.Notify(term, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-term
		h.silence()
		os.Exit(0)
	}()
	for req := range requests {
		if err := h.answer(req); err != nil {
			fmt.Fprintln(os.Stderr, "hook_host:", err)
			return 1
		}
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, "hook_host:", err)
		return 1
	}
	return 0
}

// host answers one request after the other.
type host struct {
	mu      sync.Mutex // of out
	out     io.Writer
	quiet   atomic.Bool
	exit    func(int)
	scripts scripts
	shell   *shell // of a person; nil before the first evaluation
}

// silence ends the command that a hook runs and lets no answer out: it would
// look as if the hook had come to its end.
func (h *host) silence() {
	h.quiet.Store(true)
	stopCommand()
}

func (h *host) send(a *hook.Answer) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.quiet.Load() {
		return nil
	}
	return hook.WriteFrame(h.out, a)
}

func (h *host) answer(req hook.Request) error {
	a := &hook.Answer{}
	switch {
	case req.Load != nil:
		a = h.load(req)
	case req.Call != nil:
		a = h.call(req)
	case req.Eval != nil:
		a = h.eval(req)
	default:
		a.Error = &hook.Error{Hook: "hook_host", Cause: hook.CauseLoad, Text: "a request asks for nothing"}
	}
	a.ID = req.ID
	return h.send(a)
}

func (h *host) load(req hook.Request) *hook.Answer {
	var s scripts
	r := h.newRun(req.ID, "scripts", 10*time.Second)
	defer r.close()
	loaded := &hook.Loaded{}
	var err error
	if s.base, loaded.Base, err = r.exec(req.Load.Base); err == nil {
		s.injected, loaded.Injected, err = r.exec(req.Load.Injected)
	}
	if err != nil {
		e := r.failure(err)
		if e.Cause == hook.CauseRaised {
			e.Cause = hook.CauseLoad
		}
		return &hook.Answer{Error: e}
	}
	h.scripts = s
	return &hook.Answer{Loaded: loaded}
}

func (h *host) call(req hook.Request) *hook.Answer {
	rule, ok := hook.RuleOf(req.Call.Hook)
	if !ok {
		return &hook.Answer{Error: &hook.Error{Hook: req.Call.Hook, Cause: hook.CauseType, Text: "there is no such hook"}}
	}
	a := &hook.Answer{}
	for _, fn := range h.scripts.functions(rule) {
		r := h.newRun(req.ID, rule.Name, time.Duration(req.Call.LimitMS)*time.Millisecond)
		value, args, err := r.call(fn, rule, req.Call)
		r.close()
		if err != nil {
			// The other script's hook is called all the same: one group's fault is
			// not the fleet's.
			if a.Error == nil {
				a.Error = r.failure(err)
			}
			continue
		}
		a.Value, a.Args = value, args
		req.Call.Args = args
	}
	return a
}
