package reconcile

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/backoff"
)

// Step brings the thing with this key one move nearer to what is wanted, and
// says when it wants to look again even if nothing wakes it; 0 = only when
// something does. ctx ends at the loop's Limit. An error makes a pause, which
// grows with every further one and ends with the first success.
type Step func(ctx context.Context, key string) (again time.Duration, err error)

// Loop runs steps. Set the fields, then call Run or Pass; Wake and Forgive may
// be called at any time, by many.
type Loop struct {
	Step Step
	// List names every key there is, one call of each for one key. It is asked
	// at the start and every Resync: what an event missed is found then. nil =
	// keys come by Wake only.
	List func(ctx context.Context, each func(key string)) error
	// Hold takes the right to work on key, and release gives it back; an error
	// that wraps ErrHeld means that another has it. nil = nobody else works.
	Hold func(ctx context.Context, key string) (release func(), err error)

	Workers int           // steps at a time; 0 = 8
	Resync  time.Duration // between looks at every key; 0 = 60 s
	Limit   time.Duration // for one step; 0 = 30 s
	Min     time.Duration // the pause after a first failure; 0 = 1 s
	Max     time.Duration // the longest pause; 0 = 5 min
	Log     *slog.Logger  // failures, one line each

	mu      sync.Mutex
	keys    map[string]*work // waiting, running or pausing; others are not remembered
	queue   due              // those that are not running
	running int
	changed chan struct{} // holds one: the queue or running changed
}

// ErrHeld is what Hold wraps when another works on the key.
var ErrHeld = errors.New("another holds it")

// heldAgain is the time between looks at a key that another holds.
const heldAgain = time.Second

type work struct {
	key     string
	at      time.Time // when its step is due
	running bool
	woken   bool // while it ran: run again
	pausing bool // it failed: a wake does not shorten the pause
	pause   backoff.Exponential
	index   int // in the queue; -1 = not there
}

// Wake makes a step for each key due now. Waking a key that runs makes it run
// once more; one that waits already, however often woken, runs once; one that
// pauses after a failure goes on pausing, see Forgive.
func (l *Loop) Wake(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, key := range keys {
		l.wake(key)
	}
	l.signal()
}

func (l *Loop) wake(key string) {
	w := l.work(key)
	switch {
	case w.running:
		w.woken = true
	case !w.pausing:
		l.enqueue(w, time.Now())
	}
}

// Forgive ends the pauses of keys, of all without any: what made them fail is
// known to be gone.
func (l *Loop) Forgive(keys ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(keys) == 0 {
		for key, w := range l.keys {
			if w.pausing {
				keys = append(keys, key)
			}
		}
	}
	for _, key := range keys {
		if w := l.keys[key]; w != nil {
			w.pausing = false
			w.pause.Reset()
		}
		l.wake(key)
	}
	l.signal()
}

// Run works until ctx ends, and returns its error after the last step has. A
// step that panics has failed.
func (l *Loop) Run(ctx context.Context) error {
	resync := time.NewTicker(orElse(l.Resync, time.Minute))
	defer resync.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var steps sync.WaitGroup
	defer steps.Wait()
	changed := l.start()
	listed := make(chan struct{}, 1)
	list := func() { // beside the steps: a slow List delays none
		steps.Go(func() {
			l.list(ctx)
			listed <- struct{}{}
		})
	}
	list()
	listing := true
	for {
		timer.Reset(l.dispatch(ctx, &steps))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-timer.C:
		case <-listed:
			listing = false
		case <-resync.C:
			if !listing {
				listing = true
				list()
			}
		}
	}
}

// Pass runs one step for every key that List names, pausing ones too, and
// returns what failed. It is for programs that are run again and again.
func (l *Loop) Pass(ctx context.Context) error {
	var keys []string
	if err := l.List(ctx, func(key string) { keys = append(keys, key) }); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	var (
		steps  sync.WaitGroup
		places = make(chan struct{}, orElse(l.Workers, 8))
		mu     sync.Mutex
		errs   []error
	)
	for _, key := range keys {
		places <- struct{}{}
		steps.Go(func() {
			defer func() { <-places }()
			if _, err := l.step(ctx, key); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("%s: %w", key, err))
			}
		})
	}
	steps.Wait()
	return errors.Join(errs...)
}

func (l *Loop) start() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.init()
	return l.changed
}

func (l *Loop) init() {
	if l.keys == nil {
		l.keys = map[string]*work{}
		l.changed = make(chan struct{}, 1)
	}
}

func (l *Loop) signal() {
	l.init()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *Loop) list(ctx context.Context) {
	err := l.each(ctx)
	if err != nil && ctx.Err() == nil {
		l.log().WarnContext(ctx, "keys not listed", "err", err)
	}
}

func (l *Loop) each(ctx context.Context) (err error) {
	if l.List == nil {
		return nil
	}
	defer recovered(&err)
	return l.List(ctx, func(key string) { l.Wake(key) })
}

// dispatch starts the steps that are due while there are workers, and returns
// the time to the next.
func (l *Loop) dispatch(ctx context.Context, steps *sync.WaitGroup) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for len(l.queue) > 0 && l.running < orElse(l.Workers, 8) {
		w := l.queue[0]
		if wait := w.at.Sub(now); wait > 0 {
			return wait
		}
		heap.Pop(&l.queue)
		w.running, w.woken, w.pausing = true, false, false
		l.running++
		steps.Go(func() { l.run(ctx, w) })
	}
	return time.Hour // a change ends the wait
}

func (l *Loop) run(ctx context.Context, w *work) {
	begun := time.Now()
	again, err := l.step(ctx, w.key)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	w.running = false
	defer l.signal()
	now := time.Now()
	switch {
	case ctx.Err() != nil:
		delete(l.keys, w.key)
	case errors.Is(err, ErrHeld):
		l.enqueue(w, now.Add(heldAgain))
	case err != nil:
		w.pausing = true
		w.pause.Min, w.pause.Max = orElse(l.Min, time.Second), orElse(l.Max, 5*time.Minute)
		d := w.pause.Next()
		l.enqueue(w, now.Add(d))
		l.log().WarnContext(ctx, "step failed", "key", w.key, "err", err, "took", now.Sub(begun), "again", d)
	default:
		w.pause.Reset()
		switch {
		case w.woken:
			l.enqueue(w, now)
		case again > 0:
			l.enqueue(w, now.Add(again))
		default:
			delete(l.keys, w.key)
		}
	}
}

func (l *Loop) step(ctx context.Context, key string) (again time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, orElse(l.Limit, 30*time.Second), fmt.Errorf("a step took longer than %s", orElse(l.Limit, 30*time.Second)))
	defer cancel()
	if l.Hold != nil {
		release, err := l.Hold(ctx, key)
		if err != nil {
			return 0, err
		}
		defer release()
	}
	defer recovered(&err)
	return l.Step(ctx, key)
}

func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
	}
}

func (l *Loop) work(key string) *work {
	l.init()
	w := l.keys[key]
	if w == nil {
		w = &work{key: key, index: -1}
		l.keys[key] = w
	}
	return w
}

// enqueue makes w due at, or leaves it when it is due before.
func (l *Loop) enqueue(w *work, at time.Time) {
	switch {
	case w.index < 0:
		w.at = at
		heap.Push(&l.queue, w)
	case at.Before(w.at):
		w.at = at
		heap.Fix(&l.queue, w.index)
	}
}

func (l *Loop) log() *slog.Logger {
	if l.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l.Log
}

func orElse[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return v
}

// due is a heap: what is due first comes first.
type due []*work

func (d due) Len() int           { return len(d) }
func (d due) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d due) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *due) Push(x any) {
	w := x.(*work) //nolint:errcheck // only works are pushed
	w.index = len(*d)
	*d = append(*d, w)
}

func (d *due) Pop() any {
	old := *d
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*d, w.index = old[:len(old)-1], -1
	return w
}
