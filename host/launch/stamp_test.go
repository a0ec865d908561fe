package launch

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
)

// Control files are followed as they come and go, with real notifications: not
// by the look at everything, which is a minute apart. promise D12.
func TestControlFilesAreFollowed(t *testing.T) {
	const bound = 20 * time.Second
	dir := t.TempDir()
	e := &enginetest.Fake{}
	e.AddImage(engine.Image{ID: "sha256:1", Names: []string{"bot"}, Labels: map[string]string{labelDrain: "SIGTERM"}})
	l, err := Open(Options{
		Engine: e, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h",
		Settings: func() Settings { return Settings{Slots: 3, Image: "bot"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { _ = l.Run(ctx); close(ended) }()
	defer func() {
		cancel()
		<-ended
		_ = l.Close()
	}()
	changed := make(chan struct{}, 1)
	go func() {
		for _, err := range e.Events(ctx, nil, func() { changed <- struct{}{} }) {
			if err != nil {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	await := func(what string, want int) time.Duration {
		t.Helper()
		begun := time.Now()
		for {
			list, err := e.List(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			list = slices.DeleteFunc(list, func(c engine.Container) bool { return c.State != engine.Running })
			if len(list) == want {
				return time.Since(begun)
			}
			select {
			case <-changed:
			case <-time.After(30 * time.Second):
				t.Fatalf("%s: %d containers run after 30 s, want %d", what, len(list), want)
			}
		}
	}
	await("start", 3)
	var took []time.Duration
	for range 2 {
		for _, c := range []struct {
			stamp string
			left  int
		}{{"001" + slotStamp, 2}, {hostStamp, 0}, {rebootStamp, 0}} {
			path := filepath.Join(l.o.Root, c.stamp)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			took = append(took, await(c.stamp, c.left))
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			took = append(took, await(c.stamp+" removed", 3))
		}
	}
	slices.Sort(took)
	t.Logf("followed within %v to %v", took[0], took[len(took)-1])
	if half := took[len(took)/2]; half > bound { // a busy machine may be late now and then
		t.Errorf("followed within %v in the middle, want %v", half, bound)
	}
}
