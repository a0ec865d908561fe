package machine

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// promise P10: while a pool becomes larger or smaller its status says how long
// that may take, which is about as long as it takes.
func TestExpectedWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 4))
		stop := w.run()
		defer stop()
		about := func(want time.Duration) {
			t.Helper()
			s, err := w.r.Status(t.Context(), "a")
			if err != nil || len(s) != 1 {
				t.Fatal(s, err)
			}
			if got := s[0].Wait; got < want*3/4 || got > want*5/4 {
				t.Errorf("it may take %v, want about %v: %+v", got, want, s[0])
			}
		}
		time.Sleep(100 * time.Millisecond)
		about(0) // nobody knows
		time.Sleep(2 * time.Minute)
		about(0) // it has as many
		w.declare(fixed("a", 8))
		time.Sleep(100 * time.Millisecond)
		about(w.slow + w.boot)
		time.Sleep(2 * time.Minute)
		about(0)
		for _, name := range w.names() {
			w.busy(name, true)
		}
		shrink := func(n int) {
			w.declare(fixed("a", n))
			time.Sleep(100 * time.Millisecond)
		}
		end := func() {
			time.Sleep(5 * time.Minute)
			for name := range w.leaving {
				w.end(name)
			}
			time.Sleep(time.Minute)
		}
		shrink(6)
		about(0) // none has left yet
		end()
		about(0)
		shrink(3)
		about(5 * time.Minute)
		end()
		about(0)
		// One that is replaced leaves, and its successor comes.
		v, err := w.store.VMByHostname(t.Context(), w.names()[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.r.Replace(t.Context(), v.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		about(5*time.Minute + w.slow + w.boot)
	})
}

// promise P11: status says which zones are left out, and until when.
func TestFullZonesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refuse(&provider.Error{Class: provider.Exhausted, Code: 200, Reason: "ZONE_RESOURCE_POOL_EXHAUSTED"}, inZone("x"))
		c := fixed("a", 5)
		c.Zones = []string{"x", "y"}
		w.declare(c)
		zones := func() []FullZone {
			t.Helper()
			s, err := w.r.Status(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			return s[0].Zones
		}
		if z := zones(); len(z) > 0 {
			t.Errorf("at first: %v", z)
		}
		stop := w.run()
		defer stop()
		time.Sleep(30 * time.Second)
		if z := zones(); len(z) != 1 || z[0].Zone != "x" || time.Until(z[0].Until) < 20*time.Second || time.Until(z[0].Until) > time.Minute {
			t.Errorf("after three errors: %v", z)
		}
		time.Sleep(10 * time.Minute)
		if z := zones(); slices.ContainsFunc(z, func(z FullZone) bool { return !z.Until.After(time.Now()) }) {
			t.Errorf("a zone that is tried: %v", z)
		}
	})
}

// promise P25: kinds of failures are few, whatever a cloud says and wherever.
func TestKindsOfFailuresAreBounded(t *testing.T) {
	var c counters
	all := uint64(0)
	for range 3 {
		for _, zone := range "abcdefghij" {
			for _, class := range []provider.Class{provider.Exhausted, provider.Quota, provider.Permission, provider.Conflict} {
				c.failed(&store.VM{Prefix: "p", Zone: string(zone)}, &provider.Error{Class: class, Code: 400})
				all++
			}
		}
	}
	failures, counted := c.pools["p"].Failures, uint64(0)
	for _, n := range failures {
		counted += n
	}
	if len(failures) != maxFailures || failures[FailureCount{Class: OtherFailure}] == 0 || counted != all {
		t.Errorf("%d failures are counted as %v", all, failures)
	}
}

// A machine that is not wanted any more is on its way out, also before its bot
// came: it is not one that is waited for.
func TestDrainedBeforeItCameIsOnItsWayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(w.slow + w.boot + time.Minute)
		w.boot = 5 * time.Minute
		w.declare(fixed("a", 4))
		time.Sleep(w.slow + time.Second)
		if _, err := w.r.Hold(t.Context(), "a", true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(w.slow + time.Minute)
		s, err := w.r.Status(t.Context(), "a")
		if err != nil || s[0].Created != 2 || s[0].Draining != 2 || s[0].coming != 0 {
			t.Errorf("%d created, %d on their way out, %d to come, %v", s[0].Created, s[0].Draining, s[0].coming, err)
		}
	})
}
