// Package enginetest holds what every container engine must do, as a suite of
// tests, and an engine in memory that does it.
package enginetest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
)

// Fake is an engine in memory. The zero value has nothing; it may be used by
// many at once.
type Fake struct {
	// Fail is asked before each call, by its name in lower case, "create"; its
	// error is the call's. nil = none fails.
	Fail func(call string) error
	// Output is what a container has written; "" = nothing.
	Output string

	mu         sync.Mutex
	containers map[string]*engine.Container
	images     map[string]engine.Image // by id
	remote     map[string]engine.Image // by name
	n          int
	watchers   map[chan engine.Event]map[string]string
}

var _ engine.Engine = (*Fake)(nil)

// AddImage makes an image local, under its names.
func (f *Fake) AddImage(i engine.Image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images == nil {
		f.images = map[string]engine.Image{}
	}
	f.images[i.ID] = i
}

// Offer makes a registry have an image.
func (f *Fake) Offer(name string, i engine.Image) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.remote == nil {
		f.remote = map[string]engine.Image{}
	}
	f.remote[name] = i
}

// End ends a container's first process.
func (f *Fake) End(id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[id]; c != nil && c.State == engine.Running {
		f.end(c, code)
	}
}

func (f *Fake) end(c *engine.Container, code int) {
	c.State, c.ExitCode, c.Ended, c.PID = engine.Exited, code, time.Now(), 0
	f.tell(c, "die")
}

func (f *Fake) tell(c *engine.Container, action string) {
	for ch, labels := range f.watchers {
		if has(c.Labels, labels) {
			select {
			case ch <- engine.Event{Container: c.ID, Action: action, Labels: c.Labels}:
			default: // who does not read misses it, and looks at everything now and then
			}
		}
	}
}

func has(all, want map[string]string) bool {
	for k, v := range want {
		if got, ok := all[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// begin is the beginning of every call. The mutex is held when it returns nil.
func (f *Fake) begin(ctx context.Context, call string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	if f.Fail != nil {
		if err := f.Fail(call); err != nil {
			return err
		}
	}
	f.mu.Lock()
	return nil
}

func (f *Fake) find(id string) (*engine.Container, error) {
	if c := f.containers[id]; c != nil {
		return c, nil
	}
	for _, c := range f.containers {
		if c.Name == id {
			return c, nil
		}
	}
	return nil, skep.Errorf(skep.NotFound, "no such container: %s", id)
}

func (f *Fake) image(ref string) (engine.Image, error) {
	for _, i := range f.images {
		if i.ID == ref || slices.Contains(i.Names, ref) {
			return i, nil
		}
	}
	return engine.Image{}, skep.Errorf(skep.NotFound, "no such image: %s", ref)
}

// Ping implements engine.Engine.
func (f *Fake) Ping(ctx context.Context) error {
	err := f.begin(ctx, "ping")
	if err == nil {
		f.mu.Unlock()
	}
	return err
}

// List implements engine.Engine.
func (f *Fake) List(ctx context.Context, labels map[string]string) (list []engine.Container, err error) {
	if err := f.begin(ctx, "list"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	for _, c := range f.containers {
		if has(c.Labels, labels) {
			list = append(list, engine.Container{ID: c.ID, Name: c.Name, State: c.State, Labels: c.Labels, ImageID: c.ImageID, Created: c.Created})
		}
	}
	slices.SortFunc(list, func(a, b engine.Container) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// Inspect implements engine.Engine.
func (f *Fake) Inspect(ctx context.Context, id string) (engine.Container, error) {
	if err := f.begin(ctx, "inspect"); err != nil {
		return engine.Container{}, err
	}
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil {
		return engine.Container{}, err
	}
	return *c, nil
}

// Create implements engine.Engine.
func (f *Fake) Create(ctx context.Context, s engine.Spec) (string, error) {
	if err := f.begin(ctx, "create"); err != nil {
		return "", err
	}
	defer f.mu.Unlock()
	i, err := f.image(s.Image)
	if err != nil {
		return "", err
	}
	if _, err := f.find(s.Name); err == nil {
		return "", skep.Errorf(skep.Conflict, "the name %s is in use", s.Name)
	}
	f.n++
	c := &engine.Container{ID: fmt.Sprintf("%064x", f.n), Name: s.Name, State: engine.Created, Labels: maps.Clone(s.Labels), ImageID: i.ID, Created: time.Now()}
	if f.containers == nil {
		f.containers = map[string]*engine.Container{}
	}
	f.containers[c.ID] = c
	return c.ID, nil
}

// Start implements engine.Engine.
func (f *Fake) Start(ctx context.Context, id string) error {
	if err := f.begin(ctx, "start"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil || c.State == engine.Running {
		return err
	}
	f.n++
	c.State, c.Started, c.PID = engine.Running, time.Now(), 1<<20+f.n
	f.tell(c, "start")
	return nil
}

// Unpause implements engine.Engine.
func (f *Fake) Unpause(ctx context.Context, id string) error {
	if err := f.begin(ctx, "unpause"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil {
		return err
	}
	if c.State != engine.Paused {
		return skep.Errorf(skep.Conflict, "container %s is not paused", id)
	}
	c.State = engine.Running
	f.tell(c, "unpause")
	return nil
}

// Signal implements engine.Engine. SIGKILL ends a container with 137, SIGTERM
// and SIGINT with 0, as a bot that has nothing to do; others do nothing.
func (f *Fake) Signal(ctx context.Context, id, signal string) error {
	if err := f.begin(ctx, "signal"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil {
		return err
	}
	if c.State != engine.Running {
		return skep.Errorf(skep.Conflict, "container %s is not running", id)
	}
	switch signal {
	case "SIGKILL":
		f.end(c, 137)
	case "SIGTERM", "SIGINT":
		f.end(c, 0)
	}
	return nil
}

// Remove implements engine.Engine.
func (f *Fake) Remove(ctx context.Context, id string) error {
	if err := f.begin(ctx, "remove"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	c, err := f.find(id)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	if c.State == engine.Running {
		f.end(c, 137)
	}
	delete(f.containers, c.ID)
	f.tell(c, "destroy")
	return nil
}

// Log implements engine.Engine.
func (f *Fake) Log(ctx context.Context, id string, limit int) ([]byte, error) {
	if err := f.begin(ctx, "log"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if _, err := f.find(id); err != nil {
		return nil, err
	}
	return []byte(f.Output[max(0, len(f.Output)-limit):]), nil
}

// Image implements engine.Engine.
func (f *Fake) Image(ctx context.Context, ref string) (engine.Image, error) {
	if err := f.begin(ctx, "image"); err != nil {
		return engine.Image{}, err
	}
	defer f.mu.Unlock()
	return f.image(ref)
}

// Images implements engine.Engine.
func (f *Fake) Images(ctx context.Context) ([]engine.Image, error) {
	if err := f.begin(ctx, "images"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Values(f.images), func(a, b engine.Image) int { return cmp.Compare(a.ID, b.ID) }), nil
}

// Pull implements engine.Engine.
func (f *Fake) Pull(ctx context.Context, ref string) error {
	if err := f.begin(ctx, "pull"); err != nil {
		return err
	}
	i, ok := f.remote[ref]
	if ok { // its names are no other image's any more
		for id, other := range f.images {
			if id != i.ID {
				other.Names = slices.DeleteFunc(slices.Clone(other.Names), func(n string) bool { return slices.Contains(i.Names, n) })
				f.images[id] = other
			}
		}
	}
	f.mu.Unlock()
	if !ok {
		return skep.Errorf(skep.NotFound, "no registry has %s", ref)
	}
	f.AddImage(i)
	return nil
}

// Tag implements engine.Engine.
func (f *Fake) Tag(ctx context.Context, ref, name string) error {
	if err := f.begin(ctx, "tag"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	to, err := f.image(ref)
	if err != nil {
		return err
	}
	for id, i := range f.images {
		i.Names = slices.DeleteFunc(slices.Clone(i.Names), func(n string) bool { return n == name })
		if id == to.ID {
			i.Names = append(i.Names, name)
		}
		f.images[id] = i
	}
	return nil
}

// RemoveImage implements engine.Engine.
func (f *Fake) RemoveImage(ctx context.Context, ref string) error {
	if err := f.begin(ctx, "removeimage"); err != nil {
		return err
	}
	defer f.mu.Unlock()
	i, err := f.image(ref)
	if err != nil {
		return nil //nolint:nilerr // it is gone
	}
	if names := slices.DeleteFunc(slices.Clone(i.Names), func(n string) bool { return n == ref }); len(names) > 0 && len(names) < len(i.Names) {
		i.Names = names
		f.images[i.ID] = i
		return nil
	}
	for _, c := range f.containers {
		if c.ImageID == i.ID {
			return skep.Errorf(skep.Conflict, "image %s is used by container %s", ref, c.Name)
		}
	}
	delete(f.images, i.ID)
	return nil
}

// Events implements engine.Engine.
func (f *Fake) Events(ctx context.Context, labels map[string]string, ready func()) iter.Seq2[engine.Event, error] {
	return func(yield func(engine.Event, error) bool) {
		if err := f.begin(ctx, "events"); err != nil {
			yield(engine.Event{}, err)
			return
		}
		if f.watchers == nil {
			f.watchers = map[chan engine.Event]map[string]string{}
		}
		ch := make(chan engine.Event, 1000)
		f.watchers[ch] = labels
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.watchers, ch)
		}()
		if ready != nil {
			ready()
		}
		for {
			select {
			case <-ctx.Done():
				return
			case ev := <-ch:
				if !yield(ev, nil) {
					return
				}
			}
		}
	}
}
