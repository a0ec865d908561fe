package drone

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/backoff"
)

// Skew is how far the clocks of two servers of one queen may be apart: a lease
// given by one may end so much earlier on the other.
const Skew = time.Minute

// killTime is how long after its grace a bot may take to be gone.
const killTime = 15 * time.Second

// callLimit bounds one call of the queen.
const callLimit = 20 * time.Second

// Assignment is one time that a device was given to a drone.
type Assignment struct {
	Dut        string
	Generation int64 // 0 = the queen does not say
	Draining   bool
}

// Answer is what a queen says to a report.
type Answer struct {
	Unknown bool   // the drone is not known, or its lease is over
	Refused string // why this drone gets nothing new, and is to drain; "" = it does
	UUID    string
	Lease   time.Duration // from when the report was sent; 0 = see Expires
	Expires time.Time     // on the queen's clock
	Duts    []Assignment
}

// Queen is who assigns devices. Calls may be repeated.
type Queen interface {
	Report(ctx context.Context, uuid string, capacity int) (Answer, error)
	Release(ctx context.Context, uuid string, duts []Assignment) error
}

// Terms are what a drone asks of its queen.
type Terms struct {
	Capacity int           // devices at most
	Interval time.Duration // between reports; 0 = 1 min
}

// Agent gets the devices of its bots from a queen. Each start of a bot must be
// allowed by Admit.
type Agent struct {
	Queen   Queen
	Manager *Manager     // its Released is set by Run
	Terms   func() Terms // of the moment, see Changed
	Log     *slog.Logger // nil = nothing is logged

	mu       sync.Mutex
	uuid     string
	lease    time.Time                // when it ends; zero = there is none
	has      map[string]int64         // generation of what runs here
	grace    map[string]time.Duration // of the bots that run here
	giveBack map[string]int64         // released here, and not yet there
	given    map[string]time.Time     // released there: answers to what was sent before are old
	draining bool
	told     string // why the queen refuses
	wake     chan struct{}
	release  chan struct{}
	sooner   chan struct{} // the bots must end sooner than they had to
}

// until is when all bots are told to end: the one that may take longest is
// gone when the lease ends. a.mu is held, and there is a lease.
func (a *Agent) until() time.Time {
	longest := time.Duration(0)
	for _, g := range a.grace {
		longest = max(longest, g)
	}
	return a.lease.Add(-longest - killTime - Skew)
}

// Admit allows the start of a bot that may take grace to end once it is told
// to. It is to be asked right before the process starts: what comes before
// that, as a download, may outlast the lease. An Unavailable error says that
// the lease ends too soon, or that there is none.
func (a *Agent) Admit(id string, grace time.Duration) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	before, known := a.grace[id]
	old := a.until()
	a.grace[id] = grace
	until := a.until()
	if a.lease.IsZero() || !time.Now().Before(until) {
		if delete(a.grace, id); known {
			a.grace[id] = before
		}
		return skep.Errorf(skep.Unavailable, "the lease of device %s ends before a bot with a grace of %v would surely be gone", id, grace)
	}
	if until.Before(old) {
		poke(a.sooner)
	}
	return nil
}

// Run reports and does what the queen says until ctx ends. Then it terminates
// all bots, reports that it takes none until the last has ended, releases
// their devices, and returns. The Manager must run until then.
func (a *Agent) Run(ctx context.Context) error {
	a.start()
	m := a.Manager
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // reporting outlives ctx
	defer end()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end()
	wg.Go(func() { a.releases(life) })
	retry := backoff.Exponential{Min: time.Second, Max: 40 * time.Second}
	report := time.NewTimer(0)
	defer report.Stop()
	lost := time.NewTimer(time.Hour)
	defer lost.Stop()
	stop := ctx.Done()
	var ended chan struct{} // closed when all bots have ended that were told to
	var leaving, drained bool
	endAll := func() {
		m.Block()
		m.TerminateAll()
		if ended == nil {
			done := make(chan struct{})
			ended = done
			wg.Go(func() {
				if m.Wait(life) == nil {
					close(done)
				}
			})
		}
	}
	answers := make(chan answered, 1)
	calling, again := false, false
	due := time.Now()
	call := func() {
		if calling {
			again = true // what is under way says what was so before
			return
		}
		calling, again = true, false
		a.mu.Lock()
		uuid, capacity := a.uuid, a.Terms().Capacity
		if a.draining || leaving || ended != nil {
			capacity = 0
		}
		a.mu.Unlock()
		wg.Go(func() {
			sent := time.Now()
			c, cancel := context.WithTimeout(life, callLimit)
			defer cancel()
			ans, err := a.Queen.Report(c, uuid, capacity)
			answers <- answered{ans, err, sent}
		})
	}
	for {
		select {
		case <-stop:
			stop, leaving = nil, true
			endAll()
			call()
		case <-ended:
			ended = nil
			if leaving {
				a.giveAllBack(life)
				return ctx.Err()
			}
			a.forgetLease()
			m.Unblock()
			if a.isDraining() {
				m.Block()
			}
			report.Reset(retry.Next())
		case <-lost.C:
			if wait := time.Until(a.end()); wait > 0 {
				lost.Reset(wait)
				continue
			}
			a.log().Warn("contact with the queen is lost, or its lease is too short: all bots end before it")
			endAll()
		case <-a.sooner:
			lost.Reset(time.Until(a.end()))
		case <-a.wake: // drain, undrain, or other terms
			if on := a.isDraining(); on != drained {
				drained = on
				if on {
					m.Block()
					m.DrainAll()
				} else if ended == nil && !leaving {
					m.Unblock()
					for _, id := range m.Active() {
						m.Undrain(id)
					}
				}
			}
			report.Reset(0)
		case <-report.C:
			call()
			now := time.Now()
			if due.After(now) || now.Sub(due) > a.interval() {
				due = now
			}
			due = due.Add(a.interval())
			report.Reset(time.Until(due))
		case r := <-answers:
			calling = false
			switch {
			case r.err != nil:
				a.log().Warn("report to the queen", "err", r.err)
				if a.unregistered() {
					report.Reset(retry.Next())
				}
			case r.Unknown:
				a.log().Warn("the queen does not know this drone any more: all bots end")
				a.unknown()
				endAll()
				report.Reset(retry.Next())
			case r.Refused != "":
				a.log().Warn("the queen gives this drone nothing new: its bots drain", "why", r.Refused)
				a.refused(r, ended != nil)
				lost.Reset(time.Until(a.end()))
				if a.unregistered() {
					report.Reset(retry.Next())
				}
			default:
				retry.Reset()
				a.apply(r, ended != nil)
				lost.Reset(time.Until(a.end()))
			}
			if again {
				call()
			}
		}
	}
}

type answered struct {
	Answer
	err  error
	sent time.Time
}

func (a *Agent) start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	a.Manager.Released = a.released
}

func (a *Agent) init() {
	if a.wake == nil {
		a.wake, a.release, a.sooner = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
		a.has, a.giveBack, a.given = map[string]int64{}, map[string]int64{}, map[string]time.Time{}
		a.grace = map[string]time.Duration{}
	}
}

func (a *Agent) interval() time.Duration { return cmp.Or(a.Terms().Interval, time.Minute) }

func (a *Agent) log() *slog.Logger {
	if a.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.Log
}

// Drain takes no new devices and gives back those that it has as their bots
// finish; Undrain takes that back.
func (a *Agent) Drain(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	if a.draining != on {
		a.draining = on
		poke(a.wake)
	}
}

// Changed says that Terms, or what the Queen says of the drone, are others: the
// agent reports at once.
func (a *Agent) Changed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.init()
	poke(a.wake)
}

func (a *Agent) isDraining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.draining
}

func (a *Agent) unregistered() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.uuid == ""
}

// end is when all bots must be told to end.
func (a *Agent) end() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease.IsZero() {
		return time.Now().Add(time.Hour)
	}
	return a.until()
}

func (a *Agent) forgetLease() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lease = time.Time{}
	a.uuid = ""
}

// unknown forgets a lease that the queen does not know any more.
func (a *Agent) unknown() {
	a.forgetLease()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = ""
	clear(a.giveBack) // nobody's any more
}

// refused lets all bots drain. Their lease goes on if the queen says so; else
// it lasts as long as it does.
func (a *Agent) refused(r answered, ending bool) {
	if r.UUID != "" && (r.Lease > 0 || !r.Expires.IsZero()) {
		for i := range r.Duts {
			r.Duts[i].Draining = true
		}
		a.apply(r, ending)
		return
	}
	a.mu.Lock()
	a.told = r.Refused
	a.mu.Unlock()
	a.Manager.DrainAll()
}

// apply does what an answer says: the lease first, then who drains, comes and
// goes.
func (a *Agent) apply(r answered, ending bool) {
	m := a.Manager
	assigned := map[string]bool{}
	var add, drain, end []string
	a.mu.Lock()
	a.uuid, a.told, a.lease = r.UUID, r.Refused, r.Expires
	if r.Lease > 0 {
		a.lease = r.sent.Add(r.Lease)
	}
	if ending || !time.Now().Before(a.until()) { // nothing may run
		a.mu.Unlock()
		return
	}
	for _, d := range r.Duts {
		assigned[d.Dut] = true
		gen, back := a.giveBack[d.Dut]
		if back && d.Generation > gen { // it is this drone's anew
			delete(a.giveBack, d.Dut)
			back = false
		}
		_, here := a.has[d.Dut]
		old := !here && r.sent.Before(a.given[d.Dut])
		switch {
		case back || old: // it was released: what the queen says of it is old
		case d.Draining:
			a.has[d.Dut] = d.Generation
			drain = append(drain, d.Dut)
		case !a.draining:
			a.has[d.Dut] = d.Generation
			add = append(add, d.Dut)
		case !here: // it drains, and got one nevertheless
			a.giveBack[d.Dut] = d.Generation
			poke(a.release)
		}
	}
	if len(a.giveBack) > 0 {
		poke(a.release)
	}
	for dut, t := range a.given {
		if r.sent.After(t) {
			delete(a.given, dut)
		}
	}
	a.mu.Unlock()
	for _, id := range m.Active() {
		if !assigned[id] {
			end = append(end, id)
		}
	}
	for _, id := range drain {
		m.Drain(id)
	}
	for _, id := range add {
		m.Add(id)
	}
	for _, id := range end {
		m.Terminate(id)
	}
}

// released is told by the manager that nothing of a bot is left.
func (a *Agent) released(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.grace, id)
	gen, ok := a.has[id]
	if !ok {
		return
	}
	delete(a.has, id)
	a.giveBack[id] = gen
	poke(a.release)
}

// releases tells the queen what was released, until ctx ends. Reports do not
// wait for it.
func (a *Agent) releases(ctx context.Context) {
	retry := backoff.Exponential{Min: time.Second, Max: time.Minute}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.release:
		}
		for a.giveSomeBack(ctx) != nil {
			if retry.Sleep(ctx, 0) != nil {
				return
			}
		}
		retry.Reset()
	}
}

func (a *Agent) giveSomeBack(ctx context.Context) error {
	a.mu.Lock()
	uuid := a.uuid
	var some []Assignment
	for dut, gen := range a.giveBack {
		some = append(some, Assignment{Dut: dut, Generation: gen})
	}
	a.mu.Unlock()
	if uuid == "" || len(some) == 0 {
		return nil
	}
	slices.SortFunc(some, func(x, y Assignment) int { return strings.Compare(x.Dut, y.Dut) })
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := a.Queen.Release(ctx, uuid, some); err != nil {
		a.log().Warn("release of devices", "err", err)
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for _, s := range some {
		if gen, ok := a.giveBack[s.Dut]; ok && gen == s.Generation {
			delete(a.giveBack, s.Dut)
			a.given[s.Dut] = now
		}
	}
	return nil
}

// giveAllBack tries to release what is left before the end; the end of the
// lease does it otherwise.
func (a *Agent) giveAllBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callLimit/2)
	defer cancel()
	retry := backoff.Exponential{}
	a.mu.Lock()
	uuid := a.uuid
	a.mu.Unlock()
	if uuid == "" {
		return
	}
	// What was assigned since the last answer goes back too: nothing runs here.
	if last, err := a.Queen.Report(ctx, uuid, 0); err == nil {
		a.mu.Lock()
		for _, d := range last.Duts {
			a.giveBack[d.Dut] = d.Generation
		}
		a.mu.Unlock()
	}
	for a.giveSomeBack(ctx) != nil && retry.Sleep(ctx, 0) == nil {
	}
}

// AgentStatus is what an Agent says of itself.
type AgentStatus struct {
	UUID      string    `json:"drone_uuid,omitempty"`
	LeaseEnds time.Time `json:"bots_end_at,omitzero"` // unless the queen answers before
	Capacity  int       `json:"capacity"`
	Releasing int       `json:"releasing"` // devices that the queen does not know to be free
	Refused   string    `json:"refused,omitempty"`
}

// Status returns what is known of the lease.
func (a *Agent) Status() AgentStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := AgentStatus{UUID: a.uuid, Capacity: a.Terms().Capacity, Releasing: len(a.giveBack), Refused: a.told}
	if !a.lease.IsZero() {
		s.LeaseEnds = a.until()
	}
	return s
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
