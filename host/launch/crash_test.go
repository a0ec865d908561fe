package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
)

// mortal is an engine that a launcher speaks to until it is killed: before or
// after one of its calls. What it had on disk at that moment is what the next
// one finds.
type mortal struct {
	*enginetest.Fake
	mu   sync.Mutex
	left int  // calls until then
	late bool // after the call
	dead bool
	die  func()
}

var errKilled = errors.New("the launcher was killed")

func (m *mortal) call(do func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return errKilled
	}
	m.left--
	if m.left != 0 {
		return do()
	}
	if m.late {
		_ = do()
	}
	m.dead = true
	m.die()
	return errKilled
}

func (m *mortal) List(ctx context.Context, labels map[string]string) (list []engine.Container, err error) {
	err = m.call(func() error { list, err = m.Fake.List(ctx, labels); return err })
	return list, err
}

func (m *mortal) Inspect(ctx context.Context, id string) (c engine.Container, err error) {
	err = m.call(func() error { c, err = m.Fake.Inspect(ctx, id); return err })
	return c, err
}

func (m *mortal) Create(ctx context.Context, s engine.Spec) (id string, err error) {
	err = m.call(func() error { id, err = m.Fake.Create(ctx, s); return err })
	return id, err
}

func (m *mortal) Start(ctx context.Context, id string) error {
	return m.call(func() error { return m.Fake.Start(ctx, id) })
}

func (m *mortal) Signal(ctx context.Context, id, signal string) error {
	return m.call(func() error { return m.Fake.Signal(ctx, id, signal) })
}

func (m *mortal) Remove(ctx context.Context, id string) error {
	return m.call(func() error { return m.Fake.Remove(ctx, id) })
}

// Wherever a launcher is killed, whatever ends and is wanted meanwhile: a slot
// never has two containers that run, and the next launchers come to what is
// wanted. Promise 3 of promises.md, section 5.
func TestKilledAnywhere(t *testing.T) {
	kills, hosts, all := 0, 0, t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		hosts++
		dir := filepath.Join(all, fmt.Sprint(hosts))
		defer os.RemoveAll(dir)
		synctest.Test(t, func(t *testing.T) {
			fake := &enginetest.Fake{}
			for _, i := range []string{"a", "b"} { // a registry has both: what nobody wants any more is removed
				fake.Offer("bot:"+i, engine.Image{ID: "sha256:" + i, Names: []string{"bot:" + i}})
			}
			settings := Settings{Slots: 3, Image: "bot:a", MaxUnavailable: 1, Deadline: 10 * time.Second, StopGrace: time.Second}
			generation := 0
			var status Status // of the last launcher
			state := func(n int) string { return filepath.Join(dir, fmt.Sprint("state", n)) }
			// live is one launcher's life, of some passes or until it is killed.
			live := func(m *mortal, passes int) {
				l, err := Open(Options{
					Engine: m, Root: filepath.Join(dir, "root"), StateDir: state(generation), LockDir: filepath.Join(dir, "locks"), Host: "h",
					Settings: func() Settings { return settings },
				})
				if err != nil {
					t.Fatal(err)
				}
				next := generation
				m.die = func() {
					next++
					for { // other slots are at work: a file may go while we look
						err := os.CopyFS(state(next), os.DirFS(state(generation)))
						if err == nil {
							break
						}
						if !errors.Is(err, fs.ErrNotExist) {
							t.Error(err)
							break
						}
						_ = os.RemoveAll(state(next))
					}
				}
				for range passes {
					_ = l.Once(t.Context()) // a pass that fails is what the next is for
					one(t, fake)
					if m.dead {
						break
					}
					time.Sleep(2 * time.Second)
				}
				status = l.Status()
				if err := l.Close(); err != nil {
					t.Error(err)
				}
				generation = next
			}
			for range rapid.IntRange(1, 6).Draw(rt, "lives") {
				switch rapid.IntRange(0, 4).Draw(rt, "meanwhile") {
				case 0:
					settings.Slots = rapid.IntRange(0, 4).Draw(rt, "slots")
				case 1:
					settings.Image = rapid.SampledFrom([]string{"bot:a", "bot:b"}).Draw(rt, "image")
				default:
					list, _ := fake.List(t.Context(), nil)
					if len(list) > 0 {
						fake.End(list[rapid.IntRange(0, len(list)-1).Draw(rt, "ends")].ID, 1)
					}
				}
				m := &mortal{Fake: fake, left: rapid.IntRange(1, 25).Draw(rt, "calls"), late: rapid.Bool().Draw(rt, "late")}
				live(m, 4)
				if m.dead {
					kills++
				}
				time.Sleep(time.Duration(rapid.IntRange(0, 60).Draw(rt, "away")) * time.Second)
			}
			time.Sleep(10 * time.Minute) // whatever pause there was
			live(&mortal{Fake: fake, left: -1}, 60)
			list, _ := fake.List(t.Context(), nil)
			slots := map[string]bool{}
			for _, c := range list {
				slots[c.Labels[LabelSlot]] = true
				if c.State != engine.Running || "bot:"+c.ImageID[len("sha256:"):] != settings.Image {
					t.Errorf("%s is %s of %s, wanted is %s", c.Name, c.State, c.ImageID, settings.Image)
				}
			}
			if len(list) != settings.Slots || len(slots) != settings.Slots {
				t.Errorf("%d containers of %d slots, want %d: %+v", len(list), len(slots), settings.Slots, status)
			}
		})
		if t.Failed() {
			rt.Fatal("see above")
		}
	})
	t.Logf("%d kills", kills)
	if kills < 10 {
		t.Errorf("%d kills: this shows nothing", kills)
	}
}

// one fails when a slot has two containers that run.
func one(t *testing.T, fake *enginetest.Fake) {
	t.Helper()
	list, _ := fake.List(t.Context(), nil)
	running := map[string]int{}
	for _, c := range list {
		if c.State == engine.Running {
			running[c.Labels[LabelSlot]]++
		}
	}
	for slot, n := range running {
		if n > 1 {
			t.Errorf("slot %s has %d containers", slot, n)
		}
	}
}

// Two launchers of one engine with images of one repository leave each other's
// alone, also while nothing of the other runs; what nobody wants any more goes.
func TestImagesOfOtherLaunchersStay(t *testing.T) {
	fake := &enginetest.Fake{}
	for _, i := range []string{"a", "b", "c"} {
		fake.AddImage(engine.Image{ID: "sha256:" + i, Names: []string{"bot:" + i}})
	}
	images := map[string]string{"one": "bot:a", "two/of them": "bot:b"}
	pass := func(name string) {
		dir := filepath.Join(t.TempDir(), "x")
		l, err := Open(Options{
			Engine: fake, Name: name, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h",
			Settings: func() Settings { return Settings{Image: images[name]} },
		})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if _, err := l.imageStep(t.Context(), keyImage); err != nil {
			t.Fatal(err)
		}
	}
	has := func(want string) {
		t.Helper()
		got := ""
		for _, i := range []string{"a", "b", "c"} {
			if _, err := fake.Image(t.Context(), "bot:"+i); err == nil {
				got += i
			}
		}
		if got != want {
			t.Errorf("images %s are here, want %s", got, want)
		}
	}
	fake.Fail = func(call string) error { // the first one cannot know what the other wants
		if call == "removeimage" {
			return skep.Errorf(skep.Conflict, "not now")
		}
		return nil
	}
	pass("one")
	pass("two/of them")
	fake.Fail = nil
	pass("one")
	pass("two/of them")
	has("ab")
	images["one"] = "bot:b"
	pass("one")
	has("b")
}
