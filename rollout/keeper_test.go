package rollout

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

var linux = Platform{"linux", "amd64"}

// keep opens a store, and a keeper that was offered releases of one executable
// with these hooks, one after the other.
func keep(t *testing.T, exe []byte, urls []string, hooks ...string) (*store.Store, *Keeper) {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	k := again(t, st, urls)
	for _, h := range hooks {
		r := &Release{Exes: map[string]string{linux.String(): hash(exe)}, Files: map[string]string{"bot_config.star": hash([]byte(h))}}
		err := k.Offer(t.Context(), r, func(want string) ([]byte, error) {
			if want == hash(exe) {
				return exe, nil
			}
			return []byte(h), nil
		}, true)
		if err != nil {
			t.Fatal(err)
		}
	}
	return st, k
}

// again is a keeper of another server, or of the same one after a restart.
func again(t *testing.T, st *store.Store, urls []string) *Keeper {
	t.Helper()
	k, err := New(t.Context(), Options{Store: st, URLs: urls, Settings: func() Settings { return Settings{CanaryPercent: 100, Soak: time.Hour} }})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// After a restart all bots of a fleet come at once: that must not take the
// memory of as many builds.
func TestManyBotsAtOnceShareOneBuild(t *testing.T) {
	const size, bots = 4 << 20, 48
	exe := bytes.Repeat([]byte("skep-bot"), size/8)
	urls := []string{"https://a:1", "https://b:1"}
	st, _ := keep(t, exe, urls, "one")
	k := again(t, st, urls)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	builds := make([]*Build, bots)
	var wg sync.WaitGroup
	for i := range builds {
		wg.Go(func() {
			b, err := k.Code(t.Context(), skep.BotID(fmt.Sprint("b", i)), linux, urls[i%2])
			if err != nil {
				t.Error(err)
			}
			builds[i] = b
		})
	}
	wg.Wait()
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 12*size {
		t.Errorf("%d bots made the server allocate %d MiB for an executable of %d MiB", bots, took>>20, size>>20)
	}
	for i, b := range builds {
		if b == nil || b != builds[i%2] {
			t.Fatalf("bot %d got a build of its own", i)
		}
	}
	if &builds[0].exe[0] != &builds[1].exe[0] {
		t.Error("builds for two addresses hold the executable twice")
	}
}

// What a bot was told counts only once it is stored: else one that crashes
// then is never missed.
func TestTellingIsRepeatedWhenTheStoreFailed(t *testing.T) {
	st, k := keep(t, []byte("exe"), []string{"https://a:1"}, "one", "two")
	next := k.state.Next
	if next == "" {
		t.Fatal("nothing rolls")
	}
	told := func() int {
		bots, err := st.RolloutBots(t.Context(), next)
		if err != nil {
			t.Fatal(err)
		}
		return len(bots)
	}
	poll := func(ctx context.Context) error {
		_, err := k.Expected(ctx, Contact{Bot: "b", Version: "old", Platform: linux, URL: "https://a:1"})
		return err
	}
	if err := poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if told() != 1 {
		t.Fatal("the telling was not noted at all")
	}
	// The same for a bot whose first poll fails on the way to the store.
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	other := Contact{Bot: "c", Version: "old", Platform: linux, URL: "https://a:1"}
	if _, err := k.Expected(gone, other); err == nil {
		t.Fatal("a canceled poll was noted")
	}
	if _, err := k.Expected(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if got := told(); got != 2 {
		t.Errorf("%d bots are noted as told, want 2: one that crashes now would not be missed", got)
	}
}
