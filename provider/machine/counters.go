package machine

import (
	"sync"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// counters count what was done, by pool: their number does not grow with the
// machines. promise P25.
type counters struct {
	mu    sync.Mutex
	pools map[string]*PoolCounts
}

// PoolCounts are counts of one pool since the start of this process.
type PoolCounts struct {
	Creates    uint64 // calls, repeated ones too
	Destroys   uint64
	Created    Distribution            // seconds from plan to instance
	Connected  Distribution            // seconds from instance to bot
	ReadyAfter Distribution            // seconds from plan to bot
	Left       Distribution            // seconds from the request to end until it was gone, or had stopped
	Failures   map[FailureCount]uint64 // of creation; at most maxFailures
}

// FailureCount is what failures are counted by.
type FailureCount struct {
	Class provider.Class // OtherFailure = there are too many kinds
	Zone  string
}

// OtherFailure is the class of failures of which a pool has too many kinds.
const OtherFailure provider.Class = "other"

// maxFailures bounds how many kinds of failures a pool has. ADR 84.
const maxFailures = 8

// TimeBounds are the upper bounds of a Distribution's buckets, in seconds; the
// last bucket has none. Each costs three series a pool. promise P25.
var TimeBounds = [...]float64{1, 10, 60, 300, 1800}

// Distribution of times.
type Distribution struct {
	Buckets [len(TimeBounds) + 1]uint64
	Count   uint64
	Seconds float64
}

func (d *Distribution) add(t time.Duration) {
	s := max(t, 0).Seconds()
	i := 0
	for i < len(TimeBounds) && s > TimeBounds[i] {
		i++
	}
	d.Buckets[i]++
	d.Count++
	d.Seconds += s
}

func (c *counters) pool(prefix string, fn func(*PoolCounts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pools == nil {
		c.pools = map[string]*PoolCounts{}
	}
	p := c.pools[prefix]
	if p == nil {
		p = &PoolCounts{Failures: map[FailureCount]uint64{}}
		c.pools[prefix] = p
	}
	fn(p)
}

func (c *counters) create(v *store.VM)  { c.pool(v.Prefix, func(p *PoolCounts) { p.Creates++ }) }
func (c *counters) destroy(v *store.VM) { c.pool(v.Prefix, func(p *PoolCounts) { p.Destroys++ }) }

func (c *counters) created(v *store.VM, after time.Duration) {
	c.pool(v.Prefix, func(p *PoolCounts) { p.Created.add(after) })
}

func (c *counters) connected(v *store.VM) {
	c.pool(v.Prefix, func(p *PoolCounts) {
		p.Connected.add(v.Connected.Sub(v.Up()))
		p.ReadyAfter.add(v.Connected.Sub(later(v.Expanded, v.Started)))
	})
}

// ready is how long machines of a pool took from plan to bot in the mean; 0 =
// none came since this process began.
func (c *counters) ready(prefix string) time.Duration {
	return c.mean(prefix, func(p *PoolCounts) *Distribution { return &p.ReadyAfter })
}

func (c *counters) mean(prefix string, of func(*PoolCounts) *Distribution) (mean time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.pools[prefix]; p != nil && of(p).Count > 0 {
		mean = max(time.Duration(of(p).Seconds/float64(of(p).Count)*float64(time.Second)), 1)
	}
	return mean
}

func (c *counters) left(v *store.VM, now time.Time) {
	if !v.Asked.IsZero() {
		c.pool(v.Prefix, func(p *PoolCounts) { p.Left.add(now.Sub(v.Asked)) })
	}
}

func (c *counters) failed(v *store.VM, err error) {
	key := FailureCount{provider.ClassOf(err), v.Zone}
	c.pool(v.Prefix, func(p *PoolCounts) {
		if _, known := p.Failures[key]; !known && len(p.Failures) >= maxFailures-1 {
			key = FailureCount{Class: OtherFailure}
		}
		p.Failures[key]++
	})
}

// forget drops what was counted of a pool that is gone.
func (c *counters) forget(prefix string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pools, prefix)
}
