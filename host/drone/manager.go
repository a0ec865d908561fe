package drone

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep/host/bot"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/reconcile"
)

// State is where a bot stands. spec/host.md §3.2.
type State string

// The states.
const (
	Starting State = "STARTING" // is to be started, perhaps after a pause
	Running  State = "RUNNING"  // has a process, until that ends or somebody says so
	Draining State = "DRAINING" // ends by itself after its task
	Drained  State = "DRAINED"  // has ended so and is held, until that is taken back
	Stopping State = "STOPPING" // is told to end at once, and killed after its grace
	Released State = "RELEASED" // nothing of it is left, and it is forgotten
)

// moves is the whole life of a bot: a move that is not here is a bug.
var moves = map[State][]State{
	Starting: {Running, Drained, Released},
	Running:  {Starting, Draining, Stopping},
	Draining: {Starting, Stopping, Drained, Released}, // STARTING when the drain was taken back
	Drained:  {Starting, Released},
	Stopping: {Released},
}

// want is what is asked of a bot; a greater one wins.
type want int

const (
	keep want = iota
	drain
	terminate
)

// Pauses between starts of one bot.
const (
	minPause    = time.Second
	maxPause    = 2 * time.Minute
	steady      = 10 * time.Minute // a bot that was up for so long starts over with the shortest
	maxAttempts = 40               // within an hour
)

// Manager keeps one bot alive for each id that it was given. Its methods may
// be called at once by many; Run once, and before it nothing is started.
type Manager struct {
	// Start starts a bot.
	Start func(id string) (bot.Bot, error)
	// Released is told of an id of which nothing is left; nil = nobody is.
	Released func(id string)
	Log      *slog.Logger // nil = nothing is logged

	once sync.Once
	loop reconcile.Loop

	mu      sync.Mutex
	bots    map[string]*entry
	held    map[string]bool // ids, known or not
	blocked bool
	empty   chan struct{} // closed and made anew when the last bot is released
}

type entry struct {
	state    State
	want     want
	bot      bot.Bot
	started  time.Time
	over     bool  // its process has ended
	stopped  bool  // TerminateOrKill has returned without an error
	err      error // of the last start
	pause    backoff.Exponential
	next     time.Time   // no start before
	attempts []time.Time // of the last hour, at most maxAttempts
}

func (e *entry) move(to State) {
	if !slices.Contains(moves[e.state], to) {
		panic(fmt.Sprintf("a bot that is %s cannot become %s", e.state, to))
	}
	e.state = to
}

func (m *Manager) init() {
	m.once.Do(func() {
		m.bots, m.held, m.empty = map[string]*entry{}, map[string]bool{}, make(chan struct{})
		if m.Log == nil {
			m.Log = slog.New(slog.DiscardHandler)
		}
		m.loop = reconcile.Loop{Step: m.step, List: m.list, Workers: 32, Limit: 15 * time.Minute, Log: m.Log}
	})
}

// Run works until ctx ends. It leaves the bots alone then; see TerminateAll
// and Wait.
func (m *Manager) Run(ctx context.Context) error {
	m.init()
	return m.loop.Run(ctx)
}

func (m *Manager) list(_ context.Context, each func(string)) error {
	m.mu.Lock()
	ids := slices.Collect(maps.Keys(m.bots))
	m.mu.Unlock()
	for _, id := range ids {
		each(id)
	}
	return nil
}

// Add keeps a bot from now on. It does nothing for an id that is known, or
// after Block.
func (m *Manager) Add(id string) {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blocked || m.bots[id] != nil {
		return
	}
	m.bots[id] = &entry{state: Starting, pause: backoff.Exponential{Min: minPause, Max: maxPause}}
	m.loop.Wake(id)
}

// Drain lets a bot finish its task and then forgets it. Terminate ends it at
// once. An id that is not known is released already. Undrain takes a drain
// back: the bot stays, or starts again when it has ended.
func (m *Manager) Drain(id string)     { m.ask(drain, id) }
func (m *Manager) Terminate(id string) { m.ask(terminate, id) } // see Drain

// Hold drains a bot, but does not forget it: it is not started, nor released,
// until Unhold starts it again or it is drained or terminated otherwise. That
// holds for an id that is added later, too.
func (m *Manager) Hold(id string)   { m.hold(id, true) }
func (m *Manager) Unhold(id string) { m.hold(id, false) } // see Hold

func (m *Manager) hold(id string, on bool) {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	if on {
		m.held[id] = true
	} else {
		delete(m.held, id)
	}
	m.loop.Wake(id)
}

// Held returns the ids that are held, sorted; perhaps there is no bot of them.
func (m *Manager) Held() []string {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.held))
}

// Undrain is told of at Drain.
func (m *Manager) Undrain(id string) {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.bots[id]; e != nil && e.want == drain {
		e.want = keep
		m.loop.Wake(id)
	}
}

// DrainAll drains every bot, see Block; TerminateAll ends them.
func (m *Manager) DrainAll()     { m.ask(drain, m.Active()...) }
func (m *Manager) TerminateAll() { m.ask(terminate, m.Active()...) } // see DrainAll

func (m *Manager) ask(w want, ids ...string) {
	m.init()
	var unknown []string
	m.mu.Lock()
	for _, id := range ids {
		if e := m.bots[id]; e != nil {
			e.want = max(e.want, w)
			m.loop.Wake(id)
		} else {
			unknown = append(unknown, id)
		}
	}
	m.mu.Unlock()
	for _, id := range unknown {
		m.released(id)
	}
}

func (m *Manager) released(id string) {
	if m.Released != nil {
		m.Released(id)
	}
}

// Block keeps Add from adding; Unblock lets it again.
func (m *Manager) Block()   { m.block(true) }
func (m *Manager) Unblock() { m.block(false) } // see Block

func (m *Manager) block(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocked = on
}

// Active returns the ids of all bots, sorted, those that drain or end too.
func (m *Manager) Active() []string {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.bots))
}

// Wait returns when no bot is left, or with ctx's error.
func (m *Manager) Wait(ctx context.Context) error {
	m.init()
	for {
		m.mu.Lock()
		n, empty := len(m.bots), m.empty
		m.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-empty:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Status is what is known of a bot.
type Status struct {
	ID       string    `json:"id"`
	State    State     `json:"state"`
	Started  time.Time `json:"started,omitzero"`
	Next     time.Time `json:"next_start,omitzero"` // while it pauses
	Attempts int       `json:"starts_within_an_hour"`
	Error    string    `json:"error,omitempty"` // of the last start
}

// Status returns what is known of all bots, by id.
func (m *Manager) Status() []Status {
	m.init()
	m.mu.Lock()
	defer m.mu.Unlock()
	out := []Status{}
	for _, id := range slices.Sorted(maps.Keys(m.bots)) {
		e := m.bots[id]
		s := Status{ID: id, State: e.state, Started: e.started, Attempts: len(e.attempts)}
		if e.state == Starting {
			s.Next = e.next
		}
		if e.err != nil {
			s.Error = e.err.Error()
		}
		out = append(out, s)
	}
	return out
}

// step does what one bot needs next; it is woken again by what it waits for.
func (m *Manager) step(ctx context.Context, id string) (again time.Duration, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.bots[id]
	if e == nil {
		return 0, nil
	}
	held := m.held[id]
	if e.over && (e.state == Running || e.state == Draining && e.want == keep && !held) {
		m.ended(ctx, id, e)
	}
	if e.state == Drained && !held && e.want == keep {
		e.move(Starting)
	}
	switch e.state {
	case Starting, Drained:
		switch {
		case e.want > keep:
			m.release(id, e)
		case !held:
			return m.start(ctx, id, e)
		case e.state == Starting:
			e.move(Drained)
		}
	case Running, Draining:
		switch {
		case e.over && e.want == keep: // DRAINING, and held
			e.bot, e.over = nil, false
			e.move(Drained)
			m.Log.InfoContext(ctx, "bot is drained", "bot", id)
		case e.over: // DRAINING
			m.release(id, e)
		case e.want == terminate:
			e.move(Stopping)
			m.stop(ctx, id, e)
		case (e.want == drain || held) && e.state == Running:
			if err := e.bot.Drain(); err != nil {
				return 0, err
			}
			e.move(Draining)
			m.Log.InfoContext(ctx, "bot drains", "bot", id)
		}
	case Stopping:
		if e.over && e.stopped {
			m.release(id, e)
		}
	case Released:
	}
	return 0, nil
}

// ended prepares the next start of a bot that has ended by itself.
func (m *Manager) ended(ctx context.Context, id string, e *entry) {
	up := time.Since(e.started)
	m.Log.InfoContext(ctx, "bot ended by itself", "bot", id, "took", up)
	if up >= steady {
		e.pause.Reset()
	}
	e.bot, e.over = nil, false
	e.move(Starting)
	e.next = e.after(time.Now())
}

// after returns when the next start may be.
func (e *entry) after(now time.Time) time.Time {
	next := now.Add(e.pause.Next())
	e.attempts = slices.DeleteFunc(e.attempts, func(t time.Time) bool { return now.Sub(t) >= time.Hour })
	if len(e.attempts) >= maxAttempts {
		if room := e.attempts[len(e.attempts)-maxAttempts].Add(time.Hour); room.After(next) {
			next = room
		}
	}
	return next
}

// start starts a bot if it is time; m.mu is given up meanwhile.
func (m *Manager) start(ctx context.Context, id string, e *entry) (again time.Duration, err error) {
	if wait := time.Until(e.next); wait > 0 {
		return wait, nil
	}
	e.attempts = append(e.attempts, time.Now())
	m.mu.Unlock()
	b, err := m.Start(id)
	m.mu.Lock()
	e.err = err
	if err != nil {
		e.next = e.after(time.Now())
		again = time.Until(e.next)
		m.Log.WarnContext(ctx, "bot not started", "bot", id, "err", err, "again", again)
		return again, nil
	}
	e.move(Running)
	e.bot, e.over, e.started = b, false, time.Now()
	m.Log.InfoContext(ctx, "bot started", "bot", id)
	go func() {
		err := b.Wait()
		m.mu.Lock()
		e.over = true
		m.mu.Unlock()
		m.Log.Info("bot has ended", "bot", id, "err", err)
		m.loop.Wake(id)
	}()
	if e.want > keep || m.held[id] { // asked for meanwhile
		return time.Nanosecond, nil
	}
	return 0, nil
}

// stop ends a bot beside the steps, which it would hold up. Until nothing of
// it is left it is tried again, and its id is not released.
func (m *Manager) stop(ctx context.Context, id string, e *entry) {
	m.Log.InfoContext(ctx, "bot is told to end", "bot", id)
	b := e.bot
	go func() {
		pause := backoff.Exponential{Min: minPause, Max: maxPause}
		for {
			err := b.TerminateOrKill()
			if err == nil {
				break
			}
			m.Log.Warn("bot cannot be ended", "bot", id, "err", err)
			_ = pause.Sleep(context.WithoutCancel(ctx), 0)
		}
		m.mu.Lock()
		e.stopped = true
		m.mu.Unlock()
		m.loop.Wake(id)
	}()
}

// release forgets a bot; m.mu is given up meanwhile.
func (m *Manager) release(id string, e *entry) {
	e.move(Released)
	delete(m.bots, id)
	m.Log.Info("bot released", "bot", id)
	if len(m.bots) == 0 {
		close(m.empty)
		m.empty = make(chan struct{})
	}
	m.mu.Unlock()
	m.released(id)
	m.mu.Lock()
}
