package reconcile

import (
	"sync"
	"time"

	"github.com/skepdev/skep/internal/backoff"
)

// Circuit pauses what fails for one cause — an engine that does not answer, a
// quota that is used up — for everybody who would meet it. After the pause one
// tries and the others wait for what comes of it. The zero value pauses 0.5 s
// to 60 s. It may be used by many at once.
type Circuit struct {
	Min time.Duration // the first pause; 0 = 0.5 s
	Max time.Duration // the longest; 0 = 60 s

	mu     sync.Mutex
	causes map[string]*cause
}

type cause struct {
	pause backoff.Exponential
	last  time.Duration
	until time.Time
}

// Wait returns how long to keep from what cause may spoil; 0 = try now, and
// report with Failed or Succeeded.
func (c *Circuit) Wait(name string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.causes[name]
	if k == nil {
		return 0
	}
	now := time.Now()
	if wait := k.until.Sub(now); wait > 0 {
		return wait
	}
	k.until = now.Add(k.last) // others wait while this one tries
	return 0
}

// Failed reports one more failure and returns the pause that it makes.
func (c *Circuit) Failed(name string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.causes[name]
	if k == nil {
		k = &cause{pause: backoff.Exponential{Min: orElse(c.Min, 500*time.Millisecond), Max: orElse(c.Max, time.Minute)}}
		if c.causes == nil {
			c.causes = map[string]*cause{}
		}
		c.causes[name] = k
	}
	k.last = k.pause.Next()
	k.until = time.Now().Add(k.last)
	return k.last
}

// Succeeded ends the pause of a cause.
func (c *Circuit) Succeeded(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.causes, name)
}
