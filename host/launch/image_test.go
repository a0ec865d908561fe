package launch

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
)

// registry is an engine whose registry takes its time, or fails.
type registry struct {
	enginetest.Fake
	takes time.Duration
	fails error
	pulls int
}

func (r *registry) Pull(ctx context.Context, ref string) error {
	r.pulls++
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(r.takes):
	}
	if r.fails != nil {
		return r.fails
	}
	return r.Fake.Pull(ctx, ref)
}

func (r *registry) has(t *testing.T, ref string) bool {
	t.Helper()
	_, err := r.Image(t.Context(), ref)
	if err != nil && skep.KindOf(err) != skep.NotFound {
		t.Error(err)
	}
	return err == nil
}

// running counts containers that run, by image.
func (r *registry) running(t *testing.T) map[string]int {
	t.Helper()
	list, err := r.List(t.Context(), nil)
	if err != nil {
		t.Error(err)
	}
	n := map[string]int{}
	for _, c := range list {
		if c.State == engine.Running {
			n[c.ImageID]++
		}
	}
	return n
}

func openWith(t *testing.T, r *registry, dir string, s *Settings) *Launcher {
	t.Helper()
	l, err := Open(Options{
		Engine: r, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h",
		Settings: func() Settings { return *s },
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Slots do not wait for a registry in a pass either: they are filled with the
// image that is here, also while it is looked for a newer one, or one of another
// name. promises D5, D9.
func TestSlotsDoNotWaitForARegistry(t *testing.T) {
	for _, image := range []string{"r/bot:latest", "r/bot:2"} {
		t.Run(filepath.Base(image), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				r := &registry{takes: 10 * time.Minute}
				r.AddImage(engine.Image{ID: "sha256:1", Names: []string{"r/bot:latest", "r/bot@sha256:1"}})
				r.Offer("r/bot:latest", engine.Image{ID: "sha256:1", Names: []string{"r/bot:latest", "r/bot@sha256:1"}})
				s := &Settings{Slots: 2, Image: "r/bot:latest", RefreshImage: time.Minute, Deadline: time.Hour}
				pass := func(t *testing.T) {
					l := openWith(t, r, dir, s)
					defer l.Close()
					if err := l.Once(t.Context()); err != nil {
						t.Error(err)
					}
				}
				pass(t)
				list, _ := r.List(t.Context(), nil)
				for _, c := range list {
					if err := r.Remove(t.Context(), c.ID); err != nil {
						t.Fatal(err)
					}
				}
				s.Image = image
				r.Offer(image, engine.Image{ID: "sha256:2", Names: []string{image, "r/bot@sha256:2"}})
				ended := make(chan struct{})
				begun := time.Now()
				go func() { pass(t); close(ended) }()
				synctest.Wait()
				if got := r.running(t); got["sha256:1"] != 2 {
					t.Fatalf("while the registry is asked %v run, want 2 of the image that is here", got)
				}
				list, _ = r.List(t.Context(), nil)
				r.End(list[0].ID, 1)
				time.Sleep(time.Minute)
				synctest.Wait()
				if got := r.running(t); got["sha256:1"] != 2 {
					t.Errorf("a minute after a death %v run, want 2", got)
				}
				<-ended
				if took := time.Since(begun); took != r.takes || !r.has(t, "sha256:2") {
					t.Errorf("the pass took %v", took)
				}
				l := openWith(t, r, dir, s) // the roll-out has begun
				defer l.Close()
				if len(l.drains) != 1 {
					t.Errorf("%d slots drain for the new image, want 1", len(l.drains))
				}
			})
		})
	}
}

// A registry that fails keeps no old image here, and is asked again after a
// while, not sooner; for an image that was built here it is not asked.
func TestRegistryThatFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		names []string
		pulls int
	}{
		{"pulled", []string{"r/bot:latest", "r/bot@sha256:1"}, 6},
		{"built here", []string{"r/bot:latest"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				r := &registry{fails: skep.Errorf(skep.Unavailable, "the registry is away")}
				r.AddImage(engine.Image{ID: "sha256:0", Names: []string{"r/bot:old"}})
				r.AddImage(engine.Image{ID: "sha256:1", Names: c.names})
				l := openWith(t, r, dir, &Settings{Slots: 1, Image: "r/bot:latest", RefreshImage: 10 * time.Minute})
				defer l.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 59*time.Minute)
				defer cancel()
				_ = l.images.Run(ctx)
				if r.has(t, "sha256:0") || !r.has(t, "sha256:1") {
					t.Errorf("the old image is here: %v, the wanted one: %v", r.has(t, "sha256:0"), r.has(t, "sha256:1"))
				}
				if r.pulls != c.pulls {
					t.Errorf("%d pulls in an hour, want %d", r.pulls, c.pulls)
				}
				if note := l.Status().ImageNote; (note != "") != (c.pulls > 0) {
					t.Errorf("note %q", note)
				}
			})
		})
	}
}

// An image that this launcher had goes also when the next one comes from
// another repository, with the name that it came by and no other; not while a
// container has it, and not one of that repository that it never had. By
// launchers that follow each other.
func TestImagesOfBeforeGo(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := &registry{}
		r.AddImage(engine.Image{ID: "sha256:1", Names: []string{"old/bot:1", "old/bot@sha256:1"}})
		r.AddImage(engine.Image{ID: "sha256:2", Names: []string{"new/bot:1"}})
		s := &Settings{Slots: 1, Image: "old/bot:1"}
		pass := func(wait time.Duration) {
			t.Helper()
			l := openWith(t, r, dir, s)
			if err := errors.Join(l.Once(t.Context()), l.Close()); err != nil {
				t.Error(err)
			}
			time.Sleep(wait)
		}
		pass(time.Minute)
		if r.running(t)["sha256:1"] != 1 {
			t.Fatal("the host is not filled")
		}
		r.AddImage(engine.Image{ID: "sha256:3", Names: []string{"old/bot:stranger"}})
		s.Image = "new/bot:1"
		pass(time.Minute)
		list, _ := r.List(t.Context(), nil)
		if !r.has(t, "old/bot:1") || len(list) != 1 {
			t.Fatalf("an image went while a container had it; %d containers", len(list))
		}
		r.End(list[0].ID, 0)
		pass(time.Minute)
		pass(time.Minute)
		if r.running(t)["sha256:2"] != 1 || r.has(t, "sha256:1") || !r.has(t, "sha256:3") {
			t.Errorf("%v run; the image of before is here: %v, a stranger: %v", r.running(t), r.has(t, "sha256:1"), r.has(t, "sha256:3"))
		}
		r.AddImage(engine.Image{ID: "sha256:1", Names: []string{"old/bot:1"}}) // somebody else's now
		pass(time.Minute)
		if !r.has(t, "sha256:1") {
			t.Error("an image went that this launcher had once, and others brought again")
		}
	})
}
