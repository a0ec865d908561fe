package rollout

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/store"
)

// servers are keepers of two servers on one database, each with a store of its
// own.
func servers(t *testing.T) (a, b *Keeper) {
	t.Helper()
	dsn := pgtest.DSN(t)
	open := func() *Keeper {
		st, err := store.Open(t.Context(), dsn, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		return again(t, st, []string{"https://a:1"})
	}
	return open(), open()
}

// text is a release of one executable and a hook script.
func text(hook string) (*Release, func(string) ([]byte, error)) {
	parts := map[string][]byte{hash([]byte("exe")): []byte("exe"), hash([]byte(hook)): []byte(hook)}
	r := &Release{Exes: map[string]string{linux.String(): hash([]byte("exe"))}, Files: map[string]string{"bot_config.star": hash([]byte(hook))}}
	return r, func(h string) ([]byte, error) { return parts[h], nil }
}

func offer(t *testing.T, k *Keeper, hook string, changed bool) {
	t.Helper()
	r, part := text(hook)
	if err := k.Offer(t.Context(), r, part, changed); err != nil {
		t.Fatal(err)
	}
}

// Servers that offer releases at once forget old ones all the time, and never
// a part of one that the fleet runs, shall run, or was offered last.
func TestOffersOfTwoServersKeepWhatIsRun(t *testing.T) {
	a, b := servers(t)
	const rounds = 3 * keptReleases
	var wg sync.WaitGroup
	for i, k := range []*Keeper{a, b} {
		wg.Go(func() {
			for n := range rounds {
				hook := fmt.Sprintf("hook %d of %d", n, i)
				r, part := text(hook)
				if err := k.Offer(t.Context(), r, part, true); err != nil {
					t.Errorf("offer: %v", err)
					return
				}
				if err := k.reload(t.Context()); err != nil {
					t.Error(err)
					return
				}
				k.mu.Lock()
				s := k.state
				k.mu.Unlock()
				for _, id := range []string{s.Stable, s.Next} {
					if id == "" {
						continue
					}
					kept, err := k.release(t.Context(), id)
					if err != nil {
						// Since we looked the other one may have gone on to another release.
						if skep.KindOf(err) == skep.NotFound && id != s.Stable {
							continue
						}
						t.Errorf("release: %v", err)
						return
					}
					for _, h := range kept.parts() {
						if _, err := k.part(t.Context(), h); err != nil && id == s.Stable {
							t.Errorf("stable: %v", err)
						}
					}
				}
			}
		})
	}
	wg.Wait()
	if err := a.reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{a.state.Stable, a.state.Next} {
		if _, err := a.build(t.Context(), id, linux, "https://a:1"); err != nil {
			t.Errorf("what the fleet runs: %v", err)
		}
	}
	ids, err := a.o.Store.Releases(t.Context())
	if err != nil || len(ids) > keptReleases+3 {
		t.Errorf("%d releases are kept, %v", len(ids), err)
	}
}

// A part that was there when a server looked, and is forgotten by another
// before the release that needs it is stored, is stored again.
func TestAForgottenPartIsStoredAgain(t *testing.T) {
	a, b := servers(t)
	offer(t, a, "one", false)
	two, part := text("two")
	offer(t, b, "two", true)
	asked := 0
	err := b.Offer(t.Context(), two, func(h string) ([]byte, error) { asked++; return part(h) }, true)
	if err != nil || asked != 0 {
		t.Fatalf("a release that is there: %v, %d parts read again", err, asked)
	}
	r, part := text("two, with more")
	r.Files["more"] = hash([]byte("more"))
	first := true
	err = b.Offer(t.Context(), r, func(h string) ([]byte, error) {
		if first { // now server a drops everything that this offer found
			first = false
			if err := a.o.Store.Update(t.Context(), func(tx *store.Tx) error { return tx.DropParts(nil) }); err != nil {
				return nil, err
			}
		}
		if h == hash([]byte("more")) {
			return []byte("more"), nil
		}
		return part(h)
	}, true)
	if err != nil {
		t.Fatal(err)
	}
	if first {
		t.Fatal("the offer read nothing")
	}
	for _, h := range r.parts() {
		if found, err := a.o.Store.HasPart(t.Context(), h); err != nil || !found {
			t.Errorf("part %s: %v %v", h, found, err)
		}
	}
}

// What one server decides, and what bots told it, holds at the other.
func TestTwoServersRollTogether(t *testing.T) {
	a, b := servers(t)
	now := time.Now() // the store stamps with it
	for _, k := range []*Keeper{a, b} {
		k.o.Now = func() time.Time { return now }
		k.o.Settings = func() Settings { return Settings{CanaryPercent: 100, Soak: time.Minute} }
	}
	offer(t, a, "one", false)
	offer(t, a, "two", true)
	look := func() {
		t.Helper()
		for _, k := range []*Keeper{a, b} {
			if err := k.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	look()
	stable, next := a.state.Stable, a.state.Next
	if b.state.Next != next || next == "" {
		t.Fatalf("b rolls %q, a %q", b.state.Next, next)
	}
	digest := a.Version(t.Context(), next, linux)
	poll := func(k *Keeper, bot skep.BotID, version string, handshake bool) string {
		t.Helper()
		want, err := k.Expected(t.Context(), Contact{Bot: bot, Version: version, Platform: linux, URL: "https://a:1", Handshake: handshake})
		if err != nil {
			t.Fatal(err)
		}
		return want
	}
	old := a.Version(t.Context(), stable, linux)
	if poll(a, "b1", old, false) != digest || poll(b, "b2", old, false) != digest {
		t.Fatal("the bots are not told the new digest")
	}
	now = now.Add(10 * time.Second)
	look()
	// Each comes back at the server that did not tell it.
	poll(b, "b1", digest, false)
	poll(a, "b2", digest, false)
	st, err := a.Status(t.Context())
	if err != nil || st.Confirmed != 2 || st.Waiting != 0 || st.Crashed != 0 {
		t.Fatalf("%+v, %v: want two confirmed", st.Counts, err)
	}
	if err := b.Halt(t.Context(), "for a test"); err != nil {
		t.Fatal(err)
	}
	look()
	if got := poll(a, "b1", digest, false); got != old {
		t.Errorf("after a halt at the other server the bot is told %s, want %s", got, old)
	}
	if err := a.Halt(t.Context(), "again"); err != nil && !strings.Contains(err.Error(), "no release") {
		t.Error(err)
	}
	if err := a.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	look()
	// Crashes that each server saw half of halt it together.
	for i, bot := range []skep.BotID{"c1", "c2", "c3", "c4"} {
		k := []*Keeper{a, b}[i%2]
		poll(k, bot, old, false)
	}
	look()
	for i, bot := range []skep.BotID{"c1", "c2", "c3", "c4"} {
		poll([]*Keeper{b, a}[i%2], bot, old, true) // as what they were, at the other server
	}
	look()
	if st, err := b.Status(t.Context()); err != nil || len(st.Others) != 0 {
		t.Errorf("%v %v", st.Others, err)
	}
	look()
	if a.state.Halted == "" || b.state.Halted != a.state.Halted {
		t.Errorf("halted: %q and %q", a.state.Halted, b.state.Halted)
	}
	if got := poll(b, "c1", old, false); got != old {
		t.Errorf("after the halt a bot is told %s, want %s", got, old)
	}
}

// Tasks that fail on canaries which different servers hear halt a rollout that
// no server alone would halt.
func TestFailuresOverServersHaltTogether(t *testing.T) {
	a, b := servers(t)
	both := []*Keeper{a, b}
	for _, k := range both {
		k.o.Settings = func() Settings { return Settings{CanaryPercent: 100, Soak: time.Hour} }
	}
	offer(t, a, "one", false)
	offer(t, a, "two", true)
	look := func() {
		t.Helper()
		for _, k := range both {
			if err := k.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	look()
	old, next := a.Version(t.Context(), a.state.Stable, linux), a.Version(t.Context(), a.state.Next, linux)
	for i := range 4 {
		k, bot := both[i%2], skep.BotID(fmt.Sprint("b", i))
		for _, version := range []string{old, next} {
			if _, err := k.Expected(t.Context(), Contact{Bot: bot, Version: version, Platform: linux, URL: "https://a:1"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 2 {
		a.Ended("b0", true)
		look()
		if a.state.Halted != "" || b.state.Halted != "" {
			t.Fatalf("halted after %d failures: %s%s", i+1, a.state.Halted, b.state.Halted)
		}
	}
	b.Ended("b1", true)
	look()
	look()
	if a.state.Halted == "" || b.state.Halted == "" {
		st, err := a.Status(t.Context())
		t.Errorf("three tasks failed on canaries and the rollout goes on: %+v %v", st.Counts, err)
	}
}

// Other code than was promised is a row in the status at once.
func TestMismatchIsARow(t *testing.T) {
	_, k := keep(t, []byte("exe"), []string{"https://a:1"}, "one", "two")
	if err := k.Mismatched(t.Context(), "b"); err != nil { // it was told nothing
		t.Fatal(err)
	}
	if _, err := k.Expected(t.Context(), Contact{Bot: "b", Version: "old", Platform: linux, URL: "https://a:1"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Mismatched(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
	}
	st, err := k.Status(t.Context())
	if err != nil || len(st.Others) != 1 || st.Others[0] != "b" || st.Crashed != 1 || st.Waiting != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// A bot that comes back when nothing rolls, through a proxy that alters what it
// downloads, is seen too, at every server, until it runs the right code.
func TestMismatchOutsideOfARolloutIsARow(t *testing.T) {
	st, k := keep(t, []byte("exe"), []string{"https://a:1"}, "one")
	late := Contact{Bot: "b", Version: "old", Platform: linux, URL: "https://a:1"}
	digest, err := k.Expected(t.Context(), late)
	if err != nil || digest == "" {
		t.Fatal(digest, err)
	}
	for range 2 {
		if err := k.Mismatched(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
	}
	others := func(k *Keeper) []skep.BotID {
		s, err := k.Status(t.Context())
		if err != nil || s.Crashed != 0 || len(s.Crashes) != 0 {
			t.Fatalf("%+v, %v", s, err)
		}
		return s.Others
	}
	other := again(t, st, []string{"https://a:1"})
	if _, err := k.Expected(t.Context(), late); err != nil { // still the old one
		t.Fatal(err)
	}
	for _, k := range []*Keeper{k, other} {
		if diff := cmp.Diff([]skep.BotID{"b"}, others(k)); diff != "" {
			t.Error(diff)
		}
	}
	late.Version = digest
	if _, err := other.Expected(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Keeper{k, other} {
		if got := others(k); len(got) != 0 {
			t.Errorf("it runs the right code and is told as %v", got)
		}
	}
}

// A bot that runs the next release and cannot fetch the way back did not
// crash; that it cannot is told until it comes with the right code, whatever
// the rollout does, and what crashed before stays told.
func TestMismatchAndRolloutAreApart(t *testing.T) {
	st, k := keep(t, []byte("exe"), []string{"https://a:1"}, "one", "two")
	call := func(bot skep.BotID, version string, handshake bool) string {
		t.Helper()
		digest, err := k.Expected(t.Context(), Contact{Bot: bot, Version: version, Platform: linux, URL: "https://a:1", Handshake: handshake})
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	mismatch := func(bot skep.BotID) {
		t.Helper()
		if err := k.Mismatched(t.Context(), bot); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, crashes, others []skep.BotID) {
		t.Helper()
		for _, k := range []*Keeper{k, again(t, st, []string{"https://a:1"})} {
			s, err := k.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff([][]skep.BotID{crashes, others}, [][]skep.BotID{s.Crashes, s.Others}); d != "" {
				t.Errorf("%s: crashes and others (-want +got):\n%s", when, d)
			}
		}
	}
	next := call("well", "old", false)
	call("well", next, true)
	call("lost", "old", false)
	call("lost", "old", true)
	mismatch("well")
	want("a bot that came back", []skep.BotID{"lost"}, []skep.BotID{"well"})
	if err := k.Halt(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	mismatch("well")
	mismatch("lost")
	want("halted", []skep.BotID{"lost"}, []skep.BotID{"lost", "well"})
	if err := k.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("resumed", nil, []skep.BotID{"lost", "well"})
	call("well", next, false)
	want("mended", nil, []skep.BotID{"lost"})
	if err := st.Update(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Prune(10, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want("gone", nil, nil)
}
