package machine

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// servers returns reconcilers that share a PostgreSQL. They are told what is
// declared and take leases; nothing runs.
func servers(t *testing.T, homes ...string) (s *store.Store, rs []*Reconciler) {
	t.Helper()
	s, err := store.Open(t.Context(), pgtest.DSN(t), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, home := range homes {
		r, err := New(t.Context(), s, nil, nil, Options{
			Home: home, Local: func(kind string) bool { return kind == "local" }, LeaseLife: time.Hour, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return s, rs
}

func imports(t *testing.T, r *Reconciler, configs ...provider.Config) {
	t.Helper()
	if err := r.Import(t.Context(), configs, nil); err != nil {
		t.Fatal(err)
	}
}

// removed returns whether a pool is; what is forgotten is "gone".
func removed(t *testing.T, s *store.Store, prefix string) string {
	t.Helper()
	pools, err := s.MachinePools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range pools {
		switch p := &pools[i]; {
		case p.Prefix != prefix:
		case p.Removed.IsZero():
			return "declared"
		default:
			return "removed"
		}
	}
	return "gone"
}

// A server takes away only what it declared itself.
func TestOthersDeclareTheirPools(t *testing.T) {
	s, rs := servers(t, "one", "two")
	one, two := rs[0], rs[1]
	a, b := fixed("a", 2), fixed("b", 2)
	for _, c := range []struct {
		name string
		by   *Reconciler
		have []provider.Config
		a, b string
	}{
		{"the first declares", one, []provider.Config{a}, "declared", "gone"},
		{"one without a vms.cfg starts", two, nil, "declared", "gone"},
		{"it declares another", two, []provider.Config{b}, "declared", "declared"},
		{"the first is started anew", one, []provider.Config{a}, "declared", "declared"},
		{"the first declares it no more", one, nil, "removed", "declared"},
		{"the second declares both", two, []provider.Config{a, b}, "declared", "declared"},
		{"the first still does not", one, nil, "declared", "declared"},
		{"nobody declares any", two, nil, "removed", "removed"},
	} {
		imports(t, c.by, c.have...)
		if a, b := removed(t, s, "a"), removed(t, s, "b"); a != c.a || b != c.b {
			t.Fatalf("%s: a is %s and b %s, want %s and %s", c.name, a, b, c.a, c.b)
		}
	}
	for _, prefix := range []string{"a", "b"} {
		for _, r := range rs {
			if r.ours(prefix) {
				if _, _, err := r.pool(t.Context(), prefix); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if d, err := one.declarations(t.Context()); err != nil || len(d) != 0 {
		t.Errorf("of forgotten pools there is left: %v, %v", d, err)
	}
}

// What is on one host is looked after from there, or not at all: to others its
// machines would seem lost.
func TestMachinesOfAHostStayWithIt(t *testing.T) {
	s, rs := servers(t, "one", "two")
	one, two := rs[0], rs[1]
	local, cloud := fixed("l", 2), fixed("c", 2)
	local.Kind = "local"
	imports(t, one, local, cloud)
	if !one.ours("l") || !one.ours("c") {
		t.Fatal("the first server did not get what it declared")
	}
	other := local
	other.Amount = provider.Amount{Min: 9, Max: 9}
	imports(t, two, other, cloud)
	// The first server ends; the second takes over what it can.
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return tx.GiveLeases(one.holder) }); err != nil {
		t.Fatal(err)
	}
	if err := two.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if two.ours("l") || !two.ours("c") {
		t.Errorf("the second server has the pool of the first's host: %t; that of the cloud: %t", two.ours("l"), two.ours("c"))
	}
	var keys []string
	if err := two.list(t.Context(), func(key string) { keys = append(keys, key) }); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if key == poolKey("l") || key == (place{Kind: "local", Project: "p", Zone: "z", Home: "one"}).key() {
			t.Errorf("the second server looks at %s", key)
		}
	}
	imports(t, two, cloud) // it cannot take away what it was not given
	if got := removed(t, s, "l"); got != "declared" {
		t.Errorf("the pool of the first server is %s", got)
	}
	if p, err := s.MachinePool(t.Context(), "l"); err != nil || p.Kind != "local" || removed(t, s, "l") != "declared" {
		t.Errorf("%+v, %v", p, err)
	}
	if err := one.renew(t.Context()); err != nil || !one.ours("l") {
		t.Errorf("the first server is back and has its pool: %t, %v", one.ours("l"), err)
	}
	if !one.looksAt(place{Kind: "local", Home: "one"}) || two.looksAt(place{Kind: "local", Home: "one"}) {
		t.Error("the place on the first host is looked at by others, or by nobody")
	}
}

// A pool whose server never comes back is given up by hand, and by then only:
// its machines finish their tasks, no cloud is asked about them, and another
// server may have a pool of that name.
func TestRelease(t *testing.T) {
	w := newWorldOn(t, pgtest.DSN(t))
	w.slow, w.boot = 0, 1000*time.Hour // bots come when they are told to
	at := func(home string) *Reconciler {
		return w.reconciler(Options{Home: home + " x", Local: func(kind string) bool { return kind == "local" }, LeaseLife: time.Hour})
	}
	one, two := at("one"), at("two")
	w.r = one
	local, cloud := fixed("l", 2), fixed("c", 0)
	local.Kind = "local"
	imports(t, one, local, cloud)
	step := func(r *Reconciler, s Step, id string, want bool) {
		t.Helper()
		if did, err := r.RunStep(t.Context(), s, id); did.Done != want || err != nil {
			t.Fatalf("%s %s: %v, %v", s, id, did, err)
		}
	}
	step(one, ExpandConfigs, "l", true)
	for _, id := range []string{"l-0", "l-1"} {
		step(one, CreateInstance, id, true)
	}
	bots := w.names()
	w.busy(bots[0], true)
	w.save(bots[1], func(b *skep.Bot, _ time.Time) { b.Dead = true })

	w.r = two
	imports(t, two, local)
	refused := func(r *Reconciler, prefix, why string) {
		t.Helper()
		if err := r.Release(t.Context(), prefix, "user:ann"); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), why) {
			t.Fatalf("%s: %v, want %q", prefix, err, why)
		}
	}
	refused(two, "l", "the server on one looks after pool l")
	refused(one, "l", "the server on one looks after pool l")
	refused(two, "c", "any server that is there looks after pool c")
	if err := two.Release(t.Context(), "nobody", "user:ann"); skep.KindOf(err) != skep.NotFound {
		t.Fatal(err)
	}
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.GiveLeases(one.holder) }); err != nil {
		t.Fatal(err)
	}
	away := func(want bool) {
		t.Helper()
		st, err := two.Status(t.Context(), "l")
		if err != nil || len(st) != 1 || st[0].Away != want || want && st[0].Host != "one" {
			t.Fatalf("%+v, %v", st, err)
		}
	}
	away(true)
	if err := two.Release(t.Context(), "l", "user:ann"); err != nil {
		t.Fatal(err)
	}
	away(false)
	if !two.ours("l") || two.looksAt(place{Kind: "local", Home: "one x"}) {
		t.Error("the second server does not look after it")
	}
	places, err := readPlaces(w.store.Meta(t.Context(), placesKey))
	if err != nil || slices.ContainsFunc(places, func(p place) bool { return p.Home == "one x" }) {
		t.Errorf("places are left that nobody looks at: %v, %v", places, err)
	}
	step(two, DeleteBot, "l-1", true)
	step(two, ManageBot, "l-0", true)
	step(two, TerminateBot, "l-0", true)
	step(two, DestroyInstance, "l-0", false)
	w.busy(bots[0], false)
	step(two, DestroyInstance, "l-0", true)
	step(two, DeleteBot, "l-0", true)
	step(two, ExpandConfigs, "l", true)
	if got := removed(t, w.store, "l"); got != "gone" || w.calls["delete"] != 0 || len(w.names()) != 2 {
		t.Errorf("the pool is %s; %d calls to delete, %v", got, w.calls["delete"], w.names())
	}
	imports(t, two, local)
	if got := removed(t, w.store, "l"); got != "declared" || !two.ours("l") {
		t.Errorf("declared anew by the second server it is %s", got)
	}
}
