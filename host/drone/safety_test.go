package drone

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/skepdev/skep/host/bot"
	"github.com/skepdev/skep/queen"
	"github.com/skepdev/skep/store"
)

var schedules = flag.Int("schedules", 40, "random schedules of TestNeverTwoBotsForADevice; 100000 is the long form")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a queen of two servers whose clocks are off, drones, and a network
// that delays, loses and repeats what it likes.
type world struct {
	t    *testing.T
	stop context.Context

	mu     sync.Mutex
	rng    *rand.Rand
	skew   [2]time.Duration // of the servers
	drones map[string]*store.Drone
	duts   map[string]*store.Dut
	live   map[string]*simBot // by device
	starts int
	kills  int
	both   int // devices with two bots
	n      int
}

const (
	simGrace = 6 * time.Minute // the longest of a bot
	simLease = 10 * time.Minute
	fetching = 5 * time.Minute // the longest of a download, as in package bot
)

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), drones: map[string]*store.Drone{}, duts: map[string]*store.Dut{}, live: map[string]*simBot{}}
	for i := range w.skew {
		w.skew[i] = w.upTo(Skew) - Skew/2
	}
	for i := range 5 {
		name := fmt.Sprint("dut", i)
		w.duts[name] = &store.Dut{Name: name}
	}
	return w
}

func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d) + 1)) }

func (w *world) draw(f func(r *rand.Rand) time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return f(w.rng)
}

// settle does on one server what the queen does: it ends leases by that
// server's clock, and does what the queen's own Plan says.
func (w *world) settle(server int) {
	now := time.Now().Add(w.skew[server])
	for uuid, d := range w.drones {
		if !d.Expires.After(now) {
			delete(w.drones, uuid)
			for _, dut := range w.duts {
				if dut.Drone == uuid {
					dut.Drone, dut.Leaving = "", false
				}
			}
		}
	}
	var drones []store.Drone
	for _, d := range w.drones {
		drones = append(drones, *d)
	}
	var duts []store.Dut
	for _, d := range w.duts {
		duts = append(duts, *d)
	}
	slices.SortFunc(duts, func(a, b store.Dut) int { return compareNames(a.Name, b.Name) })
	for _, m := range queen.Plan(now, drones, duts) {
		d := w.duts[m.Dut]
		if m.Leave {
			d.Leaving = true
		} else if d.Drone == "" {
			d.Drone, d.Leaving = m.Drone, false
			d.Generation++
		}
	}
}

func compareNames(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (w *world) report(key, uuid string, capacity int) Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	server := w.rng.IntN(2)
	now := time.Now().Add(w.skew[server])
	if uuid == "" {
		for _, d := range w.drones {
			if d.Key == key && d.Expires.After(now) {
				uuid = d.UUID
			}
		}
		for _, dut := range w.duts { // as Queen.Report does with RenewDuts
			if uuid != "" && dut.Drone == uuid {
				dut.Generation++
			}
		}
		if uuid == "" {
			w.n++
			uuid = fmt.Sprint("drone", w.n)
			w.drones[uuid] = &store.Drone{UUID: uuid, Key: key}
		}
	} else if d := w.drones[uuid]; d == nil || !d.Expires.After(now) {
		return Answer{Unknown: true}
	}
	d := w.drones[uuid]
	d.Capacity, d.Expires = capacity, now.Add(simLease)
	w.settle(server)
	a := Answer{UUID: uuid, Lease: simLease, Expires: d.Expires}
	for _, dut := range w.duts {
		if dut.Drone == uuid {
			a.Duts = append(a.Duts, Assignment{Dut: dut.Name, Generation: dut.Generation, Draining: dut.Gone || dut.Leaving})
		}
	}
	return a
}

func (w *world) giveBack(uuid string, duts []Assignment) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, g := range duts {
		if d := w.duts[g.Dut]; d.Drone == uuid && d.Generation == g.Generation {
			d.Drone, d.Leaving = "", false
		}
	}
	w.settle(w.rng.IntN(2))
}

// line is one host's way to the queen.
type line struct {
	mu  sync.Mutex
	cut time.Time // no call comes through before
}

func (l *line) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.cut) > 0
}

// process is one drone of a host, from its start to its end.
type process struct {
	w     *world
	key   string
	line  *line
	agent *Agent
	doom  chan struct{} // closed when it is to be killed
	dead  chan struct{} // closed when it is
	once  sync.Once
}

func (p *process) kill() { p.once.Do(func() { close(p.doom) }) }

func (p *process) isDead() bool {
	select {
	case <-p.dead:
		return true
	default:
		return false
	}
}

var errLost = errors.New("lost")

// carry makes a call as the network lets it. What a process sent before it was
// killed is still under way.
func (p *process) carry(ctx context.Context, call func()) error {
	w := p.w
	wait := func(d time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(d):
			return true
		}
	}
	luck := w.draw(func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(100)) })
	delay := w.draw(func(*rand.Rand) time.Duration { return w.upTo(3 * time.Second) })
	late := w.draw(func(*rand.Rand) time.Duration { return w.upTo(25 * time.Minute) })
	switch {
	case p.isDead() || p.line.isCut() || luck < 5:
		wait(time.Hour)
		return errLost
	case luck < 10: // it arrives when nobody waits for it any more, perhaps because nobody is left
		if luck < 7 {
			p.kill()
		}
		go func() {
			select {
			case <-w.stop.Done():
			case <-time.After(late):
				call()
			}
		}()
		return errLost
	case luck < 15: // the answer is lost
		if wait(delay) {
			call()
		}
		return errLost
	default:
		if !wait(delay) {
			return errLost
		}
		call()
		if !wait(delay) {
			return errLost
		}
		return nil
	}
}

func (p *process) Report(ctx context.Context, uuid string, capacity int) (a Answer, err error) {
	done := make(chan Answer, 1)
	if err := p.carry(ctx, func() { done <- p.w.report(p.key, uuid, capacity) }); err != nil {
		return Answer{}, err
	}
	return <-done, nil
}

func (p *process) Release(ctx context.Context, uuid string, duts []Assignment) error {
	return p.carry(ctx, func() { p.w.giveBack(uuid, duts) })
}

// simBot is a bot that takes its time to end.
type simBot struct {
	*bot.FakeBot
	w   *world
	dut string
	key string // of its host
}

// end ends the bot after a while; it may be called by all who like.
func (b *simBot) end(after time.Duration) {
	time.Sleep(after)
	b.w.mu.Lock()
	if b.w.live[b.dut] == b {
		delete(b.w.live, b.dut)
	}
	b.w.mu.Unlock()
	b.Stop()
}

// start starts a bot that takes its time to end, and looks whether it is
// alone. The start takes its time, too: code is downloaded.
func (p *process) start(dut string) (bot.Bot, error) {
	w := p.w
	time.Sleep(w.draw(func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(2)) * w.upTo(fetching) }))
	grace := w.draw(func(*rand.Rand) time.Duration { return w.upTo(simGrace) }) // as configured now
	if err := p.agent.Admit(dut, grace); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if p.isDead() || w.rng.IntN(10) == 0 {
		return nil, errors.New("no")
	}
	w.starts++
	if other := w.live[dut]; other != nil {
		w.both++
		w.t.Errorf("%s starts a bot for %s while that of %s lives", p.key, dut, other.key)
	}
	b := &simBot{FakeBot: bot.NewFakeBot(), w: w, dut: dut, key: p.key}
	w.live[dut] = b
	slow, hard := w.upTo(30*time.Minute), w.upTo(grace)
	var once sync.Once
	b.DrainFunc = func(*bot.FakeBot) error { once.Do(func() { go b.end(slow) }); return nil }
	b.TerminateFunc = func(*bot.FakeBot) error { b.end(hard); return nil }
	crash := 4 * time.Hour // it does not
	if w.rng.IntN(3) == 0 {
		crash = w.upTo(time.Hour)
	}
	go func() {
		select {
		case <-w.stop.Done():
		case <-p.dead: // bots die with their drone
			b.end(0)
		case <-time.After(crash):
			b.end(0)
		}
	}()
	return b, nil
}

// run runs one drone until it leaves in order or is killed. What goes on after
// a kill is not the process any more, but what the test has of it.
func (p *process) run(rest *sync.WaitGroup) {
	w := p.w
	m := &Manager{Start: p.start}
	p.agent = &Agent{Queen: p, Manager: m, Terms: func() Terms { return Terms{Capacity: 3} }}
	life, end := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	parts.Go(func() { _ = m.Run(life) })
	ctx, cancel := context.WithTimeout(w.stop, w.draw(func(*rand.Rand) time.Duration { return 10*time.Minute + w.upTo(3*time.Hour) }))
	parts.Go(func() { // drains and undrains
		for on := true; ; on = !on {
			d := w.draw(func(*rand.Rand) time.Duration { return w.upTo(90 * time.Minute) })
			select {
			case <-ctx.Done():
				return
			case <-time.After(d):
				p.agent.Drain(on)
			}
		}
	})
	left := make(chan struct{})
	rest.Go(func() {
		_ = p.agent.Run(ctx)
		cancel()
		end()
		parts.Wait()
		close(left)
	})
	if w.draw(func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(2)) }) == 0 {
		soon := time.AfterFunc(w.draw(func(*rand.Rand) time.Duration { return w.upTo(time.Hour) }), p.kill)
		defer soon.Stop()
	}
	select {
	case <-left:
	case <-p.doom:
		close(p.dead)
		cancel()
		w.mu.Lock()
		w.kills++
		w.mu.Unlock()
		// The next one clears away what is left before it starts any.
		time.Sleep(time.Second + w.draw(func(*rand.Rand) time.Duration { return w.upTo(time.Minute) }))
	}
}

// host runs drones with one key, one after the other.
func (w *world) host(key string) {
	l := &line{}
	go func() { // partitions
		for w.stop.Err() == nil {
			d := w.draw(func(*rand.Rand) time.Duration { return w.upTo(40 * time.Minute) })
			select {
			case <-w.stop.Done():
				return
			case <-time.After(d):
			}
			l.mu.Lock()
			l.cut = time.Now().Add(w.draw(func(*rand.Rand) time.Duration { return w.upTo(25 * time.Minute) }))
			l.mu.Unlock()
		}
	}()
	var rest sync.WaitGroup
	for w.stop.Err() == nil {
		(&process{w: w, key: key, line: l, doom: make(chan struct{}), dead: make(chan struct{})}).run(&rest)
	}
	rest.Wait()
}

// Promise B1: whatever the network does, whoever drains, is killed and comes
// back, however long bots may take to end, and however far the clocks of the queen's servers are apart within
// ±30 s: a device never has two bots.
func TestNeverTwoBotsForADevice(t *testing.T) {
	starts, kills := 0, 0
	seed := rand.Uint64()
	for i := range *schedules {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, seed+uint64(i))
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
			defer cancel()
			w.stop = ctx
			var hosts sync.WaitGroup
			for h := range 3 {
				hosts.Go(func() { w.host(fmt.Sprint("host", h)) })
			}
			hosts.Go(func() { // what the queen does by itself
				for ctx.Err() == nil {
					w.mu.Lock()
					w.settle(w.rng.IntN(2))
					w.mu.Unlock()
					time.Sleep(time.Second)
				}
			})
			hosts.Wait()
			time.Sleep(time.Hour) // drained bots end
			starts += w.starts
			kills += w.kills
		})
		if t.Failed() {
			t.Fatalf("seed %d, schedule %d", seed, i)
		}
	}
	t.Logf("%d schedules, %d bots started, %d drones killed", *schedules, starts, kills)
	if starts < *schedules || kills < *schedules {
		t.Errorf("%d bots were started and %d drones killed in %d schedules: this shows nothing", starts, kills, *schedules)
	}
}
