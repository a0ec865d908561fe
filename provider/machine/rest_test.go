package machine

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// resting is a pool of which up to so many machines are kept stopped.
func resting(prefix string, most, stopped int) provider.Config {
	c := demanded(prefix, most)
	c.Demand.Stopped = stopped
	return c
}

// states are those of the machines of a pool, with how many are in each.
func (w *world) states(prefix string) map[State]int {
	w.t.Helper()
	vms, err := w.store.VMsOf(w.t.Context(), prefix)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[State]int{}
	for i := range vms {
		out[StateOf(&vms[i], time.Now())]++
	}
	return out
}

func (w *world) wantStates(prefix string, want map[State]int) {
	w.t.Helper()
	synctest.Wait() // until what happened in this moment was seen
	if got := w.states(prefix); fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Errorf("machines: %v, want %v", got, want)
	}
}

// work has so many tasks run on a pool's machines, and returns when they do and
// how long the last of them waited.
func (w *world) work(n int) time.Duration {
	w.t.Helper()
	asked := time.Now()
	for waiting := w.submit(n, "os:Linux"); len(waiting) > 0; {
		if time.Since(asked) > 10*time.Minute {
			w.t.Fatalf("%d tasks wait still", len(waiting))
		}
		time.Sleep(100 * time.Millisecond)
		waiting = w.match(waiting)
	}
	return time.Since(asked)
}

func (w *world) finish() {
	for _, bot := range w.names() {
		w.end(bot)
	}
}

// Machines that are too many are stopped, as many as may be, and start again
// before others are made.
func TestStoppedMachinesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(resting("a", 10, 2))
		stop := w.run()
		defer stop()
		w.work(5)
		first := w.names()
		w.finish()
		time.Sleep(demandCool + 20*time.Second)
		w.wantStates("a", map[State]int{Stopped: 2})
		kept := w.names()
		for _, name := range kept {
			if _, err := w.store.Bot(t.Context(), skep.BotID(name)); !slices.Contains(first, name) || skep.KindOf(err) != skep.NotFound {
				t.Errorf("%s of %v is stopped; its bot: %v", name, first, err)
			}
		}
		if st, err := w.r.Status(t.Context(), "a"); err != nil || st[0].Stopped != 2 || st[0].Created != 2 || st[0].Configured != 0 || st[0].Draining != 0 {
			t.Errorf("status: %+v, %v", st, err)
		}
		time.Sleep(time.Hour) // and stay
		w.wantStates("a", map[State]int{Stopped: 2})
		made := w.inserts
		w.work(3)
		if got := w.names(); w.inserts != made+1 || !slices.Contains(got, kept[0]) || !slices.Contains(got, kept[1]) {
			t.Errorf("%v became %v, with %d new ones; want 1", kept, got, w.inserts-made)
		}
		w.wantStates("a", map[State]int{Serving: 3})
		w.finish()
		time.Sleep(demandCool + 20*time.Second)
		w.wantStates("a", map[State]int{Stopped: 2})
		if w.calls["stop"] != 4 || w.calls["start"] != 2 || len(w.cut) > 0 {
			t.Errorf("%d stops, %d starts, cut %v", w.calls["stop"], w.calls["start"], w.cut)
		}
		c := w.r.Counts()["a"]
		if n := c.ReadyAfter.Count; n != 8 || c.ReadyAfter.Seconds > 8*25 {
			t.Errorf("%d machines were ready after %v s", n, c.ReadyAfter.Seconds)
		}
	})
}

// What ends the rest of a machine: its lifetime, another shape, fewer that may
// rest, an operator, the end of its pool, and that its instance is lost.
func TestRestEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(w *world, c provider.Config)
		left int
	}{
		"nothing":                  {func(*world, provider.Config) {}, 2},
		"its lifetime":             {func(*world, provider.Config) { time.Sleep(2 * time.Hour) }, 0},
		"another shape":            {func(w *world, c provider.Config) { c.Attributes.MachineType = "bigger"; w.declare(c) }, 0},
		"fewer may rest":           {func(w *world, c provider.Config) { c.Demand.Stopped = 1; w.declare(c) }, 1},
		"the queue is not for it":  {func(w *world, c provider.Config) { c.Demand = nil; w.declare(c) }, 0},
		"the pool is removed":      {func(w *world, _ provider.Config) { w.declare() }, 0},
		"the pool is held":         {func(w *world, _ provider.Config) { _, _ = w.r.Hold(w.t.Context(), "a", true) }, 0},
		"an operator drains one":   {func(w *world, _ provider.Config) { _ = w.r.Drain(w.t.Context(), "a-0") }, 1},
		"an operator replaces one": {func(w *world, _ provider.Config) { _, _ = w.r.Replace(w.t.Context(), "a-1") }, 1},
		"an instance is lost": {func(w *world, _ provider.Config) {
			w.mu.Lock()
			delete(w.instances, w.hostOf("a-0"))
			delete(w.resting, w.hostOf("a-0"))
			w.mu.Unlock()
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c := resting("a", 2, 2)
				c.Lifetime = time.Hour
				w.declare(c)
				stop := w.run()
				defer stop()
				w.work(2)
				w.finish()
				time.Sleep(demandCool + time.Minute)
				w.wantStates("a", map[State]int{Stopped: 2})
				tc.do(w, c)
				time.Sleep(10 * time.Minute)
				if err := w.check(map[string]int{"a": tc.left}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func (w *world) hostOf(id string) string {
	v, err := w.store.VM(w.t.Context(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	return v.Hostname
}

// A bot that is back before its machine was stopped keeps it, and so its task;
// one that was started by hand ends after its task and rests again.
func TestBackBeforeTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(resting("a", 1, 1))
		stop := w.run()
		defer stop()
		w.work(1)
		w.mu.Lock()
		deaf := true
		w.fail = func(call, _, _ string) error {
			if call == "stop" && deaf {
				return errLost
			}
			return nil
		}
		w.mu.Unlock()
		w.finish()
		time.Sleep(demandCool + time.Minute)
		w.wantStates("a", map[State]int{Stopping: 1})
		bot := w.names()[0]
		back := func() {
			w.mu.Lock()
			delete(w.leaving, bot)
			deaf = false
			w.mu.Unlock()
			w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead, b.Terminated = false, 0 })
			w.busy(bot, true)
		}
		back()
		time.Sleep(time.Hour)
		if got := w.names(); len(w.cut) > 0 || !slices.Equal(got, []string{bot}) || w.isResting(bot) {
			t.Errorf("%s became %v, resting %v, cut %v", bot, got, w.resting, w.cut)
		}
		w.finish()
		time.Sleep(2 * time.Hour)
		w.wantStates("a", map[State]int{Stopped: 1})
		w.mu.Lock()
		delete(w.resting, bot) // by hand
		w.mu.Unlock()
		back()
		time.Sleep(time.Hour)
		if got := w.names(); len(w.cut) > 0 || !slices.Equal(got, []string{bot}) || w.isResting(bot) {
			t.Errorf("%s became %v, resting %v, cut %v", bot, got, w.resting, w.cut)
		}
		w.finish()
		time.Sleep(2 * time.Hour)
		w.wantStates("a", map[State]int{Stopped: 1})
	})
}

// What is done about a cloud that does not stop, or start, machines.
func TestRestFails(t *testing.T) {
	refuse := func(class provider.Class, code int) error {
		return &provider.Error{Class: class, Code: code, Reason: "no", Text: "no"}
	}
	for name, tc := range map[string]struct {
		call  string
		err   error
		times int  // that it happens
		same  bool // the machine is used again
	}{
		"stop, lost":                    {"stop", errLost, 3, true},
		"stop, the operation failed":    {"stop", refuse(provider.Transient, 200), 2, true},
		"stop, not allowed":             {"stop", refuse(provider.Permission, 403), 1, false},
		"stop, it cannot be":            {"stop", refuse(provider.Invalid, 400), 1, false},
		"start, lost":                   {"start", errLost, 3, true},
		"start, the operation failed":   {"start", refuse(provider.Transient, 200), 2, true},
		"start, it cannot be":           {"start", refuse(provider.Invalid, 400), 1, false},
		"start, no room":                {"start", refuse(provider.Exhausted, 200), 2, true},
		"start, no quota":               {"start", refuse(provider.Quota, 403), 3, true},
		"start, not allowed for a time": {"start", refuse(provider.Permission, 403), 3, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.declare(resting("a", 1, 1))
				stop := w.run()
				defer stop()
				w.work(1)
				bot, left := w.names()[0], tc.times
				w.mu.Lock()
				w.fail = func(call, _, _ string) error {
					if call == tc.call && left > 0 {
						left--
						return tc.err
					}
					return nil
				}
				w.mu.Unlock()
				w.finish()
				time.Sleep(15 * time.Minute)
				w.work(1)
				if got := w.names(); len(got) != 1 || (got[0] == bot) != tc.same || left != 0 || len(w.cut) > 0 {
					t.Errorf("%s became %v, same: %v wanted; %d failures to come; cut %v", bot, got, tc.same, left, w.cut)
				}
				if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || tc.call == "start" && !p.Failure.At.IsZero() {
					t.Errorf("the failure stays: %+v, %v", p, err)
				}
			})
		})
	}
}

// Where one zone has no room for machines that were stopped there, others are
// made in another one.
func TestStoppedWhereThereIsNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := resting("a", 3, 3)
		c.Zones = []string{"z", "y"}
		w.declare(c)
		stop := w.run()
		defer stop()
		w.work(3)
		w.finish()
		time.Sleep(demandCool + time.Minute)
		w.wantStates("a", map[State]int{Stopped: 3})
		w.mu.Lock()
		w.fail = func(call, _, zone string) error {
			if zone == "z" && (call == "start" || call == "create") {
				return &provider.Error{Class: provider.Exhausted, Code: 200, Reason: "ZONE_RESOURCE_POOL_EXHAUSTED"}
			}
			return nil
		}
		w.mu.Unlock()
		if took := w.work(3); took > 3*time.Minute {
			t.Errorf("it took %v", took)
		}
		for _, name := range w.names() {
			if zone := w.instances[name].Ref.Zone; zone != "y" {
				t.Errorf("%s is in %s", name, zone)
			}
		}
	})
}

// promise P12: a pool whose machines cannot be started asks little.
func TestStartsAreFewWhenRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(resting("a", 40, 40))
		stop := w.run()
		defer stop()
		w.work(40)
		w.finish()
		time.Sleep(demandCool + 5*time.Minute)
		w.wantStates("a", map[State]int{Stopped: 40})
		w.mu.Lock()
		w.fail = func(call, _, _ string) error {
			if call == "start" || call == "create" {
				return &provider.Error{Class: provider.Quota, Code: 403, Reason: "no", Text: "no"}
			}
			return nil
		}
		w.mu.Unlock()
		w.submit(40, "os:Linux")
		time.Sleep(time.Minute)
		w.mu.Lock()
		before := w.calls["start"] + w.calls["create"]
		w.mu.Unlock()
		time.Sleep(time.Hour)
		w.mu.Lock()
		n := w.calls["start"] + w.calls["create"] - before
		w.mu.Unlock()
		if n > 10 || n < 3 {
			t.Errorf("%d calls in an hour", n)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(20 * time.Minute)
		w.wantStates("a", map[State]int{Serving: 40})
	})
}

// A provider that is ended at any call of its cloud or of the bots' server, as
// by kill -9, leaves what the next one finishes: what rests is stopped once and
// starts once, and no machine is lost or made in vain.
func TestRestSurvivesKills(t *testing.T) {
	checks(t, 20)
	rapid.Check(t, func(rt *rapid.T) {
		kills := rapid.SliceOfN(rapid.IntRange(1, 12), 1, 4).Draw(rt, "kills")
		answered := rapid.Bool().Draw(rt, "answered")
		var err error
		synctest.Test(t, func(t *testing.T) { err = killed(newWorld(t), kills, answered) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func killed(w *world, kills []int, answered bool) error {
	w.declare(resting("a", 2, 2))
	stop := w.run()
	defer func() { stop() }()
	w.work(2)
	first := w.names()
	// dead counts calls down to the kill; then none is answered, or heard.
	dead, count := make(chan struct{}, 1), 0
	hit := func() bool {
		if len(kills) == 0 {
			return false
		}
		if count++; count < kills[0] {
			return false
		}
		count, kills = 0, kills[1:]
		dead <- struct{}{}
		return true
	}
	w.mu.Lock()
	down := false
	w.fail = func(string, string, string) error {
		if down || !answered && hit() {
			down = true
			return errors.New("killed")
		}
		return nil
	}
	w.lose = func() bool {
		if answered && !down && hit() {
			down = true
		}
		return down
	}
	w.mu.Unlock()
	revive := func(d time.Duration) {
		end := time.After(d)
		for {
			select {
			case <-end:
				return
			case <-dead:
			}
			stop()
			w.restart()
			w.mu.Lock()
			down = false
			w.mu.Unlock()
			stop = w.run()
		}
	}
	for range 2 {
		for _, bot := range w.names() {
			w.end(bot)
		}
		revive(15 * time.Minute)
		if got := w.states("a"); got[Stopped] != 2 || len(got) != 1 {
			return fmt.Errorf("after the tasks: %v", got)
		}
		waiting := w.submit(2, "os:Linux")
		for range 30 {
			revive(time.Minute)
			waiting = w.match(waiting)
		}
		if got := w.names(); len(waiting) > 0 || !slices.Equal(got, first) {
			return fmt.Errorf("%d tasks wait; %v became %v", len(waiting), first, got)
		}
	}
	return w.check(map[string]int{"a": 2})
}

func TestNextAtRest(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	p := Patience{Silence: 10 * time.Minute, Terminate: time.Hour}
	at := store.VM{
		URL: "u", Inserted: now.Add(-time.Hour), Created: now.Add(-time.Hour), Connected: now.Add(-time.Hour), Lifetime: 2 * time.Hour,
		Park: now.Add(-10 * time.Minute), Asked: now.Add(-10 * time.Minute), AskedDone: true,
		Bot: store.VMBot{Known: true, LastSeen: now.Add(-9 * time.Minute), Dead: true, Terminated: true},
	}
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, tc := range map[string]struct {
		change func(*store.VM)
		step   Step
		wait   time.Duration
	}{
		"its bot took leave":              {func(*store.VM) {}, StopInstance, 0},
		"and it is not wanted by now":     {func(v *store.VM) { v.Drained = true }, DestroyInstance, 0},
		"and its life is over":            {func(v *store.VM) { v.Lifetime = time.Minute }, DestroyInstance, 0},
		"its bot is at work":              {func(v *store.VM) { v.Bot.Dead, v.Asked = false, time.Time{} }, TerminateBot, 0},
		"its bot is silent":               {func(v *store.VM) { v.Bot.Terminated = false }, "", time.Minute},
		"its bot came back":               {func(v *store.VM) { v.Bot.Dead = false }, TerminateBot, 0},
		"it is being stopped":             {func(v *store.VM) { v.Stopping = ago(time.Minute) }, StopInstance, 0},
		"and not wanted":                  {func(v *store.VM) { v.Stopping, v.Drained = ago(time.Minute), true }, DestroyInstance, 0},
		"and its bot came back":           {func(v *store.VM) { v.Stopping, v.Bot.Dead = ago(time.Minute), false }, ManageBot, 0},
		"and not wanted, its bot is back": {func(v *store.VM) { v.Stopping, v.Bot.Dead, v.Drained = ago(time.Minute), false, true }, ManageBot, 0},
		"it is stopped":                   {func(v *store.VM) { v.Stopping, v.Stopped, v.Bot = ago(time.Minute), now, store.VMBot{} }, "", time.Hour},
		"and was replaced": {func(v *store.VM) {
			v.Stopping, v.Stopped, v.Bot, v.Retire = ago(time.Minute), now, store.VMBot{}, now
		}, DestroyInstance, 0},
		"and is wanted": {func(v *store.VM) {
			v.Stopping, v.Stopped, v.Bot, v.Park = ago(time.Minute), now, store.VMBot{}, time.Time{}
		}, StartInstance, 0},
		"it is being started": {func(v *store.VM) {
			v.Stopping, v.Stopped, v.Started, v.Bot, v.Park = ago(time.Minute), ago(time.Second), now, store.VMBot{}, time.Time{}
		}, StartInstance, 0},
		"and not wanted any more": {func(v *store.VM) {
			v.Stopping, v.Stopped, v.Started, v.Bot, v.Drained = ago(time.Minute), ago(time.Second), now, store.VMBot{}, true
		}, StartInstance, 0},
		"it was started, and boots": {func(v *store.VM) {
			v.Started, v.Bot, v.Park, v.Connected, v.Timeout, v.Asked = now, store.VMBot{}, time.Time{}, time.Time{}, 20*time.Minute, time.Time{}
		}, "", 20 * time.Minute},
		"the bot of its life before": {func(v *store.VM) {
			v.Started, v.Park, v.Connected, v.Timeout, v.Asked = now, time.Time{}, time.Time{}, 20*time.Minute, time.Time{}
		}, "", 20 * time.Minute},
		"it was started and is gone": {func(v *store.VM) { v.Stopping, v.Stopped, v.Started, v.Gone = now, now, now, now }, DeleteBot, 0},
	} {
		v := at
		tc.change(&v)
		if step, wait := Next(now, &v, p); step != tc.step || wait != tc.wait {
			t.Errorf("%s: %s in %v, want %s in %v", name, step, wait, tc.step, tc.wait)
		}
	}
}

// Whatever a pool looks like that keeps machines stopped: no more are than may
// be, none with a task is, and none is made while one could start.
func TestParkProperties(t *testing.T) {
	checks(t, 5000)
	now := time.Unix(1_700_000_000, 0)
	machines := rapid.Custom(func(t *rapid.T) store.VM {
		v := store.VM{
			Shape: rapid.SampledFrom([]string{"new", "new", "old"}).Draw(t, "shape"), Drained: rapid.IntRange(0, 4).Draw(t, "drained") == 0,
			Inserted: now, Created: now, Connected: now, URL: "u", Lifetime: time.Hour, Bot: store.VMBot{Known: true, LastSeen: now},
		}
		switch rapid.IntRange(0, 5).Draw(t, "life") {
		case 0:
			v.Bot.Task = 1
		case 1:
			v.Park = now
		case 2:
			v.Park, v.Stopping, v.Stopped, v.Bot, v.Connected = now, now, now, store.VMBot{}, time.Time{}
		case 3:
			v.Stopping, v.Stopped, v.Bot, v.Connected = now, now, store.VMBot{}, time.Time{}
		case 4:
			v = store.VM{Shape: v.Shape}
		}
		return v
	})
	rapid.Check(t, func(t *rapid.T) {
		vms := rapid.SliceOfN(machines, 0, 10).Draw(t, "machines")
		byID := map[string]*store.VM{}
		for i := range vms {
			vms[i].Index, vms[i].ID = i, fmt.Sprint(i)
			byID[vms[i].ID] = &vms[i]
		}
		p := &store.MachinePool{Prefix: "p", Amount: rapid.IntRange(0, 10).Draw(t, "amount"), Shape: "new"}
		rules := Rules{ByQueue: true, Most: p.Amount + rapid.IntRange(0, 5).Draw(t, "room"), Stopped: rapid.IntRange(0, 4).Draw(t, "stopped")}
		c := PoolChange(p, vms, rules)
		rest, run, could := 0, 0, 0
		for _, v := range vms {
			if v.Drained || slices.Contains(c.Drain, v.ID) {
				continue
			}
			switch {
			case slices.Contains(c.Park, v.ID), !v.Park.IsZero() && !slices.Contains(c.Start, v.ID):
				rest++
				if !v.Stopped.IsZero() && v.Shape == p.Shape {
					could++
				}
				if v.Shape != p.Shape {
					t.Errorf("%s is kept, and of an older shape", v.ID)
				}
			default:
				run++
			}
		}
		if rest > rules.Stopped {
			t.Errorf("%d rest, %d may", rest, rules.Stopped)
		}
		if len(c.Add) > 0 && could > 0 {
			t.Errorf("%d are made, and %d could start", len(c.Add), could)
		}
		if run+len(c.Add) > max(p.Amount, run) {
			t.Errorf("%d run, and %d more are made, want %d", run, len(c.Add), p.Amount)
		}
		for _, id := range append(slices.Clone(c.Park), c.Drain...) {
			if byID[id].Bot.Task != 0 {
				t.Errorf("%s has a task", id)
			}
		}
		for _, id := range c.Start {
			if v := byID[id]; v.Stopped.IsZero() || v.Drained || slices.Contains(c.Drain, id) || v.Shape != p.Shape {
				t.Errorf("%s is to start: %+v", id, v)
			}
		}
		for _, id := range c.Park {
			if slices.Contains(c.Drain, id) || slices.Contains(c.Replace, id) {
				t.Errorf("%s is kept and is not", id)
			}
		}
	})
}
