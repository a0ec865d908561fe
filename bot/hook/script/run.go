package script

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.starlark.net/starlark"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/hookscript"
)

// scripts are the globals of what is loaded; all are frozen, so that a call
// leaves nothing behind.
type scripts struct{ base, injected starlark.StringDict }

// functions returns what a call of the hook calls, in order.
func (s *scripts) functions(rule hook.Rule) []starlark.Callable {
	base, _ := s.base[rule.Name].(starlark.Callable)
	injected, _ := s.injected[rule.Name].(starlark.Callable)
	var out []starlark.Callable
	switch rule.Mode {
	case hook.Chained:
		out = append(out, base, injected)
	case hook.NotChained:
		if injected != nil {
			base = injected
		}
		out = append(out, base)
	case hook.BaseOnly:
		out = append(out, base)
	}
	var set []starlark.Callable
	for _, f := range out {
		if f != nil {
			set = append(set, f)
		}
	}
	return set
}

// run is one execution under limits.
type run struct {
	host   *host
	id     uint64
	what   string // hook, or "scripts"
	limit  time.Duration
	thread *starlark.Thread
	ends   time.Time
	stop   chan struct{}
	once   sync.Once
	why    atomic.Pointer[hook.Cause] // why it was canceled
	sent   int                        // actions
	said   int                        // bytes printed
	may    int                        // bytes that may be printed
}

func (h *host) newRun(id uint64, what string, limit time.Duration) *run {
	r := &run{host: h, id: id, what: what, limit: limit, stop: make(chan struct{}), ends: time.Now().Add(limit), may: hook.MaxPrint}
	r.thread = &starlark.Thread{Name: what, Print: func(_ *starlark.Thread, msg string) { r.print(msg) }}
	r.thread.SetMaxExecutionSteps(hook.MaxSteps)
	r.thread.OnMaxSteps = func(*starlark.Thread) { r.cancel(hook.CauseSteps) }
	r.thread.SetLocal("run", r)
	go r.watch()
	return r
}

func (r *run) cancel(c hook.Cause) {
	r.why.CompareAndSwap(nil, &c)
	r.thread.Cancel(string(c))
}

// watch ends the run when it takes too long or too much memory. What does not
// listen, such as one operation on a huge value, ends with the process.
func (r *run) watch() {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-tick.C:
			switch {
			case liveBytes() > hook.MaxHeap:
				c := hook.CauseMemory
				r.why.CompareAndSwap(nil, &c)
				// Waiting for it to listen costs memory that there may not be.
				stopCommand()
				_ = r.host.send(&hook.Answer{ID: r.id, Error: r.failure(nil), Last: true})
				r.host.exit(3)
				return
			case now.After(r.ends.Add(time.Second)):
				c := hook.CauseTime // this tick may be the first for long
				r.why.CompareAndSwap(nil, &c)
				_ = r.host.send(&hook.Answer{ID: r.id, Error: r.failure(nil), Last: true})
				r.host.exit(3)
				return
			case now.After(r.ends):
				r.cancel(hook.CauseTime)
				stopCommand()
			}
		}
	}
}

// liveBytes is the memory of Go values, reachable or not yet collected. Package
// runtime/metrics would say it without a pause, but its tables take a tenth of a
// millisecond of every start of the executable, twice for each task.
func liveBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// close ends the watch and gives a large heap back.
func (r *run) close() {
	r.once.Do(func() { close(r.stop) })
	if liveBytes() > 32<<20 {
		debug.FreeOSMemory()
	}
}

// exec runs a script's top level and returns its globals, frozen, and which of
// them are hooks.
func (r *run) exec(s *hook.Script) (starlark.StringDict, []string, error) {
	if s == nil {
		return nil, nil, nil
	}
	globals, err := starlark.ExecFileOptions(hookscript.Options, r.thread, s.Name, s.Source, library())
	globals.Freeze()
	if err != nil {
		return nil, nil, err
	}
	hooks := []string{}
	for _, rule := range hook.Rules {
		v, ok := globals[rule.Name]
		if !ok {
			continue
		}
		if _, ok := v.(starlark.Callable); !ok {
			return nil, nil, fmt.Errorf("%s: %s is a %s, want a function", s.Name, rule.Name, v.Type())
		}
		hooks = append(hooks, rule.Name)
	}
	return globals, hooks, nil
}

// call calls one function and returns its value and the arguments as it left
// them, as JSON.
func (r *run) call(fn starlark.Callable, rule hook.Rule, c *hook.CallRequest) (json.RawMessage, []json.RawMessage, error) {
	args := starlark.Tuple{newBot(r, &c.Bot)}
	for _, raw := range c.Args {
		v, err := fromJSON(raw)
		if err != nil {
			return nil, nil, err
		}
		args = append(args, v)
	}
	v, err := starlark.Call(r.thread, fn, args, nil)
	if err != nil {
		return nil, nil, err
	}
	data, err := r.result(rule, &c.Bot, v)
	if err != nil {
		return nil, nil, err
	}
	var after []json.RawMessage
	for i, a := range args[1:] {
		raw, err := toJSON(a)
		if err != nil {
			return nil, nil, &typeError{fmt.Sprintf("left the argument %s so that %v", rule.Args[i], err)}
		}
		after = append(after, raw)
	}
	return data, after, nil
}

// typeError says what a hook returned and what it must return.
type typeError struct{ text string }

func (e *typeError) Error() string { return e.text }

const maxTraceback = 2048 // bytes, spec bot.md §8.7

// failure describes an error for people, and nil as what r was canceled for.
func (r *run) failure(err error) *hook.Error {
	e := &hook.Error{Hook: r.what, Cause: hook.CauseRaised}
	if why := r.why.Load(); why != nil {
		e.Cause = *why
	}
	switch e.Cause {
	case hook.CauseSteps:
		e.Text = fmt.Sprintf("did more than %d steps; it may loop for ever", hook.MaxSteps)
	case hook.CauseTime:
		e.Text = fmt.Sprintf("took longer than %v; it may loop for ever, or wait for what does not come", r.limit)
	case hook.CauseMemory:
		e.Text = fmt.Sprintf("used more than %d MiB of memory", hook.MaxHeap>>20)
	default:
		if err != nil {
			e.Text = err.Error()
		}
	}
	if te, ok := errors.AsType[*typeError](err); ok {
		e.Cause, e.Text = hook.CauseType, te.text
	}
	if ee, ok := errors.AsType[*starlark.EvalError](err); ok {
		trace := ee.CallStack.String()
		if len(trace) > maxTraceback {
			trace = trace[len(trace)-maxTraceback:]
		}
		e.Text = clip(e.Text, maxTraceback) + "\n" + trace
	}
	e.Text = clip(e.Text, 3*maxTraceback)
	return e
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// act tells the bot what the hook wants of it.
func (r *run) act(a hook.Action) error {
	if r.sent++; r.sent > hook.MaxActions {
		return fmt.Errorf("more than %d events and requests in one call", hook.MaxActions)
	}
	a.Text = clip(a.Text, 16<<10)
	return r.host.send(&hook.Answer{ID: r.id, Action: &a})
}

func (r *run) print(msg string) {
	if r.said >= r.may {
		return
	}
	msg = clip(msg, r.may-r.said)
	r.said += len(msg) + 1
	_ = r.host.send(&hook.Answer{ID: r.id, Action: &hook.Action{Kind: hook.ActionPrint, Text: msg}})
}

func runOf(t *starlark.Thread) *run {
	r, _ := t.Local("run").(*run)
	return r
}
