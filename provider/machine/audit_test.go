package machine

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

func (w *world) leak(name, vm string, generation int64, url string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instances[name] = &provider.Instance{
		Ref: provider.Ref{Project: "p", Zone: "z", Name: name}, URL: url, Created: time.Now(),
		Labels: map[string]string{provider.LabelOwner: w.r.Owner(), provider.LabelVM: vm, provider.LabelGeneration: strconv.FormatInt(generation, 10)},
	}
}

func (w *world) has(name string) bool { return slices.Contains(w.names(), name) }

// A database that is older than the cloud takes no task away.
func TestAuditAfterABackup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 2))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		p, err := w.store.MachinePool(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		w.leak("a-5-work", "a-5", p.Generation+9, "u/work")   // made since, with a bot at work
		w.leak("a-6-mute", "a-6", p.Generation+10, "u/mute")  // made since, and nobody heard of its bot
		w.leak("a-7-late", "a-7", p.Generation+11, "u/late")  // its bot comes later
		w.leak("old-1-left", "old-1", 1, "u/left")            // of a pool that is gone, its bot died long ago
		w.leak("old-2-idle", "old-2", 1, "u/idle")            // of a pool that is gone, its bot waits
		w.busy("a-5-work", true)                              //
		w.save("old-2-idle", func(*skep.Bot, time.Time) {})   //
		w.save("old-1-left", func(b *skep.Bot, _ time.Time) { // dies
			b.Dead = true
		})
		time.Sleep(9 * time.Minute)
		for _, name := range []string{"a-5-work", "a-6-mute", "a-7-late"} {
			if !w.has(name) {
				t.Errorf("%s is taken away after nine minutes", name)
			}
		}
		w.busy("a-7-late", true)
		if w.has("old-2-idle") {
			t.Error("an idle leak of a pool that is gone is not taken away")
		}
		time.Sleep(21 * time.Minute)
		if !w.has("a-5-work") || !w.has("a-7-late") || w.has("a-6-mute") || w.has("old-1-left") {
			t.Errorf("after half an hour: %v", w.names())
		}
		w.mu.Lock()
		if n := len(w.asked["a-5-work"]); n != 1 {
			t.Errorf("the bot was asked to end %d times within the hour", n)
		}
		w.mu.Unlock()
		w.busy("a-5-work", false)
		w.busy("a-7-late", false)
		time.Sleep(10 * time.Minute)
		if err := w.check(map[string]int{"a": 2}); err != nil {
			t.Error(err)
		}
	})
}

// Names are used again: what is taken away is what was listed.
func TestAuditReadsAStaleList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = 0
		w.leak("a-dev", "a-dev", 1, "u/1")
		stale := *w.instances["a-dev"]
		w.leak("a-dev", "a-dev", 2, "u/2")
		if err := w.r.plug(t.Context(), w, time.Minute, &stale, &leak{}); err != nil {
			t.Fatal(err)
		}
		if !w.has("a-dev") {
			t.Error("the second of this name was taken away for the first")
		}
		same := *w.instances["a-dev"]
		same.URL = stale.URL // the same generation, and another instance
		if err := w.r.plug(t.Context(), w, time.Minute, &same, &leak{}); err != nil || !w.has("a-dev") {
			t.Errorf("another instance of this name was taken away: %v", err)
		}
		now := *w.instances["a-dev"]
		if err := w.r.plug(t.Context(), w, time.Minute, &now, &leak{}); err != nil || w.has("a-dev") {
			t.Errorf("the leak itself was not taken away: %v", err)
		}
	})
}

// An operation that failed is told for as long as its request id is known: what
// asks for the leak to go after that is another one.
func TestLeakWhoseDeleteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.declare(fixed("a", 1))
		failed := 0
		w.fail = func(call, name, _ string) error {
			if call == "delete" && name == "old-1-left" && failed == 0 {
				failed++
				return &provider.Error{Class: provider.Transient, Code: 200, Reason: "INTERNAL_ERROR"}
			}
			return nil
		}
		stop := w.run()
		defer stop()
		time.Sleep(10 * time.Minute)
		w.leak("old-1-left", "old-1", 1, "u/left")
		time.Sleep(10 * time.Minute)
		if failed != 1 || w.has("old-1-left") {
			t.Errorf("%d deletes failed; instances %v", failed, w.names())
		}
	})
}

// A place is asked by the command that its pool has, whatever its words hold.
func TestPlaceOfACommand(t *testing.T) {
	for _, words := range [][]string{nil, {"/srv/boards"}, {"/srv/boards", "", "a b"}, {"/bin/sh", "-c", "echo 1\necho 2"}} {
		c := provider.Config{Kind: "exec", Attributes: provider.Attributes{Command: words}}
		attributes, err := json.Marshal(c.Attributes)
		if err != nil {
			t.Fatal(err)
		}
		p, err := readPlace(placesOf(&c, "")[0].key())
		if got := p.command(); err != nil || !slices.Equal(got, words) {
			t.Errorf("%q became %q, %v", words, got, err)
		}
		if !p.has(&store.VM{Kind: "exec", Attributes: attributes}) {
			t.Errorf("%q: a machine of the pool is not in its place", words)
		}
	}
}

// A place that nobody declares any more, in which nothing is, is not looked at
// for ever, also when it is no place any more.
func TestEmptyPlacesAreForgotten(t *testing.T) {
	for _, projectGone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.declare(fixed("a", 2))
			stop := w.run()
			defer stop()
			places := func() int {
				places, err := readPlaces(w.store.Meta(t.Context(), placesKey))
				if err != nil {
					t.Fatal(err)
				}
				return len(places)
			}
			time.Sleep(30 * time.Minute)
			if n := places(); n != 1 {
				t.Fatalf("%d places of a pool that is declared", n)
			}
			w.declare()
			time.Sleep(5 * time.Minute)
			if projectGone {
				w.mu.Lock()
				w.fail = func(call, _, _ string) error {
					if call == "list" {
						return &provider.Error{Class: provider.NotFound, Code: 404, Reason: "notFound"}
					}
					return nil
				}
				w.mu.Unlock()
			}
			time.Sleep(30 * time.Minute)
			if n := places(); n != 0 || len(w.r.Audits()) != 0 {
				t.Errorf("%d places are left, %v", n, w.r.Audits())
			}
			w.mu.Lock()
			w.fail = nil
			w.mu.Unlock()
			w.declare(fixed("a", 1))
			time.Sleep(5 * time.Minute)
			if n := places(); n != 1 {
				t.Errorf("%d places of a pool that is declared again", n)
			}
		})
	}
}

// Without pools a server asks for nothing; with them it has the leases of those.
func TestLeasesAreOfPools(t *testing.T) {
	s, rs := servers(t, "one", "two")
	one, two := rs[0], rs[1]
	for _, r := range rs {
		if err := r.renew(t.Context()); err != nil || len(r.leases) != 0 {
			t.Fatalf("without pools: %v, %v", r.leases, err)
		}
	}
	imports(t, one, fixed("a", 1), fixed("b", 1))
	if err := two.renew(t.Context()); err != nil || len(one.leases) != 3 || len(two.leases) != 0 {
		t.Fatalf("one: %v, two: %v, %v", one.leases, two.leases, err)
	}
	imports(t, one, fixed("b", 1))
	if _, _, err := one.pool(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, held := one.leases["a"]; held {
		t.Error("the lease of a pool that is forgotten is still held")
	}
	err := s.Update(t.Context(), func(tx *store.Tx) error { // its row is gone: a new one begins anew
		held, err := tx.TakeLease("a", "other", tx.Now.Add(time.Hour))
		if err == nil && !held {
			t.Error("the lease of a pool that is forgotten is not to be had")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	if err := two.list(t.Context(), func(string) { keys++ }); err != nil || keys != 0 {
		t.Errorf("the second server looks at %d keys of the first, %v", keys, err)
	}
	if !one.looksAt(place{Kind: "fake"}) {
		t.Error("the first server has no right to audit")
	}
	if again, err := two.auditStep(t.Context(), (place{Kind: "fake", Project: "p", Zone: "z"}).key()); again != 0 || err != nil {
		t.Errorf("a server without the right audits: %s, %v", again, err)
	}
}
