// Package backoff spaces retries: each failure waits longer than the last, up
// to a cap, with jitter so that a fleet does not knock in step, and success
// starts over (design rule 5).
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Exponential is a series of pauses. The zero value waits 100 ms to 30 s. It
// is not safe for concurrent use.
type Exponential struct {
	Min time.Duration // first pause; 0 = 100 ms
	Max time.Duration // cap; 0 = 30 s

	next time.Duration
}

// Next returns the pause after one more failure: uniform in [d/2, d], d
// doubling from Min to Max.
func (b *Exponential) Next() time.Duration {
	lo, hi := b.bounds()
	if b.next == 0 {
		b.next = lo
	}
	d := min(b.next, hi)
	b.next = min(2*d, hi)
	return d/2 + rand.N(d/2+1)
}

// Reset makes the next failure the first. Call it after success.
func (b *Exponential) Reset() { b.next = 0 }

// Sleep pauses after one more failure, at least for least (0 = no floor). It
// returns ctx's error when that ends first.
func (b *Exponential) Sleep(ctx context.Context, least time.Duration) error {
	t := time.NewTimer(max(b.Next(), least))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (b *Exponential) bounds() (lo, hi time.Duration) {
	lo, hi = b.Min, b.Max
	if lo <= 0 {
		lo = 100 * time.Millisecond
	}
	if hi <= 0 {
		hi = 30 * time.Second
	}
	return lo, max(lo, hi)
}
