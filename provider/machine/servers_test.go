package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

const foreignServer = "https://swarming.example.com"

// away is another Swarming server, with the bots of a world. It counts what it
// is asked.
type away struct {
	w    *world
	page time.Duration // that one takes

	mu       sync.Mutex
	bots     map[string]*skep.Bot
	ids      []string // of bots, sorted; nil = not known
	deleted  int
	calls    map[string]int
	ended    []string // bots that were told to end, once for each telling
	down     error    // what every call says
	fail     func(call string, n int) error
	silent   bool // of terminations that it heeds, its records say nothing
	reading  int
	atOnce   int // most pages that were read at once
	repeated int // pages that were read again although they had been answered
	answered map[string]bool
}

func newAway(t testing.TB) *away {
	a := &away{w: newWorld(t), bots: map[string]*skep.Bot{}, calls: map[string]int{}, answered: map[string]bool{}}
	a.w.away = a
	a.w.restart()
	return a
}

func foreignPool(prefix string, n int) provider.Config {
	c := fixed(prefix, n)
	c.Swarming = "Swarming.example.com:443/"
	return c
}

// begin counts a call, and says how it fails, if so.
func (a *away) begin(call string) error {
	a.calls[call]++
	if a.down != nil {
		return a.down
	}
	if a.fail != nil {
		return a.fail(call, a.calls[call])
	}
	return nil
}

func (a *away) save(name string, fn func(*skep.Bot, time.Time)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.bots[name]
	if b == nil {
		b = &skep.Bot{ID: skep.BotID(name), FirstSeen: time.Now(), Dimensions: skep.Dimensions{"pool": {prefixOf(name)}}}
		a.bots[name], a.ids = b, nil
	}
	b.LastSeen = time.Now()
	fn(b, time.Now())
}

func (a *away) describe(b *skep.Bot) store.VMBot {
	return store.VMBot{Known: true, FirstSeen: b.FirstSeen, LastSeen: b.LastSeen, Dead: b.Dead, Terminated: b.Terminated != 0 && !a.silent, Ill: b.Quarantined != "" || b.Maintenance != "", Task: b.Task}
}

func (a *away) Bots(ctx context.Context, pool, cursor string) (page []SwarmingBot, next string, err error) {
	a.mu.Lock()
	a.reading++
	a.atOnce = max(a.atOnce, a.reading)
	a.mu.Unlock()
	if a.page > 0 { // a timer that is due at once, in two goroutines of a bubble, breaks the race detector of Go 1.26
		select {
		case <-time.After(a.page):
		case <-ctx.Done():
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reading--
	if err := errors.Join(ctx.Err(), a.begin("list")); err != nil {
		return nil, "", err
	}
	if key := pool + "/" + cursor; a.answered[key] {
		a.repeated++
	} else {
		a.answered[key] = true
	}
	if a.ids == nil {
		a.ids = slices.Sorted(maps.Keys(a.bots))
	}
	i, _ := slices.BinarySearch(a.ids, cursor)
	for _, id := range a.ids[i:] {
		b := a.bots[id]
		if id == cursor || pool != "" && !slices.Contains(b.Dimensions["pool"], pool) {
			continue
		}
		if len(page) == 1000 {
			return page, string(page[999].ID), nil
		}
		page = append(page, SwarmingBot{b.ID, a.describe(b)})
	}
	return page, "", nil
}

func (a *away) Bot(_ context.Context, id skep.BotID) (store.VMBot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin("get"); err != nil {
		return store.VMBot{}, err
	}
	if b := a.bots[string(id)]; b != nil {
		return a.describe(b), nil
	}
	return store.VMBot{}, skep.Errorf(skep.NotFound, "no such bot: %s", id)
}

func (a *away) Left(_ context.Context, id skep.BotID, since time.Time) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin("events"); err != nil {
		return false, err
	}
	b := a.bots[string(id)]
	return b != nil && b.Terminated != 0 && b.LastSeen.After(since), nil
}

func (a *away) Terminate(ctx context.Context, id skep.BotID, caller, reason string) (skep.TaskID, error) {
	a.mu.Lock()
	err := a.begin("terminate")
	if err == nil || errors.Is(err, ErrNoAnswer) {
		a.ended = append(a.ended, string(id))
	}
	a.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return fleetOf{a.w}.Terminate(ctx, id, caller, reason)
}

func (a *away) Cancel(context.Context, skep.TaskID, bool) (bool, bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return false, false, a.begin("cancel")
}

func (a *away) Delete(_ context.Context, id skep.BotID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.begin("delete"); err != nil {
		return err
	}
	if a.bots[string(id)] == nil {
		return skep.Errorf(skep.NotFound, "no such bot: %s", id)
	}
	delete(a.bots, string(id))
	a.ids, a.deleted = nil, a.deleted+1
	return nil
}

// set changes the server at a moment.
func (a *away) set(fn func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn()
}

// count is how often something was asked.
func (a *away) count(call string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[call]
}

// no bot of a foreign machine is among ours.
func (a *away) check(want map[string]int) error {
	bots, err := a.w.store.BotsAfter(context.Background(), "", 1) //nolint:usetesting // as world's
	if err != nil || len(bots) > 0 {
		return fmt.Errorf("bots here: %v, %w", bots, err)
	}
	return a.w.check(want)
}

// The life of a machine whose bot lives elsewhere: it comes, finishes its task
// at the end of its lifetime, leaves, and is forgotten there; whether its
// server says so in the bot's record or only in its history.
func TestForeignBot(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprintf("silent=%v", silent), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAway(t)
				a.silent = silent
				w := a.w
				c := foreignPool("a", 1)
				c.Lifetime = 20 * time.Minute
				w.declare(c)
				stop := w.run()
				defer stop()
				time.Sleep(2 * time.Minute)
				first := w.names()[0]
				v, err := w.store.VMByHostname(t.Context(), first)
				if err != nil || v.Server != foreignServer || v.Connected.IsZero() || StateOf(v, time.Now()) != Serving {
					t.Fatalf("%+v, %v", v, err)
				}
				w.busy(first, true)
				time.Sleep(30 * time.Minute)
				if got := w.names(); !slices.Equal(got, []string{first}) || len(a.ended) != 1 {
					t.Fatalf("%v with a task, told to end %v", got, a.ended)
				}
				if st, err := w.r.Status(t.Context(), "a"); err != nil || st[0].Busy != 1 || st[0].Connected != 1 || st[0].Draining != 1 {
					t.Errorf("status %+v, %v", st, err)
				}
				w.busy(first, false)
				time.Sleep(3 * time.Minute)
				if got := w.names(); len(got) != 1 || got[0] == first || a.deleted != 1 {
					t.Errorf("after its task: %v, %d bots deleted", got, a.deleted)
				}
				w.declare()
				time.Sleep(5 * time.Minute)
				if err := a.check(nil); err != nil || len(a.bots) > 0 {
					t.Errorf("%v; left there: %v", err, a.bots)
				}
			})
		})
	}
}

// Which servers are this fleet's: all that it says it is, however written.
func TestOwnServers(t *testing.T) {
	w := newWorld(t)
	r := w.reconciler(Options{Servers: []string{"http://127.0.0.1:8900"}, Elsewhere: func(string) (Swarming, error) { return nil, nil }})
	for swarming, want := range map[string]string{
		"": "", "skep.example.com": "", "https://SKEP.example.com": "", "https://skep.example.com:443/x": "", "http://127.0.0.1:8900": "",
		"other.example.com": "https://other.example.com", "https://Other.example.com:444/": "https://other.example.com:444",
		"http://127.0.0.1:8901": "http://127.0.0.1:8901",
	} {
		if got := r.foreign(swarming); got != want {
			t.Errorf("%q: %q, want %q", swarming, got, want)
		}
	}
}

// While its server is away, a machine is left alone, whatever is due; and for a
// while after, as its bot may not have come back yet. spec §11.
func TestServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		c := foreignPool("a", 6)
		c.Lifetime, c.Timeout = time.Hour, 12*time.Minute
		w.declare(c)
		stop := w.run()
		defer func() { stop() }()
		time.Sleep(5 * time.Minute)
		before := w.names()
		a.set(func() { a.down = skep.Errorf(skep.Unavailable, "nobody is here") })
		time.Sleep(time.Minute)
		stop() // another provider goes on, and hears nothing from the start
		w.restart()
		stop = w.run()
		for range 6 {
			time.Sleep(30 * time.Minute) // past lifetime, timeout and silence
			if got := w.names(); !slices.Equal(got, before) {
				t.Fatalf("machines %v, want those of before, %v", got, before)
			}
		}
		if n := len(a.ended); n != 0 {
			t.Errorf("%d were told to end", n)
		}
		if calls := a.count("get") + a.count("terminate"); calls > 40 {
			t.Errorf("%d calls about single bots of a server that is away", calls)
		}
		// It comes back, with what it believes to be dead bots; two of them never do.
		a.set(func() {
			a.down = nil
			for _, b := range a.bots {
				b.Dead = true
			}
		})
		time.Sleep(3 * time.Minute)
		if got := w.names(); !slices.Equal(got, before) {
			t.Errorf("right after, machines %v, want %v", got, before)
		}
		for _, name := range before[2:] {
			w.save(name, func(b *skep.Bot, _ time.Time) { b.Dead = false })
		}
		time.Sleep(3 * time.Minute)
		w.mu.Lock()
		cut := w.calls["delete"]
		w.mu.Unlock()
		time.Sleep(30 * time.Minute)
		if err := a.check(map[string]int{"a": 6}); err != nil {
			t.Error(err)
		}
		if slices.Contains(a.ended, before[0]) || slices.Contains(a.ended, before[1]) || len(a.ended) != 4 || cut > 4 {
			t.Errorf("told to end %v, and %d taken away before the silence was over", a.ended, cut)
		}
		if got := w.names(); slices.ContainsFunc(got, func(n string) bool { return slices.Contains(before, n) }) {
			t.Errorf("not all were replaced: %v", got)
		}
	})
}

// A bot is not taken for lost by what was heard of it before: its server is
// asked at the last moment.
func TestAskedBeforeItIsTakenAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.declare(foreignPool("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(30 * time.Minute)
		name := w.names()[0]
		a.set(func() {
			a.bots[name].Dead = true
			a.fail = func(call string, _ int) error {
				if call == "events" { // it has just been listed as dead for long, and is back
					a.bots[name].Dead, a.bots[name].LastSeen = false, time.Now()
				}
				return nil
			}
		})
		time.Sleep(20 * time.Minute)
		if a.count("events") == 0 || a.count("get") == 0 {
			t.Error("nobody looked")
		}
		if got := w.names(); got[0] != name || w.calls["delete"] > 0 {
			t.Errorf("its machine was taken away; now %v", got)
		}
	})
}

// promise P19: a bot is told to end once an hour, across restarts and lost
// answers; a call that is refused counts for nothing.
func TestForeignBotIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.declare(foreignPool("a", 1))
		stop := w.run()
		defer func() { stop() }()
		time.Sleep(2 * time.Minute)
		name := w.names()[0]
		w.busy(name, true)
		refused := 0
		a.set(func() {
			a.fail = func(call string, _ int) error {
				if call != "terminate" {
					return nil
				}
				if refused++; refused < 4 {
					return skep.Errorf(skep.Denied, "not you")
				}
				return fmt.Errorf("%w: %w", ErrNoAnswer, errLost)
			}
		})
		w.declare(foreignPool("a", 0))
		for range 5 {
			time.Sleep(10 * time.Minute)
			stop()
			w.restart()
			stop = w.run()
		}
		if n := a.count("terminate"); n != 4 || len(a.ended) != 1 {
			t.Errorf("told %d times within the hour, %d of them heeded", n, len(a.ended))
		}
		a.set(func() { a.fail = nil })
		time.Sleep(30 * time.Minute)
		if len(a.ended) != 2 {
			t.Errorf("told %v within two hours", a.ended)
		}
		w.busy(name, false)
		time.Sleep(5 * time.Minute)
		if err := a.check(nil); err != nil {
			t.Error(err)
		}
	})
}

// What a bot was told before a crash it is not told again: that it is told is
// written down first.
func TestToldBeforeTheCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.declare(foreignPool("a", 1))
		stop := w.run()
		time.Sleep(2 * time.Minute)
		w.busy(w.names()[0], true)
		stop()
		if err := w.r.Drain(t.Context(), "a-0"); err != nil {
			t.Fatal(err)
		}
		a.set(func() {
			a.fail = func(call string, _ int) error {
				if call == "terminate" {
					panic("the process is gone")
				}
				return nil
			}
		})
		func() {
			defer func() { _ = recover(); a.mu.Unlock() }()
			_, err := w.r.RunStep(t.Context(), TerminateBot, "a-0")
			t.Errorf("it went on: %v", err)
		}()
		a.set(func() { a.fail = nil })
		w.restart()
		if did, err := w.r.RunStep(t.Context(), TerminateBot, "a-0"); did.Done || err != nil || len(a.ended) != 0 || a.count("terminate") != 1 {
			t.Errorf("told again: %v, %v, %v", did, err, a.ended)
		}
	})
}

// fill gives a pool n machines at work whose bots are at a, without the time
// that making them takes.
func (a *away) fill(c provider.Config, n int) {
	a.w.t.Helper()
	ctx := a.w.t.Context()
	a.w.declare(c)
	p, err := a.w.store.MachinePool(ctx, c.Prefix)
	if err != nil {
		a.w.t.Fatal(err)
	}
	now := time.Now()
	attributes, err := json.Marshal(c.Attributes)
	if err != nil {
		a.w.t.Fatal(err)
	}
	for i := 0; i < n; i += 1000 {
		err := a.w.store.Update(ctx, func(tx *store.Tx) error {
			for j := i; j < min(n, i+1000); j++ {
				v := &store.VM{
					ID: vmID(c.Prefix, j, ""), Prefix: c.Prefix, Kind: c.Kind, Index: j, Generation: int64(j + 1), Attributes: attributes, Project: "p", Zone: "z",
					Shape: p.Shape, Swarming: c.Swarming, Server: foreignServer, Lifetime: 24 * time.Hour, Expanded: now, Inserted: now, Created: now, URL: "u",
				}
				v.Hostname = fmt.Sprintf("%s-%05d", c.Prefix, j)
				if err := tx.SaveVM(v); err != nil {
					return err
				}
			}
			p, err := tx.LockMachinePool(c.Prefix)
			if err != nil {
				return err
			}
			p.Amount = n
			if err := tx.SetMeta(placesKey, "[]"); err != nil { // there are no instances to be looked for
				return err
			}
			return tx.SaveMachinePool(p)
		})
		if err != nil {
			a.w.t.Fatal(err)
		}
	}
	for j := range n {
		a.save(fmt.Sprintf("%s-%05d", c.Prefix, j), func(*skep.Bot, time.Time) {})
	}
}

// promise P2: bots that only work cost next to nothing.
func TestForeignCallsInSteadyState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.r = w.reconciler(Options{Audit: 24 * time.Hour})
		const n = 400
		a.fill(foreignPool("a", n), n)
		stop := w.run()
		defer stop()
		time.Sleep(5 * time.Minute)
		vms, err := w.store.VMsAt(t.Context(), foreignServer, "", n+1)
		if err != nil || len(vms) != n || slices.ContainsFunc(vms, func(v store.VM) bool { return v.Connected.IsZero() }) {
			t.Fatalf("%d machines, not all of them at work, %v", len(vms), err)
		}
		a.set(func() { clear(a.calls) })
		for minute := range 10 {
			for j := range n {
				w.away.save(fmt.Sprintf("a-%05d", j), func(b *skep.Bot, _ time.Time) { b.Task = skep.TaskID((j + minute) % 3) })
			}
			time.Sleep(time.Minute)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		all := 0
		for _, c := range a.calls {
			all += c
		}
		if perMinute := float64(all) / n / 10; perMinute > 0.05 || a.calls["list"] != all {
			t.Errorf("%v calls a machine and minute: %v", perMinute, a.calls)
		} else {
			t.Logf("%.4f calls a machine and minute: %v", perMinute, a.calls)
		}
		if st, err := w.r.Status(t.Context(), "a"); err != nil || st[0].Busy == 0 || st[0].Connected != n {
			t.Errorf("status %+v, %v", st, err)
		}
	})
}

// promise P6: 50,000 bots are looked at within 30 s although pages fail, by
// chains of pages of which 8 are read at a time; no page is read twice but
// those that failed.
func TestForeignSweep(t *testing.T) {
	for _, pools := range []int{1, 20} {
		t.Run(fmt.Sprintf("%d pools", pools), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAway(t)
				w := a.w
				w.r = w.reconciler(Options{Audit: 24 * time.Hour, Sweep: time.Hour})
				var configs []provider.Config
				for i := range pools {
					c := foreignPool(fmt.Sprintf("p%02d", i), 10)
					if pools > 1 {
						c.SwarmingPools = []string{c.Prefix}
					}
					configs = append(configs, c)
					a.fill(c, 10)
				}
				for i := range 50_000 - 10*pools {
					a.save(fmt.Sprintf("p%02d-x%05d", i%pools, i), func(*skep.Bot, time.Time) {})
				}
				w.declare(configs...)
				failed := 0
				a.page = 400 * time.Millisecond
				a.fail = func(call string, n int) error {
					if call == "list" && n%7 == 0 {
						failed++
						return errLost
					}
					return nil
				}
				servers, err := w.store.ForeignServers(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				if err := w.r.sweep(t.Context(), foreignServer, servers[foreignServer]); err != nil {
					t.Fatal(err)
				}
				took := time.Since(begun)
				if took > 30*time.Second || failed == 0 || a.repeated > 0 || a.atOnce > 8 || pools > 1 && a.atOnce < 8 {
					t.Errorf("it took %v; %d pages failed, %d were read again, %d at once", took, failed, a.repeated, a.atOnce)
				}
				t.Logf("%v for %d pages, %d of which failed, %d at once", took, a.calls["list"], failed, a.atOnce)
				vms, err := w.store.VMsAfter(t.Context(), "", 1000)
				if err != nil || len(vms) != 10*pools || slices.ContainsFunc(vms, func(v store.VM) bool { return !v.Bot.Known }) || a.calls["get"] > 0 {
					t.Errorf("%d machines, not all of whose bots were found, %d of them by a question of its own; %v", len(vms), a.calls["get"], err)
				}
			})
		})
	}
}

// Bots that have not the pools that are declared for them are found all the
// same, and from then on all bots are looked at.
func TestDeclaredPoolsAreWrong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		c := foreignPool("a", 2)
		c.SwarmingPools = []string{"elsewhere"}
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(10 * time.Minute)
		if st, err := w.r.Status(t.Context(), "a"); err != nil || st[0].Connected != 2 {
			t.Fatalf("status %+v, %v", st, err)
		}
		gets := a.count("get")
		time.Sleep(time.Hour)
		if n := a.count("get") - gets; n > 0 {
			t.Errorf("%d questions about single bots in an hour", n)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if !slices.ContainsFunc(slices.Collect(maps.Keys(a.answered)), func(key string) bool { return strings.HasPrefix(key, "/") }) {
			t.Errorf("never were all bots looked at: %v", a.answered)
		}
	})
}

// A bot that is gone from its server is missed like one of ours.
func TestForeignBotIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.declare(foreignPool("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(15 * time.Minute)
		name := w.names()[0]
		a.set(func() { delete(a.bots, name); a.ids = nil })
		time.Sleep(5 * time.Minute)
		if got := w.names()[0]; got != name {
			t.Errorf("%s was taken away before its bot was missed for long", name)
		}
		time.Sleep(15 * time.Minute)
		if got := w.names()[0]; got == name {
			t.Error("its machine is left")
		}
		if err := a.check(map[string]int{"a": 1}); err != nil {
			t.Error(err)
		}
	})
}

// An instance without a record whose bot is at work elsewhere is left until it
// has ended; and as long as that server cannot say.
func TestForeignLeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		w.declare(foreignPool("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(15 * time.Minute)
		name := w.names()[0]
		w.busy(name, true)
		a.set(func() { a.down = skep.Errorf(skep.Unavailable, "nobody is here") })
		if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.DropVM("a-0") }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if !slices.Contains(w.names(), name) {
			t.Fatal("it was taken away while nobody knew of its bot")
		}
		a.set(func() { a.down = nil })
		time.Sleep(10 * time.Minute)
		if !slices.Contains(w.names(), name) || !slices.Contains(a.ended, name) {
			t.Fatalf("with a task: %v, told to end %v", w.names(), a.ended)
		}
		w.busy(name, false)
		time.Sleep(10 * time.Minute)
		if slices.Contains(w.names(), name) {
			t.Error("it is left")
		}
	})
}

// The queue here says nothing of a pool whose bots are another server's: its
// size is that of its amount, and none of its machines is stopped and kept.
func TestForeignPoolDoesNotFollowTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		c := foreignPool("a", 3)
		c.Demand = &provider.Demand{Dimensions: map[string][]string{"pool": {"ci"}}, TargetWait: time.Minute, Stopped: 2}
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(2 * time.Minute)
		c.Amount = provider.Amount{Min: 1, Max: 1}
		w.declare(c)
		time.Sleep(10 * time.Minute)
		if err := a.check(map[string]int{"a": 1}); err != nil {
			t.Error(err)
		}
		w.wantStates("a", map[State]int{Serving: 1})
	})
}

// A shape whose bots come up ill at another server replaces no more machines
// than may be away at once. promise P22.
func TestForeignReplacementStopsWhereSuccessorsAreIll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAway(t)
		w := a.w
		c := foreignPool("a", 5)
		c.MaxReplacing = 2
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(5 * time.Minute)
		old := w.names()
		c.Attributes.MachineType = "worse"
		w.declare(c)
		health := func(why string) int { return w.quarantineBut(old, why) }
		for range 30 * 60 {
			time.Sleep(time.Second)
			health("no python")
		}
		if n := health("no python"); n != 2 {
			t.Errorf("%d of %v were replaced by %v", n, old, w.names())
		}
		for range 30 * 60 {
			time.Sleep(time.Second)
			health("")
		}
		if n := health(""); n != 5 {
			t.Errorf("%d of 5 were replaced", n)
		}
	})
}
