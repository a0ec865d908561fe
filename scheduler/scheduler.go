// Package scheduler decides who runs what, and when: it takes tasks in, hands
// them to polling bots, takes reports, and ends what nobody ends. It knows no
// HTTP. The store is its memory; what it keeps besides are hints and wake-ups.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Options of New. Zero values mean the defaults given here.
type Options struct {
	Now      func() time.Time     // default time.Now
	Log      *slog.Logger         // default: nothing is logged
	Version  string               // of this server; noted on each task that it writes
	BotDeath func() time.Duration // silence after which a bot counts as dead; default 10 min
	BotLife  func() time.Duration // silence after which a bot is forgotten; default 28 days

	// MayCome reports whether a bot that meets these demands would be made if a
	// task waited for it: then the task may wait. nil = none is made for tasks.
	MayCome func(skep.Constraints) bool

	// Watch is told of bots that came, died, ended or were deleted, after that is
	// durable, here or at another server. It must return at once; nil = nobody
	// wants to know.
	Watch func(skep.BotID)

	// NoPolls says that no bot polls here and Run is not called: nothing is kept
	// of what waits for whom.
	NoPolls bool
}

// Scheduler is the heart of one server process. Any number of them may share a
// store. Its methods may be called at once by many.
type Scheduler struct {
	store *store.Store
	o     Options

	fleet  *fleet
	queues *queues
	hub    *hub
	recent *recent
	expiry chan time.Time    // wakes the expiry loop early
	moves  [64]atomic.Uint64 // tasks that came into a state, by its number / 16
}

// New returns a scheduler over s. Run must be called for it to do anything by
// itself.
func New(s *store.Store, o Options) *Scheduler {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.BotDeath == nil {
		o.BotDeath = func() time.Duration { return 10 * time.Minute }
	}
	if o.BotLife == nil {
		o.BotLife = func() time.Duration { return 0 }
	}
	if o.Watch == nil {
		o.Watch = func(skep.BotID) {}
	}
	return &Scheduler{
		store: s, o: o, fleet: newFleet(), queues: newQueues(), hub: newHub(), recent: newRecent(),
		expiry: make(chan time.Time, 1),
	}
}

// resync is how often a loop looks although nothing woke it.
const resync = 5 * time.Second

// Load reads the hints from the store: known bots, queues, and since when the
// fleet has been served. It must return before the first call is served.
func (s *Scheduler) Load(ctx context.Context) error {
	// SQLite has one server: nobody was up while this one was not.
	if err := s.beat(ctx, s.store.Engine() == "sqlite"); err != nil {
		return err
	}
	for after := skep.BotID(""); ; {
		bots, err := s.store.BotsAfter(ctx, after, 1000)
		if err != nil {
			return err
		}
		for _, b := range bots {
			s.fleet.put(b)
			after = b.ID
		}
		if len(bots) < 1000 {
			break
		}
	}
	return s.refreshQueues(ctx)
}

func (s *Scheduler) refreshQueues(ctx context.Context) error {
	qs, err := s.store.Queues(ctx)
	if err != nil {
		return err
	}
	for _, q := range qs {
		s.queues.add(q)
	}
	full, err := s.store.FullQueues(ctx)
	if err != nil {
		return err
	}
	for _, id := range full {
		s.queues.filled(id)
	}
	return nil
}

// Run serves until ctx ends: it matches polls with tasks, expires slices,
// notices dead bots and lost tasks.
func (s *Scheduler) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.matchLoop(ctx) })
	g.Go(func() error { return s.expireLoop(ctx) })
	g.Go(func() error { return s.lostLoop(ctx) })
	g.Go(func() error { return s.pruneLoop(ctx) })
	return g.Wait()
}

// Silence counts only while some server was up: a heartbeat older than this
// means that none was. decisions.md 18.
const heartbeatLife = 20 * time.Second

// beat renews the heartbeat of the fleet and learns since when it has had one.
// first says that it surely begins now.
func (s *Scheduler) beat(ctx context.Context, first bool) error {
	var since time.Time
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		last, err := metaTime(ctx, tx, "heartbeat_us")
		if err != nil {
			return err
		}
		if since, err = metaTime(ctx, tx, "up_since_us"); err != nil {
			return err
		}
		if first || since.IsZero() || tx.Now.Sub(last) > heartbeatLife {
			since = tx.Now
			if err := tx.SetMeta("up_since_us", strconv.FormatInt(since.UnixMicro(), 10)); err != nil {
				return err
			}
		}
		return tx.SetMeta("heartbeat_us", strconv.FormatInt(tx.Now.UnixMicro(), 10))
	})
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	s.fleet.setUpSince(since)
	return nil
}

func metaTime(ctx context.Context, tx *store.Tx, key string) (time.Time, error) {
	v, err := tx.Meta(ctx, key)
	if err != nil || v == "" {
		return time.Time{}, err
	}
	us, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", key, err)
	}
	return time.UnixMicro(us), nil
}

// moved writes the one log line of a task's move.
func (s *Scheduler) moved(ctx context.Context, t *skep.Task, from skep.TaskState) {
	s.moves[t.State>>4].Add(1)
	if from == 0 {
		s.o.Log.LogAttrs(ctx, slog.LevelInfo, "task created", slog.String("task", t.ID.String()), slog.String("to", t.State.String()))
		return
	}
	s.o.Log.LogAttrs(ctx, slog.LevelInfo, "task moved", slog.String("task", t.ID.String()),
		slog.String("from", from.String()), slog.String("to", t.State.String()), slog.String("bot", string(t.Bot)))
}

// BotDeath returns the silence after which a bot counts as dead.
func (s *Scheduler) BotDeath() time.Duration { return s.o.BotDeath() }

// Entered returns how many tasks came into each state since the start of this
// process: which of them the numbers are of is all that a metric needs.
func (s *Scheduler) Entered() map[skep.TaskState]uint64 {
	out := map[skep.TaskState]uint64{}
	for i := range s.moves {
		if n := s.moves[i].Load(); n > 0 {
			out[skep.TaskState(i<<4)] = n
		}
	}
	return out
}

// Waiting returns how many polls wait on this process.
func (s *Scheduler) Waiting() int {
	s.queues.mu.Lock()
	defer s.queues.mu.Unlock()
	return len(s.queues.bots)
}

// QueuePool returns the pool that tasks of a queue ask for; "" when that is
// not known here.
func (s *Scheduler) QueuePool(id skep.QueueID) string {
	s.queues.mu.Lock()
	defer s.queues.mu.Unlock()
	if q := s.queues.all[id]; q != nil {
		if v := q.Dimensions.Get("pool"); len(v) > 0 {
			return v[0]
		}
	}
	return ""
}
