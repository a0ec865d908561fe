package queen

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// court is a queen over a store of its own, with its loop running.
func court(t *testing.T, p Policy) *Queen {
	t.Helper()
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	q := New(s, nil)
	q.Policy = func() Policy { return p }
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it ends before the store
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

func report(t *testing.T, q *Queen, r Report) Reply {
	t.Helper()
	a, err := q.Report(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func declare(t *testing.T, q *Queen, hive string, names ...string) {
	t.Helper()
	var d Declaration
	for _, n := range names {
		d.Duts = append(d.Duts, store.Dut{Name: n, Hive: hive})
	}
	d.Incremental = true
	if _, err := q.Declare(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

func names(r Reply) (all, leaving []string) {
	for _, d := range r.Duts {
		all = append(all, d.Name)
		if d.Leaving || d.Gone {
			leaving = append(leaving, d.Name)
		}
	}
	return all, leaving
}

func TestRegistrationIsOneTransactionAndCanBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		declare(t, q, "", "a", "b")
		first := report(t, q, Report{Key: "k", Capacity: 5})
		if all, _ := names(first); first.Status != OK || len(all) != 2 || first.Lease != DefaultLease {
			t.Errorf("registered as %+v", first)
		}
		again := report(t, q, Report{Key: "k", Capacity: 5})
		if all, _ := names(again); again.UUID != first.UUID || len(all) != 2 {
			t.Errorf("repeated: %+v", again)
		}
		if other := report(t, q, Report{Key: "l"}); other.UUID == first.UUID {
			t.Error("two drones are one")
		}
		if r := report(t, q, Report{UUID: "nobody"}); r.Status != UnknownUUID || r.Message == "" {
			t.Errorf("unknown drone: %+v", r)
		}
	})
}

// A lease that is over is noticed within a second, and its devices are
// another's; before that they are not. Every refresh has the whole lease.
func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{Lease: time.Minute})
		declare(t, q, "", "a")
		one := report(t, q, Report{Key: "1", Capacity: 1})
		two := report(t, q, Report{Key: "2", Capacity: 1})
		time.Sleep(30 * time.Second)
		if one = report(t, q, Report{UUID: one.UUID, Capacity: 1}); time.Until(one.Expires) != time.Minute {
			t.Errorf("refreshed until %v", one.Expires)
		}
		for range 59 {
			time.Sleep(time.Second)
			if r := report(t, q, Report{UUID: two.UUID, Capacity: 1}); len(r.Duts) > 0 {
				t.Fatal("given away before the end of the lease")
			}
		}
		time.Sleep(2 * time.Second)
		if r := report(t, q, Report{UUID: two.UUID, Capacity: 1}); len(r.Duts) != 1 {
			t.Error("not given to another within a second of the end of the lease")
		}
		if r := report(t, q, Report{UUID: one.UUID, Capacity: 1}); r.Status != UnknownUUID {
			t.Errorf("the old drone is told %+v", r)
		}
	})
}

func TestLateReleaseFreesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		declare(t, q, "", "a")
		r := report(t, q, Report{Key: "1", Capacity: 1})
		old := r.Duts
		if err := q.Release(t.Context(), r.UUID, old); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if r = report(t, q, Report{UUID: r.UUID, Capacity: 1}); len(r.Duts) != 1 || r.Duts[0].Generation <= old[0].Generation {
			t.Fatalf("after the release: %+v", r)
		}
		if err := q.Release(t.Context(), r.UUID, old); err != nil {
			t.Fatal(err)
		}
		if r = report(t, q, Report{UUID: r.UUID, Capacity: 0}); len(r.Duts) != 1 {
			t.Error("a release that came twice freed what was assigned anew")
		}
		if err := q.Release(t.Context(), "", nil); skep.KindOf(err) != skep.Invalid {
			t.Errorf("without a drone: %v", err)
		}
	})
}

// A drone that is killed and comes back has its devices by new assignments: a
// release that it sent before the kill and that comes now frees nothing.
func TestReleaseFromBeforeARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		declare(t, q, "", "a")
		old := report(t, q, Report{Key: "1", Capacity: 1})
		now := report(t, q, Report{Key: "1", Capacity: 1})
		if len(now.Duts) != 1 || now.UUID != old.UUID {
			t.Fatalf("after the restart: %+v, before %+v", now, old)
		}
		if err := q.Release(t.Context(), old.UUID, old.Duts); err != nil {
			t.Fatal(err)
		}
		if r := report(t, q, Report{UUID: now.UUID, Capacity: 0}); len(r.Duts) != 1 || r.Duts[0].Generation != now.Duts[0].Generation {
			t.Errorf("after the late release: %+v", r)
		}
	})
}

func TestInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		var all []store.Dut
		for i := range 10 {
			all = append(all, store.Dut{Name: fmt.Sprint("d", i)})
		}
		push := func(d Declaration) (Changes, error) { return q.Declare(t.Context(), d) }
		if c, err := push(Declaration{Duts: append(all, store.Dut{})}); err != nil || c.Added != 10 {
			t.Fatal(c, err)
		}
		r := report(t, q, Report{Key: "k", Capacity: 10})
		for _, few := range [][]store.Dut{nil, all[:7]} {
			if _, err := push(Declaration{Duts: few}); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "confirm_removal") {
				t.Errorf("a push of %d: %v", len(few), err)
			}
		}
		if _, leaving := names(report(t, q, Report{UUID: r.UUID, Capacity: 10})); len(leaving) > 0 {
			t.Errorf("a refused push drains %v", leaving)
		}
		if c, err := push(Declaration{Duts: all[:8]}); err != nil || c.Removed != 2 {
			t.Errorf("a fifth: %+v, %v", c, err)
		}
		if c, err := push(Declaration{Incremental: true, Removed: []string{"d0", "nobody"}}); err != nil || c.Removed != 1 {
			t.Errorf("incremental: %+v, %v", c, err)
		}
		r = report(t, q, Report{UUID: r.UUID, Capacity: 10})
		if _, leaving := names(r); !slices.Equal(leaving, []string{"d0", "d8", "d9"}) {
			t.Errorf("draining: %v", leaving)
		}
		if err := q.Release(t.Context(), r.UUID, []store.Dut{{Name: "d8"}, {Name: "d0"}}); err != nil {
			t.Fatal(err)
		}
		if c, err := push(Declaration{Incremental: true, Duts: []store.Dut{{Name: "d9"}}}); err != nil || c.Added != 1 {
			t.Errorf("declared again: %+v, %v", c, err)
		}
		if all, leaving := names(report(t, q, Report{UUID: r.UUID, Capacity: 10})); len(all) != 8 || len(leaving) != 0 {
			t.Errorf("%v, draining %v", all, leaving)
		}
		if c, err := push(Declaration{Confirmed: true}); err != nil || c.Removed != 8 {
			t.Errorf("confirmed: %+v, %v", c, err)
		}
	})
}

// A changed hive drains the device where it is and moves it when it is free.
func TestHives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		declare(t, q, "x", "a")
		x := report(t, q, Report{Key: "x", Capacity: 1, Hive: "x"})
		y := report(t, q, Report{Key: "y", Capacity: 1, Hive: "y"})
		if len(x.Duts) != 1 || len(y.Duts) != 0 {
			t.Fatalf("%+v %+v", x, y)
		}
		declare(t, q, "y", "a")
		time.Sleep(time.Second)
		x = report(t, q, Report{UUID: x.UUID, Capacity: 1, Hive: "x"})
		if _, leaving := names(x); len(leaving) != 1 {
			t.Errorf("%+v does not drain", x)
		}
		if err := q.Release(t.Context(), x.UUID, x.Duts); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if y = report(t, q, Report{UUID: y.UUID, Capacity: 1, Hive: "y"}); len(y.Duts) != 1 {
			t.Errorf("%+v did not get it", y)
		}
	})
}

func TestVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{MinVersion: 7})
		for v, want := range map[string]Status{"": OK, "x": OK, "6": VersionRefused, "7": OK} {
			if r := report(t, q, Report{Version: v}); r.Status != want || (want == VersionRefused) != (r.Message != "") {
				t.Errorf("version %q: %+v", v, r)
			}
		}
		q.Policy = func() Policy { return Policy{RefuseUnknown: true} }
		if r := report(t, q, Report{Version: "x"}); r.Status != VersionRefused {
			t.Errorf("%+v", r)
		}
	})
}

// A drone whose version is refused from now on keeps its lease and drains;
// what it gives back goes to a newer one; promise B22.
func TestARefusedDroneDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := Policy{Lease: 5 * time.Minute}
		q := court(t, p)
		q.Policy = func() Policy { return p }
		declare(t, q, "", "a", "b")
		old := Report{Key: "old", Capacity: 2, Version: "6"}
		r := report(t, q, old)
		if len(r.Duts) != 2 {
			t.Fatalf("%+v", r)
		}
		old.UUID = r.UUID
		p.MinVersion = 7
		declare(t, q, "", "c")
		newer := Report{Key: "new", Capacity: 3, Version: "7"}
		n := report(t, q, newer)
		newer.UUID = n.UUID
		for range 20 { // longer than one lease
			time.Sleep(time.Minute)
			r, n = report(t, q, old), report(t, q, newer)
			all, leaving := names(r)
			has, _ := names(n)
			if r.Status != VersionRefused || r.Message == "" || r.Lease != p.Lease || !slices.Equal(all, []string{"a", "b"}) || !slices.Equal(leaving, all) || !slices.Equal(has, []string{"c"}) {
				t.Fatalf("the old drone: %+v; the new one: %+v", r, n)
			}
		}
		if again := report(t, q, Report{Key: "old", Capacity: 2, Version: "6"}); again.UUID != old.UUID || len(again.Duts) != 2 {
			t.Errorf("registered again, which it was: %+v", again)
		} else if err := q.Release(t.Context(), old.UUID, again.Duts[:1]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if has, _ := names(report(t, q, newer)); len(has) != 2 {
			t.Errorf("the new drone has %v after a release", has)
		}
		p.MinVersion = 0
		if all, leaving := names(report(t, q, old)); !slices.Equal(all, []string{"b"}) || len(leaving) > 0 {
			t.Errorf("admitted again: %v, %v drain", all, leaving)
		}
	})
}

func TestTooMuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := court(t, Policy{})
		long := strings.Repeat("x", 2000)
		for _, r := range []Report{{UUID: long}, {Key: long}, {Hive: long}, {Description: long}, {Version: long}, {Capacity: 1 << 30}, {Capacity: -1}} {
			if _, err := q.Report(t.Context(), r); skep.KindOf(err) != skep.Invalid {
				t.Errorf("%.60v: %v", r, err)
			}
		}
	})
}

// Whatever there is: nobody has more than it carries, drones of a hive differ
// by no more than one where they carry alike, and when the moves are done the
// next plan is empty.
func TestPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1e9, 0)
		hive := rapid.SampledFrom([]string{"x", "y"})
		var drones []store.Drone
		equal := rapid.Bool().Draw(t, "equal")
		for i := range rapid.IntRange(0, 5).Draw(t, "drones") {
			d := store.Drone{UUID: fmt.Sprint("u", i), Hive: hive.Draw(t, "hive"), Capacity: 20, Expires: now.Add(time.Minute)}
			if !equal {
				d.Capacity = rapid.IntRange(0, 6).Draw(t, "capacity")
			}
			drones = append(drones, d)
		}
		var duts []store.Dut
		room := map[string]int{}
		for _, d := range drones {
			room[d.UUID] = d.Capacity
		}
		for i := range rapid.IntRange(0, 20).Draw(t, "duts") {
			d := store.Dut{Name: fmt.Sprint("d", i), Hive: hive.Draw(t, "hive"), Gone: rapid.IntRange(0, 9).Draw(t, "gone") == 0}
			if k := rapid.IntRange(-1, len(drones)-1).Draw(t, "drone"); k >= 0 && room[drones[k].UUID] > 0 {
				d.Drone = drones[k].UUID
				room[d.Drone]--
			}
			duts = append(duts, d)
		}
		for round := 0; ; round++ {
			moves := Plan(now, drones, duts)
			if len(moves) == 0 {
				break
			}
			if round > 3 {
				t.Fatalf("still %v after %d rounds", moves, round)
			}
			for _, m := range moves {
				i := slices.IndexFunc(duts, func(d store.Dut) bool { return d.Name == m.Dut })
				if m.Leave {
					duts[i].Leaving = true
				} else if duts[i].Drone != "" {
					t.Fatalf("%v is given while %s has it", m, duts[i].Drone)
				} else {
					duts[i].Drone = m.Drone
				}
			}
			for i, d := range duts { // drained
				if d.Leaving || d.Gone {
					duts[i].Drone, duts[i].Leaving = "", false
				}
			}
			duts = slices.DeleteFunc(duts, func(d store.Dut) bool { return d.Gone })
		}
		has := map[string]int{}
		for _, d := range duts {
			if !d.Gone { // such are on their way out, whatever Plan says
				has[d.Drone]++
			}
		}
		for _, d := range drones {
			if has[d.UUID] > d.Capacity {
				t.Fatalf("%s has %d of %d", d.UUID, has[d.UUID], d.Capacity)
			}
			for _, o := range drones {
				if equal && o.Hive == d.Hive && has[d.UUID]-has[o.UUID] > 1 {
					t.Fatalf("%s has %d, %s has %d", d.UUID, has[d.UUID], o.UUID, has[o.UUID])
				}
			}
		}
	})
}

// Promise B16: 1,000 drones with 10 devices each that report every 10 s are
// 100 reports a second; the 99th percentile of a report is what it prints.
func BenchmarkReport(b *testing.B) {
	s, err := store.Open(b.Context(), filepath.Join(b.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	q := New(s, nil)
	const drones, each = 1000, 10
	var d Declaration
	for i := range drones * each {
		d.Duts = append(d.Duts, store.Dut{Name: fmt.Sprintf("dut%05d", i)})
	}
	uuids := make([]string, drones)
	for i := range uuids {
		r, err := q.Report(b.Context(), Report{Key: fmt.Sprint(i), Capacity: each})
		if err != nil {
			b.Fatal(err)
		}
		uuids[i] = r.UUID
	}
	if _, err := q.Declare(b.Context(), d); err != nil {
		b.Fatal(err)
	}
	if err := q.settle(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx) }()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	pace := time.NewTicker(10 * time.Second / drones)
	defer pace.Stop()
	// The first round is not measured: it meets what the inventory wrote.
	for i := range drones + b.N {
		if <-pace.C; i == drones {
			mu.Lock()
			took = nil
			mu.Unlock()
			b.ResetTimer()
		}
		wg.Go(func() {
			begun := time.Now()
			r, err := q.Report(b.Context(), Report{UUID: uuids[i%drones], Capacity: each})
			if err != nil || len(r.Duts) != each {
				b.Errorf("%d devices, %v", len(r.Duts), err)
			}
			mu.Lock()
			took = append(took, time.Since(begun))
			mu.Unlock()
		})
	}
	wg.Wait()
	b.StopTimer()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		b.Error(err)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}
