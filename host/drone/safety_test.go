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
	live   map[string]string // device → drone whose bot lives
	starts int
	both   int // devices with two bots
	n      int
}

const (
	simGrace = 3 * time.Minute
	simLease = 10 * time.Minute
)

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), drones: map[string]*store.Drone{}, duts: map[string]*store.Dut{}, live: map[string]string{}}
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

// wire is one drone's way to the queen.
type wire struct {
	w   *world
	key string

	mu  sync.Mutex
	cut time.Time // no call comes through before
}

var errLost = errors.New("lost")

// carry makes a call as the network lets it.
func (c *wire) carry(ctx context.Context, call func()) error {
	w := c.w
	c.mu.Lock()
	cut := time.Until(c.cut) > 0
	c.mu.Unlock()
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
	case cut || luck < 5:
		wait(time.Hour)
		return errLost
	case luck < 10: // it arrives when nobody waits for it any more
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

func (c *wire) Report(ctx context.Context, uuid string, capacity int) (a Answer, err error) {
	done := make(chan Answer, 1)
	if err := c.carry(ctx, func() { done <- c.w.report(c.key, uuid, capacity) }); err != nil {
		return Answer{}, err
	}
	return <-done, nil
}

func (c *wire) Release(ctx context.Context, uuid string, duts []Assignment) error {
	return c.carry(ctx, func() { c.w.giveBack(uuid, duts) })
}

// start starts a bot that takes its time to end, and looks whether it is
// alone.
func (w *world) start(key, dut string) (bot.Bot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rng.IntN(10) == 0 {
		return nil, errors.New("no")
	}
	w.starts++
	if other := w.live[dut]; other != "" {
		w.both++
		w.t.Errorf("%s starts a bot for %s while that of %s lives", key, dut, other)
	}
	w.live[dut] = key
	b := bot.NewFakeBot()
	slow, hard := w.upTo(30*time.Minute), w.upTo(simGrace)
	end := func(after time.Duration) {
		time.Sleep(after)
		w.mu.Lock()
		if w.live[dut] == key {
			delete(w.live, dut)
		}
		w.mu.Unlock()
		b.Stop()
	}
	var once sync.Once
	b.DrainFunc = func(*bot.FakeBot) error { once.Do(func() { go end(slow) }); return nil }
	b.TerminateFunc = func(*bot.FakeBot) error { end(hard); return nil }
	if w.rng.IntN(3) == 0 {
		crash := w.upTo(time.Hour)
		go func() {
			select {
			case <-w.stop.Done():
			case <-time.After(crash):
				end(0)
			}
		}()
	}
	return b, nil
}

// host runs drones with one key, one after the other.
func (w *world) host(key string) {
	c := &wire{w: w, key: key}
	go func() { // partitions
		for w.stop.Err() == nil {
			d := w.draw(func(*rand.Rand) time.Duration { return w.upTo(40 * time.Minute) })
			select {
			case <-w.stop.Done():
				return
			case <-time.After(d):
			}
			c.mu.Lock()
			c.cut = time.Now().Add(w.draw(func(*rand.Rand) time.Duration { return w.upTo(25 * time.Minute) }))
			c.mu.Unlock()
		}
	}()
	for w.stop.Err() == nil {
		m := &Manager{Start: func(id string) (bot.Bot, error) { return w.start(key, id) }}
		a := &Agent{Queen: c, Manager: m, Capacity: 3, Interval: time.Minute, Grace: simGrace}
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
					a.Drain(on)
				}
			}
		})
		_ = a.Run(ctx)
		cancel()
		end()
		parts.Wait()
	}
}

// Promise B1: whatever the network does, whoever drains, crashes and comes
// back, and however far the clocks of the queen's servers are apart within
// ±30 s: a device never has two bots.
func TestNeverTwoBotsForADevice(t *testing.T) {
	starts := 0
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
		})
		if t.Failed() {
			t.Fatalf("seed %d, schedule %d", seed, i)
		}
	}
	t.Logf("%d schedules, %d bots started", *schedules, starts)
	if starts < *schedules {
		t.Errorf("%d bots were started in %d schedules: this shows nothing", starts, *schedules)
	}
}
