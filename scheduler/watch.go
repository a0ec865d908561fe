package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// hub wakes those who look at a task: readers of its output, and its bot,
// which wants to know whether it must stop and whether anybody reads.
type hub struct {
	mu     sync.Mutex
	tasks  map[skep.TaskID]*topic
	closed chan struct{} // nobody waits any more
}

type topic struct {
	readers  map[chan struct{}]bool
	controls map[chan struct{}]bool
	recent   int // readers that left so lately that they may be back
}

// linger is how long a reader counts after its call ended: watching is a
// sequence of bounded calls.
const linger = 2 * time.Second

func newHub() *hub { return &hub{tasks: map[skep.TaskID]*topic{}, closed: make(chan struct{})} }

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.closed:
	default:
		close(h.closed)
	}
}

func (h *hub) topic(id skep.TaskID) *topic {
	t := h.tasks[id]
	if t == nil {
		t = &topic{readers: map[chan struct{}]bool{}, controls: map[chan struct{}]bool{}}
		h.tasks[id] = t
	}
	return t
}

func (h *hub) dropEmpty(id skep.TaskID, t *topic) {
	if len(t.readers) == 0 && len(t.controls) == 0 && t.recent == 0 {
		delete(h.tasks, id)
	}
}

func signal(chans map[chan struct{}]bool) {
	for c := range chans {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// notify tells everybody that something about the task changed.
func (h *hub) notify(id skep.TaskID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := h.tasks[id]; t != nil {
		signal(t.readers)
		signal(t.controls)
	}
}

// watched reports whether somebody reads the task's output.
func (h *hub) watched(id skep.TaskID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.tasks[id]
	return t != nil && len(t.readers)+t.recent > 0
}

// read registers a reader; changed has a value after each change.
func (h *hub) read(id skep.TaskID) (changed <-chan struct{}, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topic(id)
	c := make(chan struct{}, 1)
	if len(t.readers)+t.recent == 0 {
		signal(t.controls)
	}
	t.readers[c] = true
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(t.readers, c)
		t.recent++
		time.AfterFunc(linger, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			if t.recent--; len(t.readers)+t.recent == 0 {
				signal(t.controls)
			}
			h.dropEmpty(id, t)
		})
	}
}

// control registers the task's bot.
func (h *hub) control(id skep.TaskID) (changed <-chan struct{}, leave func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topic(id)
	c := make(chan struct{}, 1)
	t.controls[c] = true
	return c, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(t.controls, c)
		h.dropEmpty(id, t)
	}
}

// View is what a reader of a task sees.
type View struct {
	Task   *skep.Task
	Offset int64  // of Output
	Output []byte // from the offset asked for on
}

// watchBytes bounds the output in one View.
const watchBytes = 1 << 20

// Watch returns the output from offset on and the task's state. With nothing
// new, which is no output and the state known already, it waits up to wait.
func (s *Scheduler) Watch(ctx context.Context, id skep.TaskID, offset int64, known skep.TaskState, wait time.Duration) (View, error) {
	changed, leave := s.hub.read(id)
	defer leave()
	timer := time.NewTimer(min(wait, MaxWait))
	defer timer.Stop()
	net := time.NewTicker(time.Second) // another server may have written
	defer net.Stop()
	for {
		t, err := s.store.Task(ctx, id)
		if err != nil {
			return View{}, err
		}
		out, err := s.store.Output(ctx, id, t.OutputSize, offset, watchBytes)
		if err != nil {
			return View{}, err
		}
		v := View{Task: t, Offset: offset, Output: out}
		if len(out) > 0 || t.State.Final() || known != t.State {
			return v, nil
		}
		select {
		case <-changed:
		case <-net.C:
		case <-timer.C:
			return v, nil
		case <-s.hub.closed:
			return v, nil
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}
