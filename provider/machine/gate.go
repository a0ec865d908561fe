package machine

import (
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/backoff"
)

// gates hold how much each pool asks of its cloud at once: little at first and
// after a failure, more with each success. So a pool whose every call fails
// makes few calls and keeps few workers busy, whatever its size. promises P5,
// P12. They are hints: a restart begins with little again.
type gates struct {
	mu    sync.Mutex
	pools map[string]*gate
}

type gate struct {
	width   int
	last    time.Time            // success
	failed  time.Time            // last failure
	loser   string               // the machine that failed last, until its next turn
	inside  map[string]time.Time // machines, since when
	asking  map[string]bool      // those of which the first call was not answered yet
	waiting map[string]uint64    // machines, by their number in line
	line    []turn               // those, who came first at the front, and some that wait no more
	turns   uint64               // the last number
	pause   backoff.Exponential  // after calls that are worth another try
	until   time.Time            // nobody enters before: that pause is over then
}

// turn is a place in line. It counts if the machine waits with this number.
type turn struct {
	id string
	n  uint64
}

const (
	widest = 256 // machines of one pool that are made at once
	// idleWidth is the width of a pool of which nothing was made for idleAfter:
	// what it was then says little.
	idleWidth = 4
	idleAfter = time.Minute
	// askAtOnce bounds the first calls of a pool that were not answered: when its
	// cloud begins to refuse, so many are refused before it pauses.
	askAtOnce = 3
)

// enter reports whether a machine may be asked for now. If not, it is among
// those that leave returns when there is room, and it is to ask again after
// wait, if that is not 0.
//
// first says that it is asked for the first time; answered tells when that is
// over.
func (g *gates) enter(prefix, id string, first bool, now time.Time) (ok bool, wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		p = &gate{width: 1, inside: map[string]time.Time{}, asking: map[string]bool{}, waiting: map[string]uint64{}}
		p.pause.Min, p.pause.Max = 200*time.Millisecond, time.Minute
		if g.pools == nil {
			g.pools = map[string]*gate{}
		}
		g.pools[prefix] = p
	}
	if now.Sub(p.last) > idleAfter {
		p.width = min(p.width, idleWidth)
	}
	_, is := p.inside[id]
	pausing := p.until.After(now)
	if !is && (pausing || len(p.inside) >= p.width) || first && !p.asking[id] && len(p.asking) >= askAtOnce {
		p.wait(id)
		if pausing && p.first() == id { // who failed wakes it; should that one be gone, it comes by itself
			wait = p.until.Sub(now)
		}
		return false, wait
	}
	if !is {
		p.inside[id] = now
	}
	if first {
		p.asking[id] = true
	}
	delete(p.waiting, id)
	return true, 0
}

// full reports whether enter would refuse a machine, and until when its pool
// pauses if that is why.
func (g *gates) full(prefix, id string, first bool, now time.Time) (until time.Time, full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		return time.Time{}, false
	}
	_, is := p.inside[id]
	asks := first && !p.asking[id] && len(p.asking) >= askAtOnce
	switch {
	case is:
		return time.Time{}, asks
	case p.until.After(now):
		return p.until, true
	}
	return time.Time{}, asks || len(p.inside) >= p.width
}

// wait puts a machine at the end of the line, unless it is in it.
func (p *gate) wait(id string) {
	if p.waiting[id] != 0 {
		return
	}
	p.turns++
	p.waiting[id] = p.turns
	if len(p.line) > 2*len(p.waiting)+16 {
		p.line = slices.DeleteFunc(p.line, func(t turn) bool { return p.waiting[t.id] != t.n })
	}
	p.line = append(p.line, turn{id, p.turns})
}

// first is who waits longest; "" = nobody does.
func (p *gate) first() string {
	for len(p.line) > 0 && p.waiting[p.line[0].id] != p.line[0].n {
		p.line = p.line[1:]
	}
	if len(p.line) == 0 {
		return ""
	}
	return p.line[0].id
}

// yields reports once after a machine's failure that others of its pool go
// first, which may have better luck: those that it returns, and those that wait
// for the end of the same pause.
func (g *gates) yields(prefix, id string) (others []string, yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil || p.loser != id {
		return nil, false
	}
	p.loser = ""
	return p.next(), true
}

// answered notes that the first call about a machine is over, and returns those
// that may enter now.
func (g *gates) answered(prefix, id string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		return nil
	}
	delete(p.asking, id)
	return p.next()
}

// next are waiting machines that there is room for, all of which may be asked
// for the first time: who waits longest comes first.
func (p *gate) next() (next []string) {
	n := min(askAtOnce-len(p.asking), p.width-len(p.inside))
	if n <= 0 || p.first() == "" {
		return nil
	}
	for _, t := range p.line {
		if p.waiting[t.id] != t.n {
			continue
		}
		if next = append(next, t.id); len(next) == n {
			break
		}
	}
	return next
}

// outcome of what was asked for.
type outcome uint8

const (
	nothing   outcome = iota // it is not asked for any more
	succeeded                // there may be more at once
	failed                   // one at a time from here on
)

// leave notes how it went with a machine, and returns those that may enter now.
func (g *gates) leave(prefix, id string, how outcome, now time.Time) (next []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		return nil
	}
	entered := p.inside[id]
	delete(p.inside, id)
	delete(p.waiting, id)
	switch how {
	case succeeded:
		p.pause.Reset()
		p.until = time.Time{}
		if entered.After(p.failed) { // else it says nothing of how it is now
			p.width, p.last = min(p.width*2, widest), now
		}
	case failed:
		p.width, p.failed, p.loser = 1, now, id
	case nothing:
	}
	return p.next()
}

// hold notes that a call failed in a way that is worth another try, and returns
// how long none of the pool's machines is to be tried. Then the next one in line
// has its turn, and this one is behind the others: it may be the only one that
// fails, and all of a cloud that is away is asked by one at a time.
func (g *gates) hold(prefix, id string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		return rest
	}
	p.width = 1
	delete(p.inside, id)
	delete(p.asking, id)
	if !p.until.After(now) {
		p.until = now.Add(p.pause.Next())
	}
	if p.first() != "" {
		p.loser = id
	}
	p.wait(id)
	return p.until.Sub(now)
}

// forgive ends a pool's pause: what made it fail may be gone.
func (g *gates) forgive(prefix string) (next []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pools[prefix]
	if p == nil {
		return nil
	}
	p.until, p.loser = time.Time{}, ""
	p.pause.Reset()
	return p.next()
}

// drop forgets a pool that is another's by now.
func (g *gates) drop(prefix string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pools, prefix)
}

// zones remember, by pool and zone, where there was no room. promise P11.
type zones struct {
	mu   sync.Mutex
	full map[[2]string]*zone
}

type zone struct {
	errors []time.Time // the last ones
	pause  time.Duration
	until  time.Time
}

// After so many errors in so long a zone is skipped, with pauses that double.
const (
	zoneErrors   = 3
	zoneWindow   = 10 * time.Minute
	zoneMinPause = time.Minute
	zoneMaxPause = 30 * time.Minute
)

func (z *zones) exhausted(prefix, name string, now time.Time) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.full == nil {
		z.full = map[[2]string]*zone{}
	}
	key := [2]string{prefix, name}
	f := z.full[key]
	if f == nil {
		f = &zone{}
		z.full[key] = f
	}
	f.errors = append(slices.DeleteFunc(f.errors, func(t time.Time) bool { return now.Sub(t) > zoneWindow }), now)
	// Once it was skipped, one more error is enough to skip it again.
	if len(f.errors) >= zoneErrors || f.pause > 0 {
		f.pause = min(max(2*f.pause, zoneMinPause), zoneMaxPause)
		f.until, f.errors = now.Add(f.pause), nil
	}
}

func (z *zones) worked(prefix, name string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.full, [2]string{prefix, name})
}

// FullZone is a zone that is left out as it had no room.
type FullZone struct {
	Zone  string
	Until time.Time
}

// out are the zones of a pool that are left out now, of names.
func (z *zones) out(prefix string, names []string, now time.Time) (out []FullZone) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, n := range names {
		if f := z.full[[2]string{prefix, n}]; f != nil && f.until.After(now) {
			out = append(out, FullZone{n, f.until})
		}
	}
	return out
}

// choose returns the zone for the next machine: the first in which there was
// room last, and when; later than now if all are skipped.
func (z *zones) choose(prefix string, names []string, now time.Time) (name string, at time.Time) {
	z.mu.Lock()
	defer z.mu.Unlock()
	for _, n := range names {
		f := z.full[[2]string{prefix, n}]
		if f == nil || !f.until.After(now) {
			return n, now
		}
		if at.IsZero() || f.until.Before(at) {
			name, at = n, f.until
		}
	}
	return name, at
}
