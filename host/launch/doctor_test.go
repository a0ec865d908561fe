package launch

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/enginetest"
)

// sick is an engine that is asked ill before calls about one container; "" as
// its error does nothing and says that it did.
type sick struct {
	enginetest.Fake
	ill func(call, container string) error
}

var (
	errDeaf    = skep.Errorf(skep.Unavailable, "the engine does not answer")
	errRefused = errors.New("the engine refuses")
	errNothing = errors.New("") // done, and nothing came of it
)

func (s *sick) about(ctx context.Context, call, id string) error {
	c, err := s.Fake.Inspect(ctx, id)
	if s.ill == nil || err != nil {
		return nil //nolint:nilerr // the call itself says so
	}
	return s.ill(call, c.Name)
}

func (s *sick) Inspect(ctx context.Context, id string) (engine.Container, error) {
	if err := s.about(ctx, "inspect", id); err != nil {
		return engine.Container{}, err
	}
	return s.Fake.Inspect(ctx, id)
}

func (s *sick) Signal(ctx context.Context, id, signal string) error {
	if err := s.about(ctx, "signal", id); errors.Is(err, errNothing) {
		return nil
	} else if err != nil {
		return err
	}
	return s.Fake.Signal(ctx, id, signal)
}

func (s *sick) Remove(ctx context.Context, id string) error {
	if err := s.about(ctx, "remove", id); err != nil {
		return err
	}
	return s.Fake.Remove(ctx, id)
}

// An engine that does not answer, or that answers and serves no slot, is asked
// again, restarted, and the host is rebooted when that did not help; each at
// most once in 30 min, also by the next launcher, and also by passes from cron.
// One that serves a slot is left alone. promise D6.
func TestDeafEngineIsCured(t *testing.T) {
	const slots = 2
	calls := func(err error, names ...string) func(string) error {
		return func(call string) error {
			if strings.Contains(strings.Join(names, " "), call) || len(names) == 0 {
				return err
			}
			return nil
		}
	}
	of := func(name string, errs map[string]error) func(string, string) error {
		return func(call, container string) error {
			if name == "" || container == name {
				return errs[call]
			}
			return nil
		}
	}
	undying := map[string]error{"signal": errNothing, "remove": errRefused}
	for _, c := range []struct {
		name    string
		full    bool // host
		surplus int  // slots
		fail    func(string) error
		ill     func(string, string) error
		cured   bool
	}{
		{name: "it says nothing", fail: calls(errDeaf), cured: true},
		{name: "it answers pings only", fail: calls(errDeaf, "list"), cured: true},
		{name: "it refuses lists", fail: calls(errRefused, "list"), cured: true},
		{name: "no container can be made", fail: calls(errDeaf, "create"), cured: true},
		{name: "it refuses to make containers", fail: calls(errRefused, "create")}, // as for a mount that is not there
		{name: "no container can be looked at", full: true, ill: of("", map[string]error{"inspect": errDeaf}), cured: true},
		{name: "it says of no container how it is", full: true, ill: of("", map[string]error{"inspect": errRefused}), cured: true},
		{name: "one cannot be looked at", full: true, ill: of("001", map[string]error{"inspect": errDeaf})},
		{name: "no container can be ended", full: true, surplus: slots, ill: of("", undying), cured: true},
		{name: "kills hang", full: true, surplus: slots, ill: of("", map[string]error{"signal": errDeaf, "remove": errDeaf}), cured: true},
		{name: "drains and all hang", full: true, surplus: slots, ill: of("", map[string]error{"inspect": errDeaf, "signal": errDeaf, "remove": errDeaf}), cured: true},
		{name: "one cannot be ended", full: true, surplus: slots, ill: of("001", undying), cured: true}, // it is the only one that is left
		{name: "one cannot be ended beside one that works", full: true, surplus: 1, ill: of("001", undying)},
	} {
		for _, once := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, once %v", c.name, once), func(t *testing.T) {
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					begun := time.Now()
					var did []string
					fake := &sick{}
					fake.AddImage(engine.Image{ID: "sha256:1", Names: []string{"bot"}})
					settings := Settings{Slots: slots, Image: "bot", Deadline: time.Minute, StopGrace: time.Second}
					note := func(what string) {
						did = append(did, fmt.Sprintf("%s at %v", what, time.Since(begun).Round(time.Second)))
					}
					open := func() *Launcher {
						l, err := Open(Options{
							Engine: fake, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h",
							Settings:      func() Settings { return settings },
							RestartEngine: func(context.Context) error { note("restart"); return nil },
							Reboot:        func(context.Context, string) error { note("reboot"); return nil },
						})
						if err != nil {
							t.Fatal(err)
						}
						return l
					}
					run := func(d time.Duration) {
						ctx, cancel := context.WithTimeout(t.Context(), d)
						defer cancel()
						for once && ctx.Err() == nil {
							l := open()
							_ = l.Once(ctx)
							_ = l.Close()
							select {
							case <-ctx.Done():
							case <-time.After(5 * time.Minute):
							}
						}
						if once {
							return
						}
						l := open()
						l.doctor.suspicion = make(chan struct{}, 1)
						ended := make(chan struct{})
						go func() { l.treat(ctx); ended <- struct{}{} }()
						go func() { _ = l.images.Run(ctx); ended <- struct{}{} }()
						_ = l.loop.Run(ctx)
						<-ended
						<-ended
						_ = l.Close()
					}
					if c.full {
						run(time.Minute)
						if list, _ := fake.List(t.Context(), nil); len(list) != slots {
							t.Fatalf("%d containers, want %d", len(list), slots)
						}
					}
					settings.Slots -= c.surplus
					fake.Fail, fake.ill = c.fail, c.ill
					want := func(after string, words ...string) {
						t.Helper()
						if !c.cured {
							words = nil
						}
						ok := len(did) == len(words)
						for i, w := range words {
							ok = ok && strings.HasPrefix(did[i], w)
						}
						if !ok {
							t.Errorf("after %s: %q, want %q", after, did, words)
						}
					}
					run(20 * time.Minute)
					want("20 min", "restart", "reboot")
					run(5 * time.Minute) // as after the reboot
					want("25 min", "restart", "reboot")
					run(25 * time.Minute)
					want("50 min", "restart", "reboot", "restart", "reboot")
					fake.Fail, fake.ill = nil, nil
					n := len(did)
					run(time.Hour)
					if len(did) != n {
						t.Errorf("an engine that answers again: %q", did[n:])
					}
					list, _ := fake.List(t.Context(), nil)
					if len(list) != settings.Slots {
						t.Errorf("then %d containers, want %d", len(list), settings.Slots)
					}
					t.Logf("%v: %q", time.Since(begun), did)
				})
			})
		}
	}
}
