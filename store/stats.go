package store

import (
	"sync/atomic"
	"time"
)

// CommitBounds are the upper bounds of Stats.Took, in seconds; the last bucket
// has none.
var CommitBounds = [...]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5}

// Stats counts the group commits since Open.
type Stats struct {
	Commits uint64 // batches
	Changes uint64 // calls of Update in them
	Failed  uint64 // batches that were not confirmed
	Took    [len(CommitBounds) + 1]uint64
	Seconds float64 // sum of the times
}

// commitStats are Stats that are being counted.
type commitStats struct {
	commits, changes, failed, nanos atomic.Uint64
	took                            [len(CommitBounds) + 1]atomic.Uint64
}

func (c *commitStats) note(began time.Time, changes int, err error) {
	d := time.Since(began)
	c.commits.Add(1)
	c.changes.Add(uint64(changes))
	if err != nil {
		c.failed.Add(1)
	}
	c.nanos.Add(uint64(d))
	i := 0
	for i < len(CommitBounds) && d.Seconds() > CommitBounds[i] {
		i++
	}
	c.took[i].Add(1)
}

// Stats returns what was counted so far.
func (s *Store) Stats() Stats {
	c := &s.writers.stats
	out := Stats{Commits: c.commits.Load(), Changes: c.changes.Load(), Failed: c.failed.Load(), Seconds: float64(c.nanos.Load()) / 1e9}
	for i := range out.Took {
		out.Took[i] = c.took[i].Load()
	}
	return out
}
