package server

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/store"
)

// How often the fleet is looked at, and orders that another server took.
const (
	lookEvery   = 10 * time.Second
	ordersEvery = time.Second
	maxAlarms   = 1000
	maxPoolKeys = 1 << 16
)

// fleetHealth is what this server knows of the fleet as a whole: who was told
// what, who falls ill, who is missing.
type fleetHealth struct {
	s      *Server
	ill    *illnesses
	orders atomic.Pointer[map[skep.BotID]*store.Orders]
	view   atomic.Pointer[fleetView]
	up     time.Time       // since when this server could hear a bot
	halted map[string]bool // pools whose open breaker was told; of Run alone

	mu     sync.Mutex
	wanted map[skep.BotID]time.Time // since when a bot is expected
	pools  map[int64][]string       // by key of dimensions, of bots that this process never heard
	told   map[skep.BotID]time.Time // when a bot was last told to begin anew because of its age
}

// fleetView is the fleet at some moment.
type fleetView struct {
	at     time.Time
	bots   []health.Bot
	sizes  map[string]int // bots of each pool that are not dead
	alarms []health.Alarm
}

func newFleetHealth(ctx context.Context, s *Server) (*fleetHealth, error) {
	f := &fleetHealth{
		s: s, ill: newIllnesses(s), up: s.o.Now(), halted: map[string]bool{},
		wanted: map[skep.BotID]time.Time{}, pools: map[int64][]string{}, told: map[skep.BotID]time.Time{},
	}
	f.view.Store(&fleetView{sizes: map[string]int{}})
	if err := f.ill.read(ctx); err != nil {
		return nil, err
	}
	return f, f.readOrders(ctx)
}

// ordersOf returns what a bot was told, nil when that is nothing.
func (f *fleetHealth) ordersOf(bot skep.BotID) *store.Orders { return (*f.orders.Load())[bot] }

func (f *fleetHealth) readOrders(ctx context.Context) error {
	f.mu.Lock() // what is read later holds
	defer f.mu.Unlock()
	all, err := f.s.store.Orders(ctx)
	if err != nil {
		return err
	}
	m := make(map[skep.BotID]*store.Orders, len(all))
	for _, o := range all {
		m[o.Bot] = o
	}
	if old := f.orders.Swap(&m); old != nil {
		for id, o := range m { // another server may have taken it: a poll that waits here asks anew
			if was := (*old)[id]; was == nil || !reflect.DeepEqual(was, o) {
				f.s.sched.Wake(id)
			}
		}
	}
	return nil
}

// Run looks after the fleet until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	f := s.fleet
	orders, look := time.NewTicker(ordersEvery), time.NewTicker(s.o.LookEvery)
	defer orders.Stop()
	defer look.Stop()
	f.try(ctx, f.look)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-orders.C:
			f.try(ctx, f.readOrders)
			f.try(ctx, f.enforce)
			f.try(ctx, f.readIllnesses)
		case <-look.C:
			f.try(ctx, f.look)
		}
	}
}

func (f *fleetHealth) try(ctx context.Context, step func(context.Context) error) {
	if err := step(ctx); err != nil && ctx.Err() == nil {
		f.s.log.WarnContext(ctx, "look after the fleet", "err", err)
	}
}

// enforce cancels what drained bots still run after their deadline.
func (f *fleetHealth) enforce(ctx context.Context) error {
	now := f.s.o.Now()
	for bot, o := range *f.orders.Load() {
		if o.Drain == nil || o.Drain.Until.IsZero() || now.Before(o.Drain.Until) {
			continue
		}
		l, found, err := f.s.store.BotLookNow(ctx, bot)
		if err != nil {
			return err
		}
		if !found || l.Task == 0 {
			continue
		}
		if killed, _, err := f.s.sched.Cancel(ctx, l.Task, true); err != nil {
			return err
		} else if killed {
			f.s.log.WarnContext(ctx, "a drain's deadline is over", "bot", string(bot), "task", l.Task.String())
		}
	}
	return nil
}

// look reads how all bots are.
func (f *fleetHealth) look(ctx context.Context) error {
	old := f.view.Load()
	briefs, err := f.s.store.BotBriefs(ctx, len(old.bots)+len(old.bots)/8)
	if err != nil {
		return err
	}
	ru, now := f.s.rules(), f.s.o.Now()
	v := &fleetView{at: now, bots: make([]health.Bot, 0, len(briefs)), sizes: map[string]int{}}
	for i := range briefs {
		b := &briefs[i]
		pools, err := f.poolsOf(ctx, ru, b)
		if err != nil {
			return err
		}
		v.bots = append(v.bots, health.Bot{
			ID: b.ID, Pools: pools, Seen: b.LastSeen, Busy: b.Busy, Ill: b.Quarantined, Maintenance: b.Maintenance, Dead: b.Dead,
		})
		if !b.Dead {
			for _, p := range pools {
				v.sizes[p]++
			}
		}
	}
	if err := f.ill.prune(ctx, briefs); err != nil {
		return err
	}
	if v.alarms, err = f.alarms(ctx, ru, v); err != nil {
		return err
	}
	if !sameAlarms(old.alarms, v.alarms) {
		for _, a := range v.alarms {
			if !slices.ContainsFunc(old.alarms, func(o health.Alarm) bool { return o.Kind == a.Kind && o.Pool == a.Pool && o.Bot == a.Bot }) {
				f.s.log.ErrorContext(ctx, "alarm", "kind", a.Kind, "pool", a.Pool, "bot", string(a.Bot), "text", a.Text)
			}
		}
	}
	f.view.Store(v)
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.told, func(_ skep.BotID, t time.Time) bool { return now.Sub(t) > tiredAgain })
	return nil
}

func sameAlarms(a, b []health.Alarm) bool { return slices.Equal(a, b) }

// poolsOf returns the pools of a bot as it is stored.
func (f *fleetHealth) poolsOf(ctx context.Context, ru *Rules, b *store.BotBrief) ([]string, error) {
	if ru.Group != nil {
		return ru.poolsOf(b.ID, nil), nil
	}
	if d, ok := f.s.sched.DimensionsOf(b.ID, b.DimensionsKey); ok {
		return d["pool"], nil
	}
	f.mu.Lock()
	pools, ok := f.pools[b.DimensionsKey]
	f.mu.Unlock()
	if ok {
		return pools, nil
	}
	d, err := f.s.store.DimensionSet(ctx, b.DimensionsKey)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.pools) >= maxPoolKeys {
		clear(f.pools)
	}
	f.pools[b.DimensionsKey] = d["pool"]
	return d["pool"], nil
}

// alarms returns what somebody should look at, at most maxAlarms.
func (f *fleetHealth) alarms(ctx context.Context, ru *Rules, v *fleetView) ([]health.Alarm, error) {
	out := f.missing(ru, v)
	for pool, p := range f.ill.held() {
		out = append(out, health.Alarm{Kind: health.CircuitBreaker, Pool: pool, Since: p.Since, Text: fmt.Sprintf(
			"%d more bots of pool %s would be quarantined than its circuit breaker lets; they go on getting tasks. Look at what changed, or quarantine them by hand. %s says: %.500s",
			p.Count, pool, p.Example, p.Why)})
	}
	if f.s.o.Code != nil {
		st, err := f.s.o.Code.Status(ctx)
		if err != nil {
			return nil, err
		}
		if st.Halted != "" {
			out = append(out, health.Alarm{Kind: health.RolloutHalted, Text: "the rollout of bot code is halted: " + st.Halted, Since: st.Since})
		}
	}
	health.Sort(out)
	return out[:min(len(out), maxAlarms)], nil
}

func (f *fleetHealth) missing(ru *Rules, v *fleetView) []health.Alarm {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(ru.Expected) == 0 {
		clear(f.wanted)
		return nil
	}
	maps.DeleteFunc(f.wanted, func(id skep.BotID, _ time.Time) bool { _, ok := ru.Expected[id]; return !ok })
	for id := range ru.Expected {
		if _, ok := f.wanted[id]; !ok {
			f.wanted[id] = v.at
		}
	}
	known := make(map[skep.BotID]*health.Bot, len(v.bots))
	for i := range v.bots {
		known[v.bots[i].ID] = &v.bots[i]
	}
	return health.Missing(v.at, f.up, ru.Expected, f.wanted, known)
}

// judge holds a bot's quarantine when too many of its pool fall ill at once.
// said is why the bot itself says that it is ill; what the server found against
// it stays.
func (s *Server) judge(ctx context.Context, ru *Rules, b *skep.Bot, st *botState, pools []string, said string) error {
	f := s.fleet
	if said == "" {
		if st.broken {
			return nil
		}
		return f.ill.well(ctx, b.ID)
	}
	if st.broken {
		return nil
	}
	pool := ""
	var rule *health.Rule
	if len(pools) > 0 {
		pool = pools[0]
		if ru.Pool != nil {
			if p := ru.Pool(pool); p != nil {
				rule = p.Breaker
			}
		}
	}
	held, err := f.ill.judge(ctx, b.ID, pool, rule, f.view.Load().sizes[pool], said)
	if err != nil || !held {
		return err
	}
	b.Quarantined = b.Quarantined[len(said):]
	if b.Quarantined != "" {
		b.Quarantined = b.Quarantined[1:] // the line break
	}
	return nil
}

// readIllnesses looks whether a breaker opened, at whichever server, and then
// halts what is being rolled out: it may be why bots fall ill.
func (f *fleetHealth) readIllnesses(ctx context.Context) error {
	if err := f.ill.read(ctx); err != nil {
		return err
	}
	held := f.ill.held()
	for pool := range f.halted {
		if _, ok := held[pool]; !ok {
			delete(f.halted, pool)
		}
	}
	for pool, h := range held {
		if f.halted[pool] {
			continue
		}
		f.s.log.ErrorContext(ctx, "circuit breaker: too many bots fall ill at once; they go on getting tasks", "pool", pool, "bot", string(h.Example), "message", clip(h.Why, 500))
		if err := f.holdRollout(ctx, pool); err != nil {
			return err
		}
		f.halted[pool] = true
	}
	return nil
}

func (f *fleetHealth) holdRollout(ctx context.Context, pool string) error {
	if f.s.o.Code != nil {
		st, err := f.s.o.Code.Status(ctx)
		if err != nil {
			return err
		}
		if st.Next != "" && st.Halted == "" {
			if err := f.s.o.Code.Halt(ctx, "the circuit breaker of pool "+pool+" opened"); err != nil && skep.KindOf(err) != skep.Precondition {
				return err
			}
		}
	}
	return f.look(ctx) // for the alarm
}
