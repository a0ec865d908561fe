package machine

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// checks sets how many runs rapid makes, fewer with the race detector, unless
// somebody asked for others.
func checks(t *testing.T, n int) {
	if raceEnabled {
		n = max(2, n/5)
	}
	f := flag.Lookup("rapid.checks")
	if before := f.Value.String(); before == f.DefValue {
		_ = f.Value.Set(strconv.Itoa(n))
		t.Cleanup(func() { _ = f.Value.Set(before) })
	}
}

// op is something that happens to a fleet.
type op struct {
	What string
	N    int
	Wait time.Duration
}

var happenings = rapid.Custom(func(t *rapid.T) op {
	return op{
		What: rapid.SampledFrom([]string{"resize", "resize", "task", "end task", "die", "lose", "restart", "fail", "deaf", "shape", "delete bot", "remove"}).Draw(t, "what"),
		N:    rapid.IntRange(0, 6).Draw(t, "n"),
		Wait: time.Duration(rapid.SampledFrom([]int{0, 1, 2, 15, 40, 300, 700}).Draw(t, "wait")) * time.Second,
	}
})

// Whatever happens, a fleet becomes what is declared when it is left alone: no
// machine is made twice, none is lost or left, and none is taken from a task.
func TestConverges(t *testing.T) {
	checks(t, 15)
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(happenings, 1, 20).Draw(rt, "ops")
		var err error
		synctest.Test(t, func(t *testing.T) { err = live(newWorld(t), ops) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func live(w *world, ops []op) error {
	c := fixed("a", 3)
	c.MaxReplacing, c.Zones = 1, []string{"z", "y"}
	removed := false
	w.declare(c)
	stop := w.run()
	defer func() { stop() }()
	pick := func(n int) string {
		names := w.names()
		if len(names) == 0 {
			return ""
		}
		return names[n%len(names)]
	}
	for _, o := range ops {
		switch bot := pick(o.N); {
		case o.What == "resize":
			c.Amount, removed = provider.Amount{Min: o.N, Max: o.N}, false
			w.declare(c)
		case o.What == "shape":
			c.Attributes.MachineType, removed = fmt.Sprint(o.N), false
			w.declare(c)
		case o.What == "remove":
			removed = true
			w.declare()
		case o.What == "restart":
			stop()
			w.restart()
			stop = w.run()
		case o.What == "fail":
			classes := []provider.Class{provider.RateLimit, provider.Transient, provider.Permission, provider.Quota, provider.Conflict, provider.Exhausted}
			w.mu.Lock()
			left := 3
			w.fail = func(string, string, string) error {
				if left--; left < 0 {
					return nil
				}
				if class := classes[o.N%len(classes)]; class != provider.Transient {
					return &provider.Error{Class: class, Code: 200 + 203*(o.N%2), Reason: "r"}
				}
				return errors.New("no connection")
			}
			w.mu.Unlock()
		case o.What == "deaf":
			w.mu.Lock()
			left := o.N
			w.lose = func() bool { left--; return left >= 0 }
			w.mu.Unlock()
		case bot == "":
		case o.What == "task":
			v, err := w.store.VMByHostname(w.t.Context(), bot)
			if err == nil && v.Bot.Known && !v.Bot.Dead && w.leaving[bot] == 0 {
				w.busy(bot, true)
			}
		case o.What == "end task":
			w.end(bot)
		case o.What == "die":
			w.mu.Lock()
			w.tasks[bot] = false
			w.mu.Unlock()
			w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead, b.Task = true, 0 })
		case o.What == "lose":
			w.mu.Lock()
			w.tasks[bot] = false
			delete(w.instances, bot)
			w.mu.Unlock()
		case o.What == "delete bot":
			w.mu.Lock()
			w.tasks[bot] = false
			w.mu.Unlock()
			_ = fleetOf{w}.Delete(w.t.Context(), skep.BotID(bot)) // it may not be there
			w.r.Rouse(skep.BotID(bot))
		}
		time.Sleep(o.Wait)
	}
	w.mu.Lock()
	w.fail, w.lose = nil, nil
	w.mu.Unlock()
	for range 2 { // what is replaced one by one takes its time
		for _, bot := range w.names() {
			w.end(bot)
		}
		time.Sleep(50 * time.Minute)
	}
	want := map[string]int{"a": c.Amount.Min}
	if removed {
		want = nil
	}
	if err := w.check(want); err != nil {
		return err
	}
	vms, err := w.store.VMsOf(w.t.Context(), "a")
	for _, v := range vms {
		if v.Shape != c.Shape() || v.Drained || !v.Retire.IsZero() {
			err = errors.Join(err, fmt.Errorf("%s is outdated", v.ID))
		}
	}
	return err
}

// end ends the task of a bot that has one.
func (w *world) end(bot string) {
	w.mu.Lock()
	has := w.tasks[bot]
	w.mu.Unlock()
	if has {
		w.busy(bot, false)
	}
}

// promises P10, P22: whatever a pool looks like, its change never takes a busy
// machine before an idle one, nor a healthy one before one that is of no use, never makes more than are wanted, and never has
// more away at once than it may.
func TestPoolChangeProperties(t *testing.T) {
	checks(t, 10_000)
	now := time.Unix(1_700_000_000, 0)
	machines := rapid.Custom(func(t *rapid.T) store.VM {
		v := store.VM{Shape: rapid.SampledFrom([]string{"new", "old"}).Draw(t, "shape"), Drained: rapid.Bool().Draw(t, "drained")}
		for _, at := range []*time.Time{&v.Inserted, &v.Created, &v.Connected, &v.Retire} {
			if !rapid.Bool().Draw(t, "is") {
				break
			}
			*at = now
		}
		if !v.Connected.IsZero() {
			v.Bot.Known = true
			v.Bot.Task = skep.TaskID(rapid.IntRange(0, 1).Draw(t, "task"))
			v.Bot.LastSeen = v.Connected
			switch rapid.IntRange(0, 3).Draw(t, "health") {
			case 0:
				v.Bot.Ill = true
			case 1:
				v.Bot.Dead = true
			}
		}
		return v
	})
	rapid.Check(t, func(t *rapid.T) {
		vms := rapid.SliceOfN(machines, 0, 12).Draw(t, "machines")
		byID := map[string]*store.VM{}
		stay := 0
		for i := range vms {
			v := &vms[i]
			v.Index, v.ID = i*2, fmt.Sprint(i*2)
			byID[v.ID] = v
			if !v.Drained {
				stay++
			}
		}
		p := &store.MachinePool{Prefix: "p", Amount: rapid.IntRange(0, 12).Draw(t, "amount"), Shape: "new"}
		limit := rapid.IntRange(0, 4).Draw(t, "limit")
		spare := rapid.Bool().Draw(t, "spare")
		most := p.Amount + rapid.IntRange(0, 6).Draw(t, "room")
		c := PoolChange(p, vms, Rules{MaxReplacing: limit, ByQueue: spare, Most: most})
		if n := len(vms) + len(c.Add); !spare && len(c.Add) > 0 && n != p.Amount {
			t.Errorf("%d machines, want %d", n, p.Amount)
		}
		if n := stay + len(c.Add); spare && n < p.Amount && len(vms)+len(c.Add) < most || spare && len(c.Add) > 0 && n > p.Amount {
			t.Errorf("%d machines besides those that go, want %d", n, p.Amount)
		}
		if n := len(vms) + len(c.Add); spare && len(c.Add) > 0 && n > most {
			t.Errorf("%d machines, want %d at most", n, most)
		}
		if left := stay - len(c.Drain); left < min(stay, p.Amount) || left > p.Amount && !spare {
			t.Errorf("%d of %d stay, want %d", left, stay, p.Amount)
		}
		drained := map[string]bool{}
		busyOnes, healthyOnes := 0, 0
		for _, id := range c.Drain {
			drained[id] = true
			busyOnes += busy(byID[id])
			if v := byID[id]; v.Bot.Known && !v.Bot.Ill && !v.Bot.Dead && v.Bot.Task == 0 && v.Retire.IsZero() {
				healthyOnes++
			}
		}
		for _, v := range vms {
			if busyOnes > 0 && v.Bot.Task == 0 && !v.Drained && !drained[v.ID] {
				t.Errorf("a busy machine is drained, and the idle %s stays", v.ID)
			}
			if healthyOnes > 0 && v.Bot.Task == 0 && (v.Bot.Ill || v.Bot.Dead) && !v.Drained && !drained[v.ID] {
				t.Errorf("a healthy machine is drained, and %s stays, which takes no tasks", v.ID)
			}
		}
		if spare && busyOnes > 0 {
			t.Error("a busy machine is drained for the queue's sake")
		}
		away := len(c.Add)
		for _, v := range vms {
			// One that is ill and replaced is not at work before either.
			if !v.Drained && !drained[v.ID] && (!v.Retire.IsZero() || v.Connected.IsZero() || v.Bot.Dead || v.Bot.Ill) && !slices.Contains(c.Replace, v.ID) {
				away++
			}
		}
		if slices.ContainsFunc(c.Replace, func(id string) bool { return !byID[id].Bot.Ill }) && away+len(c.Replace) > limit {
			t.Errorf("%d are not at work and %d are to be replaced, at most %d may", away, len(c.Replace), limit)
		}
		away = len(c.Add)
		for _, v := range vms {
			if !v.Drained && !drained[v.ID] && (!v.Retire.IsZero() || v.Connected.IsZero() || v.Bot.Dead || v.Bot.Ill && v.Shape == "new") {
				away++
			}
		}
		for _, id := range c.Replace {
			if drained[id] || byID[id].Shape == "new" {
				t.Errorf("%s is replaced", id)
			}
		}
		if len(c.Replace) > 0 && away+len(c.Replace) > limit {
			t.Errorf("%d are away and %d are to be replaced, at most %d may", away, len(c.Replace), limit)
		}
		indexes := map[int]bool{}
		for _, v := range vms {
			indexes[v.Index] = true
		}
		for _, s := range c.Add {
			if indexes[s.Index] {
				t.Errorf("%d is there already", s.Index)
			}
			indexes[s.Index] = true
		}
	})
}

// promise P17: what is told of pools is what is stored and what there is, at
// every flush of an hour in which anything happens.
func TestStatusIsARecount(t *testing.T) {
	checks(t, 3)
	rapid.Check(t, func(rt *rapid.T) {
		ops := rapid.SliceOfN(happenings, 20, 20).Draw(rt, "ops")
		var err error
		synctest.Test(t, func(t *testing.T) { err = recounted(newWorld(t), ops) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

func recounted(w *world, ops []op) error {
	var wrong error
	tick := time.NewTicker(30 * time.Second)
	end := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				time.Sleep(time.Microsecond)
				synctest.Wait()
				wrong = errors.Join(wrong, w.recount())
			}
		}
	}()
	err := live(w, ops)
	tick.Stop()
	close(end)
	<-done
	return errors.Join(err, wrong)
}

// recount compares the status of pools with the records and bots of the store.
func (w *world) recount() error {
	w.mu.Lock()
	r := w.r
	w.mu.Unlock()
	status, err := r.Status(w.t.Context(), "")
	if err != nil {
		return err
	}
	vms, err := w.store.VMsAfter(w.t.Context(), "", 100_000)
	if err != nil {
		return err
	}
	type counts struct{ planned, created, connected, busy, outdated, stopped int }
	for _, s := range status {
		var want, places counts
		for _, v := range vms {
			if v.Prefix != s.Pool.Prefix {
				continue
			}
			bot, err := w.store.Bot(w.t.Context(), skep.BotID(v.Hostname))
			if err != nil {
				bot = &skep.Bot{Dead: true}
			}
			if v.URL == "" && v.Gone.IsZero() && v.Deleting.IsZero() {
				want.planned++
			} else {
				want.created++
			}
			if !bot.Dead && v.URL != "" {
				want.connected++
			}
			if bot.Task != 0 {
				want.busy++
			}
			if v.Shape != s.Pool.Shape {
				want.outdated++
			}
			if !v.Stopped.IsZero() && !v.Park.IsZero() && !v.Drained && v.Started.IsZero() && v.Deleting.IsZero() && v.Gone.IsZero() {
				want.stopped++
			}
		}
		for _, n := range s.ByPlace {
			places.created += n.Created
			places.connected += n.Connected
		}
		if got := (counts{s.Planned, s.Created, s.Connected, s.Busy, s.Outdated, s.Stopped}); got != want {
			return fmt.Errorf("at %v pool %s is told as %+v, it is %+v", time.Now(), s.Pool.Prefix, got, want)
		}
		if places.created != want.created || places.connected != want.connected {
			return fmt.Errorf("at %v places of pool %s have %+v, it has %+v", time.Now(), s.Pool.Prefix, places, want)
		}
		if want := s.Pool.Amount; s.Pool.Removed.IsZero() && s.Configured != want || s.Scaling != "fixed" && s.Scaling != "dynamic" {
			return fmt.Errorf("pool %s: %d configured, %s; want %d", s.Pool.Prefix, s.Configured, s.Scaling, want)
		}
	}
	return nil
}
