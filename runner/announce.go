package runner

import (
	"context"
	"time"
)

// announceOnce bounds bot_main's one attempt to announce a task.
const announceOnce = time.Minute

// announce calls Announce, if there is one and the task can begin at all, and
// notes in j that its result will come. The result can be had from said, and
// until done was called.
func (j *Job) announce(ctx context.Context, task string, begins bool) (said <-chan announcement, done func()) {
	j.Announced = j.Announce != nil && begins
	if !j.Announced {
		return nil, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, announceOnce)
	c := make(chan announcement, 1)
	go func() {
		defer close(c)
		canceled, err := j.Announce(ctx, task)
		c <- announcement{Done: err == nil, Canceled: canceled}
	}()
	return c, func() {
		cancel()
		for range c { // the caller may have taken the result
		}
	}
}
