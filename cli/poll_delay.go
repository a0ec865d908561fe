package cli

import (
	"context"
	"math/rand/v2"
	"time"
)

// pollDelay paces questions about tasks: short at first, as most answers come
// soon, then growing to 1 s + elapsed/30, at most 15 s, each with up to a
// third more at random. spec/cli-and-ui.md §3.3.
type pollDelay struct {
	start time.Time
	next  time.Duration
}

const firstPoll = 50 * time.Millisecond

func newPollDelay() *pollDelay { return &pollDelay{start: time.Now(), next: firstPoll} }

// reset makes the next pause short again: something happened, more may soon.
func (d *pollDelay) reset() { d.next = firstPoll }

// step returns the pause to make now, elapsed after the start, without its
// random part.
func (d *pollDelay) step(elapsed time.Duration) time.Duration {
	pause := d.next
	d.next = min(pause*3/2, time.Second+elapsed/30, 15*time.Second)
	return pause
}

// sleep pauses; it returns ctx's error when that ends first.
func (d *pollDelay) sleep(ctx context.Context) error {
	pause := d.step(time.Since(d.start))
	return sleep(ctx, pause+rand.N(pause/3))
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
