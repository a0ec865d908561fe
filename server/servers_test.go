package server

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/store"
)

// twoServers are equal servers on one PostgreSQL, looking after the fleet.
func twoServers(t *testing.T, change func(*Options)) (a, b *fleet) {
	t.Helper()
	return twoServersOn(t, pgtest.DSN(t), change)
}

func twoServersOn(t *testing.T, dsn string, change func(*Options)) (a, b *fleet) {
	t.Helper()
	one := func() *fleet {
		f := serveOn(t, dsn, change)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan struct{})
		go func() { defer close(done); _ = f.server.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return f
	}
	return one(), one()
}

// steer tells a bot something at this server, as the API does.
func (f *fleet) steer(bot skep.BotID, edit func(*store.Orders, time.Time)) {
	f.t.Helper()
	if _, err := f.server.sched.Steer(f.t.Context(), bot, "for a test", edit); err != nil {
		f.t.Fatal(err)
	}
	if err := f.server.fleet.readOrders(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
}

// at is the same bot at another server: a session is good at all.
func (b *bot) at(f *fleet) *bot { return &bot{fleet: f, id: b.id, session: b.session} }

// A bot that one server was told to drain gets no work from another, not even
// in the second until that one reads the orders; and its poll there ends.
func TestOrdersHoldAtOtherServers(t *testing.T) {
	a, b := twoServers(t, nil)
	drain := func(o *store.Orders, now time.Time) { o.Drain = &store.Order{By: "user:x", Since: now} }
	undrain := func(o *store.Orders, _ time.Time) { o.Drain = nil }
	one := a.bot("b1").at(b)
	if got := one.poll("k0", 0)["cmd"]; got != "sleep" {
		t.Fatal(got)
	}
	a.steer("b1", drain)
	id := a.newTask(task("t"))
	for i := range 5 { // at once: b may not have read the orders
		if ans := one.poll(fmt.Sprint("k1-", i), 0); ans["cmd"] != "sleep" {
			t.Fatalf("a drained bot is told %v", ans["cmd"])
		}
	}
	got, err := a.store.Bot(t.Context(), "b1")
	if err != nil || got.Maintenance != "drained by user:x" {
		t.Errorf("the record says %q, %v: the other server wrote over it", got.Maintenance, err)
	}
	a.steer("b1", undrain)
	var ans map[string]any
	for i := 0; ans["cmd"] != "run"; i++ { // within a second b reads that too
		if i > 1000 {
			t.Fatalf("after undrain the bot is told %v", ans)
		}
		ans = one.poll(fmt.Sprint("k2-", i), 0.1)
	}
	if code, _ := one.update(runOf(id), map[string]any{"exit_code": 0, "duration": 0.1}); code != 200 {
		t.Fatal(code)
	}
	// A poll that waits at b, or is on its way there, when a is told.
	done := make(chan map[string]any, 1)
	go func() { done <- one.poll("k3", 50) }()
	a.steer("b1", drain)
	select {
	case ans := <-done:
		if ans["cmd"] != "sleep" {
			t.Errorf("told %v", ans["cmd"])
		}
	case <-time.After(30 * time.Second):
		t.Error("the poll at the other server waits on")
	}
}

// However bots spread over servers, the breaker lets as many fall ill as its
// rule says; a restart changes nothing, and well bots are counted anew.
func TestCircuitBreakerCountsOverServers(t *testing.T) {
	rules := &Rules{
		Pools: func() []string { return []string{"default"} },
		Pool: func(string) *PoolRules {
			return &PoolRules{Breaker: &health.Rule{Percent: 20, Window: 10 * time.Minute, MinBots: 5}}
		},
	}
	dsn, ruled := pgtest.DSN(t), func(o *Options) { o.Rules = func() *Rules { return rules } }
	a, b := twoServersOn(t, dsn, ruled)
	const n = 20
	say := func(bt *bot, ill string) {
		state := map[string]any{"sleep_streak": 0}
		if ill != "" {
			state["quarantined"] = ill
		}
		if code, ans := bt.post(botapi.PathPoll, map[string]any{
			"dimensions": bt.dims(), "state": state, "version": "v", "session": bt.session, "request_uuid": fmt.Sprint(time.Now().UnixNano()),
		}); code != 200 {
			t.Errorf("%d %v", code, ans)
		}
	}
	bots := make([]*bot, n)
	for i := range bots {
		bots[i] = a.bot(fmt.Sprintf("b%02d", i))
		say(bots[i], "")
	}
	look := func(f *fleet) {
		t.Helper()
		if err := f.server.fleet.look(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	look(a)
	look(b)
	all := func(ill string) {
		var wg sync.WaitGroup
		for i, bt := range bots {
			wg.Go(func() { say(bt.at([]*fleet{a, b}[i%2]), ill) })
		}
		wg.Wait()
	}
	quarantined := func() (n int) {
		t.Helper()
		briefs, err := a.store.BotBriefs(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range briefs {
			if b.Quarantined {
				n++
			}
		}
		return n
	}
	for range 3 { // whoever is held stays held, and at the other server too
		all("disk full")
		if got := quarantined(); got != 4 {
			t.Fatalf("%d of %d bots are quarantined, want 4", got, n)
		}
		a, b = b, a
	}
	c := serveOn(t, dsn, ruled) // as after a restart
	look(c)
	for _, bt := range bots {
		say(bt.at(c), "disk full")
	}
	if got := quarantined(); got != 4 {
		t.Errorf("at a server that just started %d bots are quarantined, want 4", got)
	}
	for _, f := range []*fleet{a, b, c} {
		if err := f.server.fleet.ill.read(t.Context()); err != nil {
			t.Fatal(err)
		}
		if h := f.server.fleet.ill.held()["default"]; h.Count != n-4 || h.Why != "disk full" {
			t.Errorf("held: %+v", h)
		}
		look(f)
		if as := f.server.fleet.view.Load().alarms; len(as) != 1 || as[0].Kind != health.CircuitBreaker {
			t.Errorf("alarms %v", as)
		}
	}
	all("")
	if got := quarantined(); got != 0 {
		t.Errorf("%d well bots are quarantined", got)
	}
	if is, err := a.store.Illnesses(t.Context()); err != nil || len(is) != 0 {
		t.Errorf("of well bots is noted %v, %v", is, err)
	}
}
