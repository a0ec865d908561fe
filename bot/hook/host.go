package hook

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// Options of NewHost.
type Options struct {
	Exe  string   // executable whose arguments Args make it a hook host (package script)
	Name string   // argument 0; "" = Exe
	Args []string // without argument 0; nil = "hook_host"
	Dir  string   // working directory of hooks: the bot's
	Env  []string // the bot's environment; variables that begin with SKEP_ are held back. nil = os.Environ()
	Base *Script  // bot_config.star of the bot's code; nil = no base hooks
	Log  *slog.Logger

	Limit time.Duration // of every hook; 0 = as its rule says
}

// Host calls hooks in a child process, which it starts at the first call that
// some script may answer, and replaces when it dies. Scripts keep nothing
// between calls, so a replacement is as good as the first. Its methods may be
// used by many goroutines; calls go one after the other.
type Host struct {
	opt Options

	mu sync.Mutex // held while a hook runs
	defined
	child *child
	seq   uint64

	// now is defined as it was after the last call, for those who only ask: a hook
	// may run for minutes.
	now atomic.Pointer[defined]
}

// defined is what is known of the scripts.
type defined struct {
	base     *Script
	injected *Script
	loaded   *Loaded // what the scripts define; nil = not known
	broken   *Error  // the scripts do not load: no call until Inject
	closed   bool
}

// unlock ends what mu was held for.
func (h *Host) unlock() {
	d := h.defined
	h.now.Store(&d)
	h.mu.Unlock()
}

// NewHost starts nothing.
func NewHost(opt Options) *Host {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Env == nil {
		opt.Env = os.Environ()
	}
	if opt.Args == nil {
		opt.Args = []string{"hook_host"}
	}
	h := &Host{opt: opt, defined: defined{base: opt.Base}}
	h.mu.Lock()
	h.unlock()
	return h
}

// Load compiles the scripts now, where any may define hooks, with s (nil =
// none) as the injected one. The error is an *Error and says that a script
// does not load; then no hook is called until the next Load. spec bot.md §6.1.
func (h *Host) Load(ctx context.Context, s *Script) error {
	h.mu.Lock()
	defer h.unlock()
	h.injected, h.broken, h.loaded = s, nil, nil
	h.end()
	if !h.mayDefine() {
		return nil
	}
	if s != nil && len(s.Source) > MaxScript {
		h.broken = &Error{Hook: s.Name, Cause: CauseLoad, Text: fmt.Sprintf("has %d bytes, at most %d are allowed", len(s.Source), MaxScript)}
		return h.broken
	}
	if err := h.start(ctx); err != nil {
		return err
	}
	if len(h.loaded.Base)+len(h.loaded.Injected) == 0 {
		h.end()
	}
	return nil
}

func (h *Host) mayDefine() bool { return h.opt.Base.mayDefine() || h.injected.mayDefine() }

// Has reports whether a call of the hook may find a function. It starts
// nothing.
func (h *Host) Has(name string) bool { return h.now.Load().has(name) }

func (h *defined) has(name string) bool {
	if h.closed || h.broken != nil {
		return false
	}
	rule, ok := RuleOf(name)
	if !ok {
		return false
	}
	if h.loaded == nil { // not compiled yet: what the text says
		return h.base != nil && strings.Contains(h.base.Source, name) ||
			rule.Mode != BaseOnly && h.injected != nil && strings.Contains(h.injected.Source, name)
	}
	for _, n := range h.loaded.Base {
		if n == name {
			return true
		}
	}
	for _, n := range h.loaded.Injected {
		if n == name && rule.Mode != BaseOnly {
			return true
		}
	}
	return false
}

// Running reports whether there is a hook host process now.
func (h *Host) Running() bool {
	h.mu.Lock()
	defer h.unlock()
	return h.child != nil
}

// Call calls a hook. Without a function of that name Called is false and
// nothing is started. A failed hook gives an *Error, with the actions that
// came before it; ctx ends the call as if its time were over.
func (h *Host) Call(ctx context.Context, c Call) (Outcome, error) {
	h.mu.Lock()
	defer h.unlock()
	if !h.has(c.Hook) {
		return Outcome{}, nil
	}
	began := time.Now()
	if h.child == nil {
		if err := h.start(ctx); err != nil {
			return Outcome{Called: true, Took: time.Since(began)}, err
		}
		if !h.has(c.Hook) {
			return Outcome{}, nil
		}
	}
	rule, _ := RuleOf(c.Hook)
	req := &CallRequest{Hook: c.Hook, Bot: c.Bot}
	for _, a := range c.Args {
		data, err := json.Marshal(a)
		if err != nil {
			return Outcome{}, fmt.Errorf("hook %s: argument: %w", c.Hook, err)
		}
		req.Args = append(req.Args, data)
	}
	limit := h.limitOf(rule)
	req.LimitMS = limit.Milliseconds()
	if rule.Mode == Chained {
		limit *= 2
	}
	out := Outcome{Called: true}
	ans, err := h.ask(ctx, Request{Call: req}, c.Hook, limit, func(a Action) {
		if len(out.Actions) < MaxActions {
			out.Actions = append(out.Actions, a)
		}
	})
	out.Took = time.Since(began)
	h.opt.Log.Debug("hook", "hook", c.Hook, "took", out.Took)
	if err != nil {
		return out, err
	}
	out.Value, out.Args = ans.Value, ans.Args
	if ans.Error != nil {
		return out, ans.Error
	}
	return out, nil
}

func (h *Host) limitOf(r Rule) time.Duration {
	if h.opt.Limit > 0 {
		return h.opt.Limit
	}
	return r.Limit
}

// Visit returns another host with the scripts that h has, for a person to try
// things in: whatever happens there, h goes on. Scripts that do not load are
// left out. The caller closes it.
func (h *Host) Visit() *Host {
	d := h.now.Load()
	v := &Host{opt: h.opt, defined: defined{base: h.opt.Base, injected: d.injected}}
	v.mu.Lock()
	v.unlock()
	return v
}

// Eval runs statements, with act for everything that they print or ask for,
// while they run. ctx ends them. The error is an *Error, and what was defined
// before is kept unless its process had to end.
func (h *Host) Eval(ctx context.Context, source string, b Bot, status json.RawMessage, act func(Action)) error {
	h.mu.Lock()
	defer h.unlock()
	if len(source) > MaxScript {
		return &Error{Hook: "shell", Cause: CauseLoad, Text: fmt.Sprintf("has %d bytes, at most %d are allowed", len(source), MaxScript)}
	}
	if err := h.startAnyhow(ctx, act); err != nil {
		return err
	}
	limit := h.limitOf(Rule{Limit: EvalLimit})
	ans, err := h.ask(ctx, Request{Eval: &EvalRequest{Source: source, Bot: b, Status: status, LimitMS: limit.Milliseconds()}}, "shell", limit, act)
	if err != nil {
		return err
	}
	if ans.Error != nil {
		return ans.Error
	}
	return nil
}

// startAnyhow starts the child, without the scripts that do not load.
func (h *Host) startAnyhow(ctx context.Context, act func(Action)) error {
	if h.child != nil {
		return nil
	}
	if h.closed {
		return &Error{Hook: "shell", Cause: CauseDied, Text: "the bot ends"}
	}
	for {
		err := h.start(ctx)
		e, ok := errors.AsType[*Error](err)
		switch {
		case err == nil:
			return nil
		case !ok || e.Cause != CauseLoad:
			return err
		case h.injected != nil:
			h.injected = nil
		case h.opt.Base != nil:
			h.opt.Base = nil
		default:
			return err
		}
		h.broken = nil
		act(Action{Kind: ActionPrint, Text: "a script does not load and is not here: " + e.Text})
	}
}

// Close ends the hook host. Later calls find no hooks.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.unlock()
	h.closed = true
	h.end()
	return nil
}

// start starts the child and loads the scripts.
func (h *Host) start(ctx context.Context) error {
	c, err := h.fork()
	if err != nil {
		return &Error{Hook: "hook_host", Cause: CauseDied, Text: "cannot be started: " + err.Error()}
	}
	h.child = c
	load := &LoadRequest{Base: h.opt.Base, Injected: h.injected}
	ans, err := h.ask(ctx, Request{Load: load}, "scripts", loadLimit, nil)
	if err != nil {
		return err
	}
	if ans.Error != nil {
		h.end()
		if ans.Error.Cause == CauseLoad {
			h.broken = ans.Error
		}
		return ans.Error
	}
	if ans.Loaded == nil {
		h.end()
		return &Error{Hook: "hook_host", Cause: CauseDied, Text: "did not say what the scripts define"}
	}
	h.loaded = ans.Loaded
	return nil
}

// ask sends a request and follows the answers to the last one. When that does
// not come in time, or makes no sense, the child is killed.
func (h *Host) ask(ctx context.Context, req Request, what string, limit time.Duration, act func(Action)) (*Answer, error) {
	h.seq++
	req.ID = h.seq
	c := h.child
	t := time.NewTimer(limit + slack)
	defer t.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	sent := make(chan error, 1)
	go func() { sent <- WriteFrame(c.in, req) }() // the pipe may be full and the host dead
	for {
		select {
		case err := <-sent:
			sent = nil
			if err != nil && !errors.Is(err, os.ErrClosed) {
				h.opt.Log.Warn("hook host takes no request", "err", err)
			}
		case a, ok := <-c.answers:
			switch {
			case !ok:
				return nil, h.died(what)
			case a.ID != req.ID:
				h.kill()
				return nil, &Error{Hook: what, Cause: CauseDied, Text: "the hook host answered another request"}
			case a.Action != nil:
				if act != nil {
					act(*a.Action)
				}
			default:
				if a.Last {
					h.kill()
				}
				return a, nil
			}
		case <-look.C:
			if c.peak = max(c.peak, resident(c.p.Pid)); c.peak > MaxData {
				h.kill()
				return nil, tooMuchMemory(what)
			}
		case <-t.C:
			h.kill()
			return nil, &Error{Hook: what, Cause: CauseTime, Text: fmt.Sprintf("took longer than %v and did not end when told to", limit)}
		case <-ctx.Done():
			h.kill()
			return nil, &Error{Hook: what, Cause: CauseTime, Text: "was broken off: " + context.Cause(ctx).Error()}
		}
	}
}

// died says how the child ended by itself.
func (h *Host) died(what string) *Error {
	c := h.child
	h.child = nil
	c.close()
	st := c.p.Wait()
	e := &Error{Hook: what, Cause: CauseDied, Text: fmt.Sprintf("the hook host ended with code %d", st.Code)}
	last := c.stderr.text()
	switch {
	// A Go program that is refused memory says so, or its collector crashes; a
	// fault of its own code would be a panic.
	case strings.Contains(last, "out of memory"), strings.Contains(last, "cannot allocate memory"), strings.Contains(last, "failed to allocate"),
		strings.HasPrefix(last, "SIGSEGV"), c.peak > MaxHeap:
		e = tooMuchMemory(what)
	case strings.Contains(last, "stack overflow"), strings.Contains(last, "stack exceeds"):
		e.Text = "nested too deeply; its process ended"
	case st.Signal && st.Code == -9:
		e.Text = "its process was killed, perhaps by the kernel for lack of memory"
	case last != "":
		first, _, _ := strings.Cut(last, "\n")
		e.Text += ": " + first
	}
	h.opt.Log.Warn("hook host died", "code", st.Code, "stderr", last)
	return e
}

func tooMuchMemory(what string) *Error {
	return &Error{Hook: what, Cause: CauseMemory, Text: fmt.Sprintf("used more than %d MiB of memory; its process ended", MaxHeap>>20)}
}

// kill ends a child that cannot be trusted any more.
func (h *Host) kill() { h.stop(time.Second) }

// end ends a child that has nothing to do.
func (h *Host) end() { h.stop(time.Second) }

// stop asks the child to end, so that it can end the command it runs, and
// kills it after a while.
func (h *Host) stop(patience time.Duration) {
	c := h.child
	if c == nil {
		return
	}
	h.child = nil
	_ = c.in.Close()
	_ = c.p.Terminate()
	t := time.AfterFunc(patience, func() { _ = c.p.Kill() })
	c.p.Wait()
	t.Stop()
	c.close()
}

// child is one hook host process.
type child struct {
	p       *proc.Process
	in      *os.File
	out     *os.File
	answers chan *Answer // closed when the process says no more
	quit    chan struct{}
	stderr  *tail
	peak    int64 // bytes of memory seen during calls
}

func (h *Host) fork() (c *child, err error) {
	var open []*os.File
	defer func() {
		if err != nil {
			for _, f := range open {
				_ = f.Close()
			}
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				open = append(open, r, w)
			}
		}
		return r, w
	}
	inR, in := pipe()
	out, outW := pipe()
	errR, errW := pipe()
	if err != nil {
		return nil, err
	}
	c = &child{in: in, out: out, answers: make(chan *Answer), quit: make(chan struct{}), stderr: newTail(errR)}
	c.p, err = proc.Start(&proc.Cmd{
		Path: h.opt.Exe, Args: append([]string{cmp.Or(h.opt.Name, h.opt.Exe)}, h.opt.Args...), Dir: h.opt.Dir, Env: environ(h.opt.Env),
		Files: []*os.File{inR, outW, errW}, NewGroup: true, ParentDeath: true,
	})
	if err != nil {
		return nil, err
	}
	for _, f := range []*os.File{inR, outW, errW} {
		_ = f.Close()
	}
	go c.stderr.fill()
	go func() {
		defer close(c.answers)
		for {
			a := &Answer{}
			if ReadFrame(c.out, a) != nil {
				return
			}
			select {
			case c.answers <- a:
			case <-c.quit:
				return
			}
		}
	}()
	return c, nil
}

func (c *child) close() {
	close(c.quit)
	_ = c.in.Close()
	_ = c.out.Close()
	c.stderr.wait()
}

// environ holds back what is for skep's own processes, credentials above all.
func environ(env []string) []string {
	out := []string{"GOMAXPROCS=2", "GOTRACEBACK=none"}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(strings.ToUpper(name), "SKEP_") && name != "GOMAXPROCS" && name != "GOTRACEBACK" {
			out = append(out, kv)
		}
	}
	return out
}

// tail keeps the first and drops the rest of what the child complains about: a
// Go program's reason stands in front of its stacks.
type tail struct {
	r    *os.File
	done chan struct{}
	buf  bytes.Buffer
}

func newTail(r *os.File) *tail { return &tail{r: r, done: make(chan struct{})} }

func (t *tail) fill() {
	defer close(t.done)
	buf := make([]byte, 1<<10)
	for {
		n, err := t.r.Read(buf)
		if keep := min(n, 4<<10-t.buf.Len()); keep > 0 {
			t.buf.Write(buf[:keep])
		}
		if err != nil {
			return
		}
	}
}

// wait waits until nothing more comes; a command that survives the host may
// hold the pipe, which is not waited for long.
func (t *tail) wait() {
	_ = t.r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-t.done
	_ = t.r.Close()
}

func (t *tail) text() string { return strings.TrimSpace(t.buf.String()) }
