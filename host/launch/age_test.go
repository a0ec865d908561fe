package launch

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep/host/engine"
)

// spec host.md §1.6: the table.
func TestHostAge(t *testing.T) {
	const limit, grace = 24 * time.Hour, 4 * time.Hour
	for _, c := range []struct {
		age           time.Duration
		running       int
		drain, reboot bool
	}{
		{limit - time.Minute, 0, false, false},
		{limit, 0, false, false},
		{limit, 1, false, false},
		{limit + time.Minute, 0, true, true},
		{limit + time.Minute, 1, true, false},
		{limit + grace, 1, true, false},
		{limit + grace + time.Minute, 1, true, true},
	} {
		if drain, reboot := HostAge(c.age, limit, grace, c.running); drain != c.drain || reboot != c.reboot {
			t.Errorf("age %v with %d running: drain %v, reboot %v, want %v, %v", c.age, c.running, drain, reboot, c.drain, c.reboot)
		}
	}
	if drain, reboot := HostAge(1000*time.Hour, 0, grace, 0); drain || reboot {
		t.Error("a host without limit is too old")
	}
}

// The reboots of hosts that were started together are spread over a fifth of
// their age, and no host's comes early.
func TestHostLimitSpreads(t *testing.T) {
	const limit = 1440 * time.Minute
	var all []time.Duration
	for i := range 1000 {
		name := SlotName(i) + ".example.com"
		l := HostLimit(name, limit)
		if l < limit || l >= limit+limit/5 || l != HostLimit(name, limit) {
			t.Fatalf("limit of %s is %v", name, l)
		}
		all = append(all, l)
	}
	slices.Sort(all)
	for i, want := range []time.Duration{limit, limit + limit/10, limit + limit/5} {
		if got := all[i*(len(all)-1)/2]; (got - want).Abs() > limit/50 {
			t.Errorf("limit %d of 1000 is %v, want about %v", i*(len(all)-1)/2, got, want)
		}
	}
}

// A host that is too old drains and fills no slot, reboots after the last
// container, or when the grace is over; not before its own limit, and not
// while an operator drains it. What cannot be ended is not waited for. Both as
// a resident launcher and by passes. spec host.md §1.6.
func TestOldHostReboots(t *testing.T) {
	const (
		fqdn  = "h.example.com"
		limit = 24 * time.Hour
		grace = 4 * time.Hour
		young = 23 * time.Hour // its age at the begin
	)
	own := HostLimit(fqdn, limit) - young // from then on it is too old
	for _, c := range []struct {
		name  string
		max   time.Duration // age
		busy  time.Duration // what bots have left to do when they are asked to end; 0 = nothing
		stamp string        // of an operator, until it is too old for 10 h
		stuck bool          // containers cannot be ended
		want  time.Duration // of the reboot; 0 = none
	}{
		{name: "idle bots", max: limit, want: own},
		{name: "busy bots", max: limit, busy: time.Hour, want: own + time.Hour},
		{name: "bots that go on", max: limit, busy: 100 * time.Hour, want: own + grace},
		{name: "no limit"},
		{name: "drained by its operator", max: limit, stamp: hostStamp, want: own + 10*time.Hour},
		{name: "told to reboot", max: limit, busy: time.Hour, stamp: rebootStamp, want: time.Hour},
		{name: "told to reboot, and stuck", stamp: rebootStamp, stuck: true, want: time.Minute + time.Second + frozenAfter},
	} {
		for _, once := range []bool{false, true} {
			name := c.name + ", resident"
			if once {
				name = c.name + ", once"
			}
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					begun := time.Now()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					var reboots []time.Duration
					drains := own // from then on no slot is filled
					if c.stamp != "" {
						drains = 0
					}
					e := &sick{}
					e.Fail = func(call string) error {
						if at := time.Since(begun); call == "create" && at > drains {
							t.Errorf("a container is made at %v", at)
						}
						return nil
					}
					labels := map[string]string{labelDrain: "SIGTERM"}
					e.AddImage(engine.Image{ID: "sha256:1", Names: []string{"bot"}, Labels: labels})
					var mu sync.Mutex
					asked := map[string]bool{}
					e.ill = func(call, name string) error {
						mu.Lock()
						defer mu.Unlock()
						switch {
						case c.stuck && call == "remove":
							return errRefused
						case call != "signal" || c.busy == 0 && !c.stuck:
						case !asked[name] && !c.stuck:
							asked[name] = true
							list, _ := e.List(t.Context(), nil)
							i := slices.IndexFunc(list, func(c engine.Container) bool { return c.Name == name })
							time.AfterFunc(c.busy, func() { e.End(list[i].ID, 0) })
							return errNothing
						default:
							return errNothing
						}
						return nil
					}
					settings := Settings{Slots: 2, Image: "bot", MaxHostAge: c.max, RebootGrace: grace, Deadline: 100 * time.Hour, StopGrace: time.Second}
					if c.stuck {
						settings.Deadline = time.Minute
					}
					open := func() *Launcher {
						l, err := Open(Options{
							Engine: e, Root: filepath.Join(dir, "root"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"), Host: "h", FQDN: fqdn,
							Settings: func() Settings { return settings },
							HostAge:  func() (time.Duration, error) { return young + time.Since(begun), nil },
							Reboot: func(context.Context, string) error { // it ends everything
								reboots = append(reboots, time.Since(begun))
								cancel()
								return nil
							},
						})
						if err != nil {
							t.Fatal(err)
						}
						return l
					}
					ended := make(chan struct{})
					go func() {
						defer close(ended)
						if once {
							for ctx.Err() == nil {
								l := open()
								_ = l.Once(ctx)
								_ = l.Close()
								select {
								case <-ctx.Done():
								case <-time.After(5 * time.Minute):
								}
							}
							return
						}
						l := open()
						defer l.Close()
						l.doctor.suspicion = make(chan struct{}, 1)
						parts := make(chan struct{})
						go func() { _ = l.images.Run(ctx); parts <- struct{}{} }()
						go func() { l.follow(ctx); parts <- struct{}{} }()
						_ = l.loop.Run(ctx)
						<-parts
						<-parts
					}()
					defer func() { cancel(); <-ended }()
					time.Sleep(time.Second)
					list, err := e.List(t.Context(), nil)
					if err != nil || len(list) != settings.Slots {
						t.Fatalf("%d containers, want %d; %v", len(list), settings.Slots, err)
					}
					if stamp := filepath.Join(dir, "root", c.stamp); c.stamp != "" {
						if err := os.WriteFile(stamp, nil, 0o600); err != nil {
							t.Fatal(err)
						}
						time.AfterFunc(own+10*time.Hour, func() { _ = os.Remove(stamp) })
					}
					slack := 2 * time.Minute // a look a minute
					if once {
						slack = 16 * time.Minute // three passes
					}
					time.Sleep(orElse(c.want, 30*time.Hour) + slack)
					cancel()
					<-ended
					switch {
					case c.want == 0 && len(reboots) > 0:
						t.Errorf("reboots %v, want none", reboots)
					case c.want > 0 && (len(reboots) != 1 || reboots[0] < c.want || reboots[0] > c.want+slack):
						t.Errorf("reboots %v, want one %v after the begin", reboots, c.want)
					}
				})
			})
		}
	}
}
