package machine

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// A machine whose every call fails in a way that is worth another try, as a
// board that does not start, keeps no other of its pool from being made or
// replaced, and asks once a minute by and by.
func TestOneMachineThatNeverComes(t *testing.T) {
	for name, broken := range map[string]error{
		"an error of a call": &provider.Error{Class: provider.Transient, Code: 503, Reason: "BOARD", Text: "it does not start"},
		"no connection":      errors.New("no connection"),
		"a rate limit":       &provider.Error{Class: provider.RateLimit, Code: 429},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				duts := []string{"dut1", "dut2", "dut3", "dut4", "dut5"}
				first := vmID("a", -1, duts[0])
				w.refuse(broken, func(name, _ string) bool { return name == first })
				w.declare(fixed("a", 0))
				if _, err := w.r.Resize(t.Context(), "a", nil, duts); err != nil {
					t.Fatal(err)
				}
				stop := w.run()
				defer stop()
				time.Sleep(2 * time.Minute)
				if n := w.names(); len(n) != 4 || slices.Contains(n, first) {
					t.Fatalf("%v are made beside %s", n, first)
				}
				before := w.inserts
				v, err := w.store.VMByHostname(t.Context(), w.names()[0])
				if err != nil {
					t.Fatal(err)
				}
				if _, err := w.r.Replace(t.Context(), v.ID); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Minute)
				if n := w.names(); w.inserts != before+1 || len(n) != 4 {
					t.Errorf("%d successors, %v", w.inserts-before, n)
				}
				refused := w.refused()
				time.Sleep(time.Hour)
				if n := w.refused() - refused; n < 30 || n > 130 {
					t.Errorf("%d calls in an hour", n)
				}
				if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || p.Failure.At.IsZero() {
					t.Errorf("nothing is said of it: %+v, %v", p, err)
				}
			})
		})
	}
}

// One that is drained meanwhile, and does not exist, is gone; what is asked for
// is followed to its end.
func TestDrainedWhileItNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse(&provider.Error{Class: provider.Transient, Code: 503}, func(string, string) bool { return true })
		w.declare(fixed("a", 3))
		stop := w.run()
		defer stop()
		time.Sleep(10 * time.Minute)
		vms, err := w.store.VMsOf(t.Context(), "a")
		if err != nil || !slices.ContainsFunc(vms, func(v store.VM) bool { return !v.Inserted.IsZero() }) {
			t.Fatalf("nothing was asked for: %+v, %v", vms, err)
		}
		w.declare(fixed("a", 0))
		time.Sleep(5 * time.Minute)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
		if calls := w.refused(); calls > 30 {
			t.Errorf("%d calls", calls)
		}
		// The answer was lost, and the machine is there.
		w.relent()
		w.mu.Lock()
		w.lose = func() bool { return true }
		w.mu.Unlock()
		w.declare(fixed("a", 1))
		time.Sleep(time.Minute)
		w.declare(fixed("a", 0))
		w.mu.Lock()
		if len(w.instances) != 1 {
			t.Errorf("%d instances", len(w.instances))
		}
		w.lose = nil
		w.mu.Unlock()
		time.Sleep(15 * time.Minute)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
	})
}

// While all of a cloud is away many that are drained ask no more than others.
func TestDrainedWhileTheCloudIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.fail = func(string, string, string) error { return &provider.Error{Class: provider.Transient, Code: 503} }
		w.declare(fixed("a", 60))
		stop := w.run()
		defer stop()
		time.Sleep(time.Hour)
		w.declare(fixed("a", 0))
		time.Sleep(time.Minute)
		vms, err := w.store.VMsOf(t.Context(), "a")
		if err != nil || len(vms) < 30 {
			t.Fatalf("%d machines may exist, %v", len(vms), err)
		}
		before := w.refused()
		time.Sleep(time.Hour)
		if n := w.refused() - before; n < 30 || n > 130 {
			t.Errorf("%d calls in an hour", n)
		}
		w.relent()
		time.Sleep(10 * time.Minute)
		if err := w.check(nil); err != nil {
			t.Error(err)
		}
	})
}

// While all of a cloud is away the place goes round: each machine has its turn.
func TestThePlaceGoesRound(t *testing.T) {
	g := gates{}
	now := time.Unix(1_700_000_000, 0)
	ids := []string{"a", "b", "c", "d"}
	asked := map[string]int{}
	for range 40 {
		var turn string
		for _, id := range ids {
			switch ok, _ := g.enter("p", id, false, now); {
			case ok && turn != "":
				t.Fatalf("%s and %s at once", turn, id)
			case ok:
				turn = id
			}
		}
		if turn == "" {
			now = now.Add(time.Second)
			continue
		}
		asked[turn]++
		wait := g.hold("p", turn, now)
		if ok, _ := g.enter("p", ids[0], false, now); ok {
			t.Fatal("one enters in the pause")
		}
		now = now.Add(wait)
		if next, yields := g.yields("p", turn); !yields || len(next) != 1 || next[0] == turn {
			t.Errorf("after %s: %v, %v", turn, next, yields)
		} else if ok, wait := g.enter("p", next[0], false, now); !ok {
			t.Errorf("%s does not enter for %v", next[0], wait)
		} else {
			asked[next[0]]++
			now = now.Add(g.hold("p", next[0], now))
		}
	}
	for _, id := range ids {
		if asked[id] < 5 {
			t.Errorf("turns: %v", asked)
		}
	}
}
