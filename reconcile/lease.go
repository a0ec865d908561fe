package reconcile

import (
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// Lease is Holder's right to Key until an instant. Generation grows with every
// new holder of the key and never returns: what names an older one is late and
// is refused.
type Lease struct {
	Key        string
	Holder     string
	Generation uint64
	Until      time.Time
}

// Live reports whether the lease is in force now, with margin to spare. The
// holder asks with a margin that covers clocks and the time to stop; who would
// give the key to another asks with 0 or less.
func (l Lease) Live(now time.Time, margin time.Duration) bool {
	return l.Generation > 0 && now.Add(margin).Before(l.Until)
}

// Leases are leases in memory, for keys that end with the process. The zero
// value is empty and ready. It may be used by many at once.
type Leases struct {
	mu   sync.Mutex
	held map[string]Lease
	last uint64
}

// Take gives key to holder until an instant, or returns a Conflict error while
// another's lease is in force. A holder that takes again what it holds keeps
// its generation.
func (t *Leases) Take(key, holder string, now, until time.Time) (Lease, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.held[key]
	if old.Live(now, 0) && old.Holder != holder {
		return Lease{}, skep.Errorf(skep.Conflict, "%s is held by %s until %s", key, old.Holder, old.Until.UTC().Format(time.RFC3339))
	}
	l := Lease{Key: key, Holder: holder, Generation: old.Generation, Until: until}
	if !old.Live(now, 0) {
		t.last++
		l.Generation = t.last
	}
	if t.held == nil {
		t.held = map[string]Lease{}
	}
	t.held[key] = l
	return l, nil
}

// Keep prolongs l, or returns a Conflict error when it is over or another's.
func (t *Leases) Keep(l Lease, now, until time.Time) (Lease, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.held[l.Key]
	if old.Generation != l.Generation || !old.Live(now, 0) {
		return Lease{}, skep.Errorf(skep.Conflict, "the lease of %s on %s is over", l.Holder, l.Key)
	}
	old.Until = until
	t.held[l.Key] = old
	return old, nil
}

// Give gives l up. One that is over already is no error.
func (t *Leases) Give(l Lease) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[l.Key].Generation == l.Generation {
		delete(t.held, l.Key)
	}
}

// Over takes out and returns the leases that ended by themselves.
func (t *Leases) Over(now time.Time) []Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	var over []Lease
	for key, l := range t.held {
		if !l.Live(now, 0) {
			over = append(over, l)
			delete(t.held, key)
		}
	}
	return over
}
