package machine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

func TestPoolFollowsItsSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		stop := w.run()
		defer stop()
		for _, n := range []int{5, 8, 3, 0, 2} {
			w.declare(fixed("a", n))
			time.Sleep(2 * time.Minute)
			if err := w.check(map[string]int{"a": n}); err != nil {
				t.Errorf("%d: %v", n, err)
			}
		}
		if w.inserts != 10 {
			t.Errorf("%d inserts, want 10", w.inserts)
		}
		w.declare()
		time.Sleep(2 * time.Minute)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
		if pools, err := w.store.MachinePools(t.Context()); len(pools) > 0 || err != nil {
			t.Errorf("a removed pool without machines is left: %v, %v", pools, err)
		}
	})
}

// promise P8: what was not asked for is not made.
func TestShrunkBeforeTheFirstInsert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 100))
		if _, err := w.r.RunStep(t.Context(), ExpandConfigs, "a"); err != nil {
			t.Fatal(err)
		}
		w.declare(fixed("a", 0))
		stop := w.run()
		defer stop()
		time.Sleep(2 * time.Minute)
		if err := w.check(nil); err != nil || w.inserts != 0 {
			t.Errorf("%d inserts, %v", w.inserts, err)
		}
	})
}

// A pool of which a step found nothing to do is not looked at again for a while,
// unless a machine of it is gone or what is declared changed.
func TestCalmPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 3))
		look := func() time.Duration {
			t.Helper()
			again, err := w.r.poolStep(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			return again
		}
		machines := func() int {
			t.Helper()
			vms, err := w.store.VMsOf(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			return len(vms)
		}
		drop := func() {
			t.Helper()
			vms, err := w.store.VMsOf(t.Context(), "a")
			if err == nil {
				err = w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.DropVM(vms[0].ID) }, store.KeyMachine(vms[0].ID))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		calm := func() {
			w.r.mu.Lock()
			defer w.r.mu.Unlock()
			c := w.r.calm["a"]
			c.until = time.Now().Add(time.Minute) // as after a long step; none takes time here
			w.r.calm["a"] = c
		}
		if look(); machines() != 3 {
			t.Fatalf("%d machines are planned", machines())
		}
		look()
		calm()
		drop()
		if again := look(); again != time.Minute || machines() != 2 {
			t.Errorf("calm: again in %v, %d machines", again, machines())
		}
		w.r.replan("a")
		if look(); machines() != 3 {
			t.Errorf("a machine is gone: %d", machines())
		}
		calm()
		w.declare(fixed("a", 5))
		if look(); machines() != 5 {
			t.Errorf("another size: %d", machines())
		}
		calm()
		drop()
		time.Sleep(time.Minute)
		if look(); machines() != 5 {
			t.Errorf("it is time again: %d", machines())
		}
	})
}

// A calm pool looks at the queue as often as another, and follows its windows.
func TestCalmPoolsAreInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 1)
		now := time.Now().UTC()
		opens := now.Truncate(time.Minute).Add(3*time.Minute + time.Hour)
		c.Amount.Windows = []provider.Window{{Day: opens.Weekday(), Hour: opens.Hour(), Minute: opens.Minute(), Location: time.UTC, Length: time.Hour, Min: 2, Max: 2}}
		w.declare(demanded("d", 5), c)
		stop := w.run()
		defer stop()
		slow := func() { // as if each step took a minute
			w.r.mu.Lock()
			defer w.r.mu.Unlock()
			for prefix, c := range w.r.calm {
				c.until = time.Now().Add(100 * time.Minute)
				w.r.calm[prefix] = c
			}
		}
		pool := func(prefix string) *store.MachinePool {
			t.Helper()
			p, err := w.store.MachinePool(t.Context(), prefix)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		time.Sleep(10 * time.Minute)
		slow()
		w.submit(2, "os:Linux")
		time.Sleep(30*time.Second + demandEvery + 100*time.Millisecond)
		if n := pool("d").Amount; n != 2 {
			t.Errorf("%d machines are wanted for 2 tasks", n)
		}
		for time.Now().Before(opens.Add(-time.Second)) {
			slow()
			w.r.loop.Wake(poolKey("a")) // as a machine that came
			time.Sleep(time.Second)
		}
		if n := pool("a").Amount; n != 1 {
			t.Errorf("before the window: %d", n)
		}
		time.Sleep(2 * time.Second)
		if n := pool("a").Amount; n != 2 {
			t.Errorf("in the window: %d", n)
		}
	})
}

// promise P3: a cloud that takes ten times as long has few steps wait, one for
// each machine or pool, and two minutes after it is itself again all is as
// declared.
func TestCloudTenTimesAsSlow(t *testing.T) {
	size := 200
	if raceEnabled {
		size = 40
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		calm := w.slow
		set := func(op, call time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.slow = op
			w.hang = func(ctx context.Context) error {
				select {
				case <-time.After(call):
				case <-ctx.Done():
				}
				return ctx.Err()
			}
		}
		set(calm, 100*time.Millisecond)
		w.declare(fixed("a", size))
		stop := w.run()
		defer stop()
		time.Sleep(5 * time.Minute)
		if err := w.check(map[string]int{"a": size}); err != nil {
			t.Fatal(err)
		}
		set(10*calm, time.Second)
		// All are replaced at once, and some more are wanted.
		c := fixed("a", size+size/4)
		c.Attributes.MachineType, c.MaxReplacing = "other", size
		w.declare(c)
		for range 12 {
			time.Sleep(5 * time.Second)
			vms, err := w.store.VMsOf(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			if n := len(vms) + 1; n > 2*size { // each waits once, and so does the pool
				t.Errorf("%d steps wait", n)
			}
		}
		if n := w.states("a")[Serving]; n >= size {
			t.Errorf("%d machines serve: nothing is slow", n)
		}
		set(calm, 100*time.Millisecond)
		time.Sleep(2 * time.Minute)
		w.wantStates("a", map[State]int{Serving: size + size/4})
		if err := w.check(map[string]int{"a": size + size/4}); err != nil {
			t.Error(err)
		}
	})
}

// A large pool goes, as it comes, in transactions of a bounded size; until all
// of it is drained nothing of it is made.
func TestLargePoolGoesInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const size = 2*changeAtOnce + 50
		w.declare(fixed("a", size))
		expand := func() (drained int) {
			t.Helper()
			if _, err := w.r.RunStep(t.Context(), ExpandConfigs, "a"); err != nil {
				t.Fatal(err)
			}
			vms, err := w.store.VMsOf(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range vms {
				if v.Drained {
					drained++
				}
			}
			return drained
		}
		for range 3 {
			expand()
		}
		w.declare(fixed("a", 10))
		for i, want := range []int{changeAtOnce, 2 * changeAtOnce, size - 10} {
			if got := expand(); got != want {
				t.Errorf("after %d steps %d are drained, want %d", i+1, got, want)
			}
			if got := w.r.isExpanded("a"); got != (i == 2) {
				t.Errorf("after %d steps the plans are followed: %v", i+1, got)
			}
		}
		w.declare()
		stop := w.run()
		defer stop()
		time.Sleep(2 * time.Minute)
		if err := w.check(nil); err != nil || w.inserts != 0 {
			t.Errorf("%d inserts, %v", w.inserts, err)
		}
	})
}

func TestLifetimeEndsAfterTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 1)
		c.Lifetime = 5 * time.Minute
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		first := w.names()[0]
		w.busy(first, true)
		time.Sleep(10 * time.Minute)
		if got := w.names()[0]; got != first || len(w.asked[first]) != 1 {
			t.Fatalf("%s after %s, asked %d times", got, first, len(w.asked[first]))
		}
		v, err := w.store.VMByHostname(t.Context(), first)
		if err != nil {
			t.Fatal(err)
		}
		if late := w.asked[first][0].Sub(v.End()); late < 0 || late > 2*time.Second { // promise P15
			t.Errorf("asked %v after its end", late)
		}
		w.busy(first, false)
		time.Sleep(time.Minute)
		if got := w.names(); len(got) != 1 || got[0] == first || len(w.cut) > 0 {
			t.Errorf("%v after %s, cut %v", got, first, w.cut)
		}
	})
}

// promise P19: a request to end is repeated by the hour at most.
func TestAskedToEndByTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 1))
		stop := w.run()
		time.Sleep(time.Minute)
		bot := w.names()[0]
		w.busy(bot, true)
		w.declare(fixed("a", 0))
		for range 7 { // restarts repeat nothing
			time.Sleep(30 * time.Minute)
			stop()
			w.restart()
			stop = w.run()
		}
		stop()
		for i, at := range w.asked[bot][1:] {
			if d := at.Sub(w.asked[bot][i]); d < time.Hour {
				t.Errorf("asked again after %v", d)
			}
		}
		if len(w.cut) > 0 || w.names()[0] != bot {
			t.Errorf("cut %v", w.cut)
		}
	})
}

// promise P10: idle machines go first.
func TestIdleMachinesGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 6))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		busy := w.names()[3:]
		for _, b := range busy {
			w.busy(b, true)
		}
		w.declare(fixed("a", 3))
		time.Sleep(time.Minute)
		if got := w.names(); fmt.Sprint(got) != fmt.Sprint(busy) || len(w.leaving) != 3 {
			t.Errorf("%v are left of the busy %v", got, busy)
		}
	})
}

// promise P13: one that never came is gone within max(timeout, silence) + 1 min.
func TestDrainedBeforeItsBotCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot = 1000 * time.Hour
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		w.declare(fixed("a", 0))
		time.Sleep(8 * time.Minute)
		if len(w.names()) != 1 {
			t.Error("it was taken away early")
		}
		time.Sleep(2*time.Minute + time.Second)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
	})
}

// promise P14: a reboot of 5 min is no death.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		bot := w.names()[0]
		dead := func(b *skep.Bot, _ time.Time) { b.Dead = true }
		w.save(bot, dead)
		time.Sleep(5 * time.Minute)
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = false })
		time.Sleep(20 * time.Minute)
		if got := w.names()[0]; got != bot {
			t.Fatalf("a rebooted machine was replaced by %s", got)
		}
		w.save(bot, dead)
		time.Sleep(12 * time.Minute)
		if got := w.names(); len(got) != 1 || got[0] == bot {
			t.Errorf("a dead machine was not replaced: %v", got)
		}
	})
}

// promise P14: how long a bot may be silent is the operator's to say.
func TestSilenceAsConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.r = w.reconciler(Options{Patience: Patience{Silence: 40 * time.Minute}})
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		bot := w.names()[0]
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = true })
		for _, there := range []bool{true, false} {
			time.Sleep(38 * time.Minute)
			if got := w.names(); len(got) != 1 || (got[0] == bot) != there {
				t.Errorf("%s became %v, want it to be there: %v", bot, got, there)
			}
		}
	})
}

// A delete of which the cloud never heard takes no machine whose bot is back.
func TestBackBeforeTheDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		w.mu.Lock()
		w.fail = func(call, _, _ string) error {
			if call == "delete" {
				return errLost
			}
			return nil
		}
		w.mu.Unlock()
		bots := w.names()
		for _, b := range bots {
			w.save(b, func(b *skep.Bot, _ time.Time) { b.Dead = true })
		}
		time.Sleep(15 * time.Minute)
		w.mu.Lock()
		if w.calls["delete"] < 2 {
			t.Errorf("%d deletes: nothing is shown", w.calls["delete"])
		}
		w.mu.Unlock()
		w.save(bots[0], func(b *skep.Bot, _ time.Time) { b.Dead = false })
		w.busy(bots[0], true)
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(15 * time.Minute)
		if got := w.names(); len(w.cut) > 0 || len(got) != 2 || got[0] != bots[0] || got[1] == bots[1] {
			t.Errorf("%v became %v; cut %v", bots, got, w.cut)
		}
		if v, err := w.store.VMByHostname(t.Context(), bots[0]); err != nil || StateOf(v, time.Now()) != Serving {
			t.Errorf("%+v, %v", v, err)
		}
	})
}

// A server that was away longer than a bot may be silent waits for the bots.
func TestServerWasAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 1))
		stop := w.run()
		time.Sleep(time.Minute)
		bot := w.names()[0]
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = true })
		stop()
		time.Sleep(time.Hour)
		w.restart()
		stop = w.run()
		defer stop()
		time.Sleep(5 * time.Minute)
		if got := w.names(); len(got) != 1 || got[0] != bot {
			t.Fatalf("%s became %v before it could be heard", bot, got)
		}
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = false })
		time.Sleep(15 * time.Minute)
		if got := w.names(); len(got) != 1 || got[0] != bot {
			t.Errorf("%s became %v", bot, got)
		}
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = true })
		time.Sleep(12 * time.Minute)
		if got := w.names(); len(got) != 1 || got[0] == bot {
			t.Errorf("a dead machine was not replaced: %v", got)
		}
	})
}

func TestLostInstanceAndDeletedBot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		lost, deleted := w.names()[0], w.names()[1]
		w.mu.Lock()
		delete(w.instances, lost)
		w.mu.Unlock()
		if err := (fleetOf{w}).Delete(t.Context(), skep.BotID(deleted)); err != nil {
			t.Fatal(err)
		}
		w.r.Rouse(skep.BotID(deleted))
		time.Sleep(15 * time.Minute)
		if err := w.check(map[string]int{"a": 2}); err != nil {
			t.Error(err)
		}
		for _, n := range w.names() {
			if n == lost || n == deleted {
				t.Errorf("%s is still there", n)
			}
		}
	})
}

// A machine was made and no answer came. That the same call is refused as wrong
// when it is repeated, or that there is no cloud to ask, does not say that the
// machine is not there.
func TestRefusedWhenAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 0
		w.lose = func() bool {
			if w.inserts == 1 && len(w.byRequest) == 1 { // the first answer; what repeats it is not known as that
				clear(w.byRequest)
				return true
			}
			return false
		}
		refused := 0
		w.fail = func(call, _, _ string) error {
			if call == "create" && w.inserts == 1 {
				refused++
				return &provider.Error{Class: provider.Invalid, Reason: "command", Text: "there is something of that name"}
			}
			return nil
		}
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(10 * time.Minute)
		if err := w.check(map[string]int{"a": 1}); err != nil || w.inserts != 1 || refused != 1 {
			t.Errorf("%d inserts, %d refusals, %v", w.inserts, refused, err)
		}
	})
}

// A pool that has what it wants does not fail, whatever failed on the way: a
// machine that is taken away at the second try, one that is not wanted any more.
func TestFailureIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		from, to int
		fail     func(n int, call string) error // call n of its kind
	}{
		"a delete at the second try": {2, 1, func(n int, call string) error {
			if call == "delete" && n == 1 {
				return &provider.Error{Class: provider.Transient, Code: 503, Reason: "backendError"}
			}
			return nil
		}},
		"a quota that is too small": {2, 1, func(n int, call string) error {
			if call == "create" && n > 1 {
				return &provider.Error{Class: provider.Quota, Code: 403, Reason: "quotaExceeded"}
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				failed := 0
				w.fail = func(call, _, _ string) error {
					err := c.fail(w.calls[call], call)
					if err != nil {
						failed++
					}
					return err
				}
				w.declare(fixed("a", c.from))
				stop := w.run()
				defer stop()
				time.Sleep(5 * time.Minute)
				w.declare(fixed("a", c.to))
				time.Sleep(20 * time.Minute)
				st, err := w.r.Status(t.Context(), "a")
				if err != nil || failed == 0 || st[0].Created != c.to || !st[0].Pool.Failure.At.IsZero() {
					t.Errorf("%d failures, %d created, %+v, %v", failed, st[0].Created, st[0].Pool.Failure, err)
				}
			})
		})
	}
}

// promise P12: a pool that cannot be made asks little, whatever its size, and
// says why.
func TestRefusedPoolPauses(t *testing.T) {
	for name, refusal := range map[string]*provider.Error{
		"permission":         {Class: provider.Permission, Code: 403},
		"quota":              {Class: provider.Quota, Code: 403},
		"invalid":            {Class: provider.Invalid, Code: 400},
		"conflict":           {Class: provider.Conflict, Code: 409},
		"a failed operation": {Class: provider.Transient, Code: 200},
	} {
		refusal.Reason, refusal.Text = "no", "not you"
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.refuse(refusal, func(name, _ string) bool { return prefixOf(name) == "a" })
				w.declare(fixed("a", 40), fixed("b", 3))
				stop := w.run()
				defer stop()
				time.Sleep(time.Second)
				p, err := w.store.MachinePool(t.Context(), "a")
				if err != nil || p.Failure.Class != string(refusal.Class) || p.Failure.Text != "not you" {
					t.Errorf("after 1 s: %+v, %v", p, err)
				}
				time.Sleep(time.Hour)
				if n := w.refused(); n < 4 || n > 10 {
					t.Errorf("%d calls in an hour, want 10 at most", n)
				}
				if len(w.names()) != 3 {
					t.Errorf("the other pool has %v", w.names())
				}
				w.relent()
				time.Sleep(20 * time.Minute) // no hands needed
				if err := w.check(map[string]int{"a": 40, "b": 3}); err != nil {
					t.Error(err)
				}
				if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || !p.Failure.At.IsZero() {
					t.Errorf("the failure stays: %+v, %v", p, err)
				}
			})
		})
	}
}

// promise P12: nor does a pool that was healthy, of whatever size, when it
// begins to be refused: not when many are to be replaced at once, and not in the
// middle of growing.
func TestHealthyPoolBeginsToFail(t *testing.T) {
	size := 200
	if raceEnabled {
		size = 40
	}
	for name, tc := range map[string]struct {
		class provider.Class
		begin func(w *world, fail func())
	}{
		"a quarter is to be replaced": {provider.Permission, func(w *world, fail func()) {
			time.Sleep(5 * time.Minute)
			if n := len(w.names()); n != size {
				w.t.Fatalf("%d machines", n)
			}
			fail()
			vms, err := w.store.VMsOf(w.t.Context(), "a")
			if err != nil {
				w.t.Fatal(err)
			}
			for _, v := range vms[:size/4] {
				if _, err := w.r.Replace(w.t.Context(), v.ID); err != nil {
					w.t.Fatal(err)
				}
			}
		}},
		"in the middle of growing": {provider.Permission, func(w *world, fail func()) {
			for len(w.names()) < size/2 {
				time.Sleep(10 * time.Millisecond)
			}
			fail()
		}},
		"its quota is used up in the middle": {provider.Quota, func(w *world, fail func()) {
			for len(w.names()) < size*3/4 {
				time.Sleep(10 * time.Millisecond)
			}
			fail()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.declare(fixed("a", size))
				refused, denied := false, 0
				w.fail = func(call, _, _ string) error {
					if call != "create" || !refused {
						return nil
					}
					denied++
					return &provider.Error{Class: tc.class, Code: 403, Reason: "no", Text: "not you"}
				}
				w.hang = func(context.Context) error { time.Sleep(200 * time.Millisecond); return nil } // as a real one
				stop := w.run()
				defer stop()
				set := func(v bool) func() {
					return func() {
						w.mu.Lock()
						defer w.mu.Unlock()
						refused = v
					}
				}
				tc.begin(w, set(true))
				time.Sleep(time.Hour)
				w.mu.Lock()
				if denied < 4 || denied > 10 {
					t.Errorf("%d calls in an hour, want 10 at most", denied)
				}
				w.mu.Unlock()
				set(false)()
				time.Sleep(30 * time.Minute)
				if err := w.check(map[string]int{"a": size}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Where there is no cloud to ask, no machine counts as asked for, and a pool
// that is given another cloud has it at once.
func TestNoCloud(t *testing.T) {
	for name, err := range map[string]error{
		"the Config's fault": &provider.Error{Class: provider.Invalid, Reason: "NO_CLOUD", Text: "no credentials"},
		"refused":            &provider.Error{Class: provider.Permission, Code: 403, Reason: "no", Text: "no credentials"},
		"for now":            errors.New("no credentials"),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.noCloud = err
				w.declare(fixed("a", 3))
				stop := w.run()
				defer stop()
				time.Sleep(10 * time.Minute)
				vms, err := w.store.VMsOf(t.Context(), "a")
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range vms {
					if !v.Inserted.IsZero() {
						t.Errorf("%s was asked for: %v", v.ID, v.Inserted)
					}
				}
				if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || !strings.Contains(p.Failure.Text, "no credentials") {
					t.Errorf("%+v, %v", p, err)
				}
				w.mu.Lock()
				w.noCloud = nil
				w.mu.Unlock()
				c := fixed("a", 3)
				c.Attributes.MachineType = "other"
				w.declare(c)
				time.Sleep(2 * time.Minute)
				if err := w.check(map[string]int{"a": 3}); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A cloud that takes a minute for a call is slow; one that does not answer at
// all is known for that, and keeps no other machine of the pool from being made.
func TestSlowCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.hang = func(ctx context.Context) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done(): // as a plug-in that is killed
				return &provider.Error{Class: provider.Invalid, Reason: "NO_ANSWER", Text: "killed"}
			}
		}
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(5 * time.Minute)
		if err := w.check(map[string]int{"a": 1}); err != nil || w.inserts != 1 {
			t.Fatalf("%d inserts, %v", w.inserts, err)
		}
		n := 0
		w.mu.Lock()
		w.hang = func(ctx context.Context) error {
			w.mu.Lock()
			n++
			first := n == 1
			w.mu.Unlock()
			if first {
				<-ctx.Done()
				return &provider.Error{Class: provider.Invalid, Reason: "NO_ANSWER", Text: "killed"}
			}
			<-time.After(10 * time.Minute) // the others see what is noted meanwhile
			return nil
		}
		w.mu.Unlock()
		w.declare(fixed("a", 3))
		time.Sleep(100 * time.Second)
		p, err := w.store.MachinePool(t.Context(), "a")
		if err != nil || p.Failure.Class != string(provider.Transient) || !strings.Contains(p.Failure.Text, "longer than") || p.Paused.After(time.Now()) {
			t.Errorf("%+v, %v", p, err)
		}
		w.mu.Lock()
		if n < 2 {
			t.Error("one call without an answer keeps the others back")
		}
		w.hang = nil
		w.mu.Unlock()
		time.Sleep(30 * time.Minute)
		if err := w.check(map[string]int{"a": 3}); err != nil {
			t.Error(err)
		}
	})
}

// A change of the Config ends the pause: what was wrong may be right now.
func TestChangedConfigIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse(&provider.Error{Class: provider.Invalid, Code: 400, Reason: "invalid", Text: "no such zone"}, inZone("nowhere"))
		c := fixed("a", 2)
		c.Attributes.Zone = "nowhere"
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(20 * time.Minute)
		w.declare(fixed("a", 2))
		time.Sleep(30 * time.Second)
		if err := w.check(map[string]int{"a": 2}); err != nil {
			t.Error(err)
		}
	})
}

// promise P11: where one zone of three has no room, the others have the pool
// within 2 min.
func TestExhaustedZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse(&provider.Error{Class: provider.Exhausted, Code: 200, Reason: "ZONE_RESOURCE_POOL_EXHAUSTED"}, inZone("x"))
		c := fixed("a", 20)
		c.Zones = []string{"x", "y", "z"}
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(2 * time.Minute)
		if err := w.check(map[string]int{"a": 20}); err != nil {
			t.Error(err)
		}
		time.Sleep(30 * time.Minute)
		if n := w.refused(); n > 3 {
			t.Errorf("the zone was tried %d times", n)
		}
	})
}

// promise P20: leaks are known by their label, and strangers are left alone.
func TestAudit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		w.mu.Lock()
		const many, longest = 1000, 63
		strangers := map[string]bool{}
		add := func(leak, foreign, vm string) {
			w.instances[leak] = &provider.Instance{Ref: provider.Ref{Zone: "z", Name: leak}, Labels: map[string]string{
				provider.LabelOwner: w.r.Owner(), provider.LabelVM: vm, provider.LabelGeneration: "1",
			}}
			w.instances[foreign] = &provider.Instance{Ref: provider.Ref{Zone: "z", Name: foreign}, Labels: map[string]string{provider.LabelVM: "a-0"}}
			strangers[foreign] = true
		}
		for i := range many {
			add(fmt.Sprintf("gone-%d-abcd", i), fmt.Sprintf("a-%d-abcd", i+100), fmt.Sprintf("gone-%d", i))
		}
		for n := range longest { // names of every length, of pools that nobody knows
			rest := make([]byte, n)
			for i := range rest {
				rest[i] = "abcdefghijklmnopqrstuvwxyz0123456789-"[rand.IntN(37)]
			}
			add("l"+string(rest), "f"+string(rest), "l"+string(rest))
		}
		w.mu.Unlock()
		time.Sleep(5 * time.Minute)
		machines := 0
		for _, name := range w.names() {
			if !strangers[name] {
				machines++
			}
			delete(strangers, name)
		}
		if machines != 2 || len(strangers) > 0 {
			t.Errorf("%d machines are left, want 2; strangers that are gone: %v", machines, strangers)
		}
		if a := w.r.Audits(); len(a) != 1 || a[0].Instances < 2 {
			t.Errorf("audits: %+v", a)
		}
	})
}

// A cloud that is away is asked for one machine of a pool now and then, however
// large the pool is; when it is back all are made.
func TestCloudThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		away := true
		w.fail = func(call, _, _ string) error {
			if away && call == "create" {
				return &provider.Error{Class: provider.Transient, Code: 503}
			}
			return nil
		}
		w.declare(fixed("a", 100))
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		w.mu.Lock()
		calls := w.calls["create"]
		away = false
		w.mu.Unlock()
		if calls < 30 || calls > 100 {
			t.Errorf("%d calls in an hour", calls)
		}
		time.Sleep(5 * time.Minute)
		if err := w.check(map[string]int{"a": 100}); err != nil {
			t.Error(err)
		}
	})
}

// A machine that has ended is replaced at the next audit, once its bot was
// there; what ends before that is made again by and by, and its pool says so.
func TestEndedInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		end := func(name string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.instances[name].Ended = true
		}
		before := w.names()
		end(before[0])
		time.Sleep(5 * time.Minute)
		after := w.names()
		if err := w.check(map[string]int{"a": 2}); err != nil || after[0] == before[0] || after[1] != before[1] {
			t.Errorf("%v became %v: %v", before, after, err)
		}
		w.mu.Lock()
		w.boot = 1000 * time.Hour
		w.mu.Unlock()
		end(after[1])
		time.Sleep(5 * time.Minute)
		booting := w.names()[1]
		made := w.inserts
		end(booting)
		time.Sleep(5 * time.Minute)
		p, err := w.store.MachinePool(t.Context(), "a")
		if err != nil || p.Failure.Reason != "ended" || w.names()[1] != booting {
			t.Errorf("%s became %v; %+v, %v", booting, w.names(), p.Failure, err)
		}
		time.Sleep(10 * time.Minute)
		if got := w.names(); len(got) != 2 || got[1] == booting || w.inserts != made+1 {
			t.Errorf("%s became %v with %d inserts", booting, got, w.inserts-made)
		}
	})
}

// promise P21: a leak is gone 5 min after it arose at the latest, whenever that
// is, and the count is that of all pages.
func TestLeaksAreGoneSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(15 * time.Minute)
		leak := func(name string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.instances[name] = &provider.Instance{Ref: provider.Ref{Project: "p", Zone: "z", Name: name}, URL: "u/" + name, Created: time.Now(), Labels: map[string]string{
				provider.LabelOwner: w.r.Owner(), provider.LabelVM: name[:len(name)-5], provider.LabelGeneration: "1",
			}}
		}
		gone := func(name string) bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.instances[name] == nil
		}
		arose := map[string]time.Time{}
		for i := range 20 { // at all times between two audits
			name := fmt.Sprintf("gone-%d-abcd", i)
			leak(name)
			arose[name] = time.Now()
			time.Sleep(47 * time.Second)
			for name, at := range arose {
				if !gone(name) && time.Since(at) > 5*time.Minute {
					t.Fatalf("%s is there for %v", name, time.Since(at))
				}
			}
		}
		for range 5 {
			time.Sleep(time.Minute)
			for name, at := range arose {
				if !gone(name) && time.Since(at) > 5*time.Minute {
					t.Fatalf("%s is there for %v", name, time.Since(at))
				}
			}
		}
		if err := w.check(map[string]int{"a": 2}); err != nil {
			t.Fatal(err)
		}
		for i := range 10 { // a page of the world has 3
			leak(fmt.Sprintf("page-%d-abcd", i))
		}
		time.Sleep(5 * time.Minute)
		if a := w.r.Audits(); len(a) != 1 || a[0].Leaks != 10 && a[0].Leaks != 0 || !gone("page-9-abcd") {
			t.Errorf("audits: %+v", a)
		}
		w.mu.Lock()
		for i := range 10 {
			w.instances[fmt.Sprintf("page-%d-abcd", i)] = nil
			delete(w.instances, fmt.Sprintf("page-%d-abcd", i))
		}
		w.mu.Unlock()
		for i := range 10 {
			leak(fmt.Sprintf("more-%d-abcd", i))
		}
		if _, err := w.r.RunStep(t.Context(), Audit, "fake/p/z"); err != nil {
			t.Fatal(err)
		}
		if a := w.r.Audits(); len(a) == 0 || a[0].Leaks != 10 && a[len(a)-1].Leaks != 10 {
			t.Errorf("10 leaks on 4 pages are counted as %+v", a)
		}
	})
}

// awayAtMost fails the test if more than so many of the five machines of pool a are not
// at work, or there are more machines.
func (w *world) awayAtMost(away int) {
	w.t.Helper()
	vms, err := w.store.VMsOf(w.t.Context(), "a")
	if err != nil {
		w.t.Fatal(err)
	}
	n := 0
	for _, v := range vms {
		if v.Connected.IsZero() || !v.Asked.IsZero() || v.Bot.Dead {
			n++
		}
	}
	if n > away || len(vms) > 5 {
		w.t.Fatalf("%d of %d machines are away", n, len(vms))
	}
}

// promise P22: a changed shape reaches machines one by one, after their tasks.
func TestRollingReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 5)
		c.MaxReplacing = 2
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		old := w.names()
		w.busy(old[0], true)
		c.Attributes.MachineType = "bigger"
		w.declare(c)
		for range 600 {
			time.Sleep(time.Second)
			w.awayAtMost(2)
		}
		if got := w.names(); len(got) != 5 || got[0] != old[0] || got[1] == old[1] || got[4] == old[4] {
			t.Errorf("%v became %v", old, got)
		}
		w.busy(old[0], false)
		time.Sleep(time.Minute)
		if got := w.names(); got[0] == old[0] || len(w.cut) > 0 {
			t.Errorf("%s is left, cut %v", got[0], w.cut)
		}
	})
}

// promise P22: successors that come up ill are not at work: the replacing ends
// before all of the pool is. It goes on when they are well.
func TestReplacementStopsWhereSuccessorsAreIll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 5)
		c.MaxReplacing = 2
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		old := w.names()
		w.save(old[3], func(b *skep.Bot, _ time.Time) { b.Quarantined = "its disk is full" })
		c.Attributes.MachineType = "worse"
		w.declare(c)
		health := func(why string) int { return w.quarantineBut(old, why) }
		for range 300 {
			time.Sleep(time.Second)
			health("no python")
		}
		if n := health("no python"); n != 2 || slices.Contains(w.names(), old[3]) {
			t.Errorf("%d of %v were replaced by %v", n, old, w.names())
		}
		for range 300 {
			time.Sleep(time.Second)
			health("")
		}
		if n := health(""); n != 5 {
			t.Errorf("%d of 5 were replaced", n)
		}
	})
}

// A pool whose outdated machines live to their end has them replaced when
// somebody wants it: all of them, one at a time, across restarts, and those of a
// later change no more.
func TestReplacePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 5)
		w.declare(c)
		stop := w.run()
		defer func() { stop() }()
		replace := func(want bool) {
			t.Helper()
			if changed, err := w.r.ReplaceOutdated(t.Context(), "a"); changed != want || err != nil {
				t.Errorf("replace: %v, %v", changed, err)
			}
		}
		time.Sleep(time.Minute)
		old := w.names()
		replace(false)
		c.Attributes.MachineType = "bigger"
		w.declare(c)
		time.Sleep(time.Hour)
		if got := w.names(); !slices.Equal(got, old) {
			t.Fatalf("%v became %v", old, got)
		}
		w.busy(old[4], true)
		replace(true)
		replace(false)
		for i := range 600 {
			time.Sleep(time.Second)
			if i == 45 {
				stop()
				w.restart()
				stop = w.run()
			}
			w.awayAtMost(1)
		}
		if got := w.names(); slices.ContainsFunc(got[:4], func(n string) bool { return slices.Contains(old, n) }) || got[4] != old[4] {
			t.Errorf("%v became %v", old, got)
		}
		w.busy(old[4], false)
		time.Sleep(time.Minute)
		next := w.names()
		if slices.ContainsFunc(next, func(n string) bool { return slices.Contains(old, n) }) || len(next) != 5 || len(w.cut) > 0 {
			t.Errorf("%v became %v, cut %v", old, next, w.cut)
		}
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || p.Replacing {
			t.Errorf("it is not over: %+v, %v", p, err)
		}
		c.Attributes.MachineType = "huge"
		w.declare(c)
		time.Sleep(time.Hour)
		if got := w.names(); !slices.Equal(got, next) {
			t.Errorf("%v became %v, which nobody wanted", next, got)
		}
	})
}

// A step by its name says why it was not made.
func TestStepsSayWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 3))
		step := func(s Step, id string, done bool, text string) {
			t.Helper()
			did, err := w.r.RunStep(t.Context(), s, id)
			if err != nil {
				did.Text = err.Error()
			}
			if did.Done != done || !strings.Contains(did.Text, text) {
				t.Errorf("%s %s: %+v, want %v, %q", s, id, did, done, text)
			}
		}
		step(ExpandConfigs, "a", true, "")
		step(ExpandConfigs, "a", false, "")
		step(ExpandConfigs, "b", false, "no pool of machines")
		step(Inspect, "a", true, "3 of 3 machines")
		step(Inspect, "b", false, "no pool of machines")
		step(Audit, "a", false, `"a" is no KIND/PROJECT/ZONE`)
		step(CreateVM, "a", false, `no pool lacks a machine "a"`)
		step(CreateVM, "a-0", false, `no pool lacks a machine "a-0"`)
		step(ManageBot, "a-0", false, "needs now is create-instance")
		w.refuse(&provider.Error{Class: provider.Quota, Code: 403, Reason: "no", Text: "none left"}, func(string, string) bool { return true })
		step(CreateInstance, "a-0", false, "none left")
		step(ExpandConfigs, "a", true, "") // it was given up, and is planned anew
		step(CreateInstance, "a-1", false, "pauses until 2026-01-01T00:01:00Z, because of quota: none left")
		time.Sleep(2 * time.Minute)
		w.refuse(&provider.Error{Class: provider.Transient, Code: 503, Reason: "away", Text: "come back"}, func(string, string) bool { return true })
		step(CreateInstance, "a-1", false, "come back")
		step(CreateInstance, "a-2", false, "transient: come back")
		w.relent()
		time.Sleep(2 * time.Minute)
		step(CreateInstance, "a-2", true, "under way")
		step(CreateInstance, "a-0", false, "waits for what comes of other machines")
		time.Sleep(w.slow)
		step(CreateInstance, "a-2", true, "")
		step(CreateInstance, "a-2", false, "")
		step(DestroyInstance, "a-2", false, "")
	})
}

// promise P7: a device's machine may have its name again at once.
func TestDeviceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.boot, w.slow = 100*time.Millisecond, 0
		w.declare(fixed("a", 0))
		stop := w.run()
		defer stop()
		for i := range 3 {
			if _, err := w.r.Resize(t.Context(), "a", nil, []string{"dut1"}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if n := w.names(); len(n) != 1 || w.inserts != i+1 {
				t.Fatalf("round %d: %v, %d inserts", i, n, w.inserts)
			}
			delete(w.leaving, w.names()[0])
			if _, err := w.r.Resize(t.Context(), "a", nil, []string{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := w.check(nil); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			w.leaving = map[string]skep.TaskID{}
		}
		if w.calls["create"] != 3 {
			t.Errorf("%d calls", w.calls["create"])
		}
	})
}

// A provider that was stopped in the middle forgets no bot of the machine that
// has the name by then.
func TestDeleteBotComesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 0))
		stop := w.run()
		defer stop()
		if _, err := w.r.Resize(t.Context(), "a", nil, []string{"dut1"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		bot := w.names()[0]
		old, err := w.store.VMByHostname(t.Context(), bot)
		if err != nil {
			t.Fatal(err)
		}
		w.save(bot, func(b *skep.Bot, _ time.Time) { b.Dead = true })
		time.Sleep(15 * time.Minute) // it is replaced, by one of its name
		if v, err := w.store.VMByHostname(t.Context(), bot); err != nil || v.Generation == old.Generation || !v.Bot.Known {
			t.Fatalf("%+v, %v: nothing is shown", v, err)
		}
		old.Gone = time.Now()
		if _, err := w.r.deleteBot(t.Context(), old); err != nil {
			t.Error(err)
		}
		if v, err := w.store.VMByHostname(t.Context(), bot); err != nil || !v.Bot.Known {
			t.Errorf("the bot was forgotten: %+v, %v", v, err)
		}
	})
}

// A bot that is heard of after its machine went is not forgotten as it speaks,
// and does not keep the record for ever.
func TestDeleteBotWaitsForSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 1))
		stop := w.run()
		time.Sleep(time.Minute)
		stop()
		bot := w.names()[0]
		v, err := w.store.VMByHostname(t.Context(), bot)
		if err != nil {
			t.Fatal(err)
		}
		err = w.r.change(t.Context(), v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
			n.Gone = tx.Now
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.save(bot, func(*skep.Bot, time.Time) {})
		for _, there := range []bool{true, false} {
			if _, err := w.r.RunStep(t.Context(), DeleteBot, v.ID); err != nil {
				t.Error(err)
			}
			if v, err := w.store.VMByHostname(t.Context(), bot); (err == nil) != there {
				t.Errorf("%+v, %v, want it to be there: %v", v, err, there)
			}
			time.Sleep(10 * time.Minute)
		}
	})
}

// promise P12: a device's machine whose name a stranger has asks little, and
// comes when the name is free.
func TestDeviceWhoseNameIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 0))
		duts := []string{"dut1", "dut2", "dut3"}
		stranger := vmID("a", -1, duts[0])
		w.instances[stranger] = &provider.Instance{Ref: provider.Ref{Zone: "z", Name: stranger}}
		if _, err := w.r.Resize(t.Context(), "a", nil, duts); err != nil {
			t.Fatal(err)
		}
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		w.mu.Lock()
		if n := w.calls["create"]; n < 5 || n > 2+10 {
			t.Errorf("%d calls in an hour", n)
		}
		if w.inserts != 2 {
			t.Errorf("%d of the other 2 machines", w.inserts)
		}
		delete(w.instances, stranger)
		w.mu.Unlock()
		time.Sleep(20 * time.Minute)
		if err := w.check(map[string]int{"a": 3}); err != nil {
			t.Error(err)
		}
	})
}

func TestStepsByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.boot = 0, 0
		w.declare(fixed("a", 1))
		step := func(s Step, id string, want bool) {
			t.Helper()
			if did, err := w.r.RunStep(t.Context(), s, id); did.Done != want || err != nil {
				t.Errorf("%s %s: %+v, %v", s, id, did, err)
			}
		}
		if _, err := w.r.RunStep(t.Context(), ExpandConfigs, "a"); err != nil {
			t.Fatal(err)
		}
		step(CreateVM, "a-0", false)
		step(DestroyInstance, "a-0", false)
		step(CreateInstance, "a-0", true)
		step(CreateInstance, "a-0", false)
		synctest.Wait()
		step(ManageBot, "a-0", true)
		step(ManageBot, "a-0", false)
		step(TerminateBot, "a-0", false)
		step(DrainVM, "a-0", true)
		step(TerminateBot, "a-0", true)
		step(TerminateBot, "a-0", false)
		time.Sleep(time.Second)
		step(DeleteBot, "a-0", false)
		step(DestroyInstance, "a-0", true)
		step(DeleteBot, "a-0", true)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
		step(CreateVM, "a-0", true)
		step(CreateVM, "a-0", false)
		if _, err := w.r.RunStep(t.Context(), "mow-lawn", "a"); skep.KindOf(err) != skep.Invalid {
			t.Errorf("an unknown step: %v", err)
		}
		if _, err := w.r.RunStep(t.Context(), ManageBot, "b-7"); skep.KindOf(err) != skep.NotFound {
			t.Errorf("an unknown machine: %v", err)
		}
	})
}
