package runner

import (
	"context"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// updateOnce bounds bot_main's one attempt to deliver an update.
const updateOnce = time.Minute

// announce tells the server that the task begins, if there is Update and the
// task can begin at all, and notes in j that the result will come. It can be
// had from said, and until done was called.
func (j *Job) announce(ctx context.Context, task string, begins bool) (said <-chan announcement, done func()) {
	j.Updates = j.Update != nil
	j.Announced = j.Updates && begins
	if !j.Announced {
		return nil, func() {}
	}
	ctx, cancel := context.WithTimeout(ctx, updateOnce)
	c := make(chan announcement, 1)
	go func() {
		defer close(c)
		// The task costs nothing yet.
		if res, err := j.Update(ctx, &botapi.TaskUpdate{TaskID: task, CostUSD: new(float64)}); err != nil {
			c <- announcement{}
		} else {
			c <- announcement{Done: true, Canceled: res.MustStop, Watched: res.Watched}
		}
	}()
	return c, func() {
		cancel()
		for range c { // the caller may have taken the result
		}
	}
}

// deliver makes bot_main's attempt to deliver an update of task_runner's.
func (j *Job) deliver(ctx context.Context, u *botapi.TaskUpdate) delivery {
	ctx, cancel := context.WithTimeout(ctx, updateOnce)
	defer cancel()
	res, err := j.Update(ctx, u)
	if err != nil {
		return delivery{}
	}
	return delivery{Done: true, Session: res.Session}
}

// relay asks bot_main to deliver an update, and reports whether it did. It is
// asked once: who has not answered in time has trouble of its own.
func (r *taskRunner) relay(ctx context.Context, u *botapi.TaskUpdate) bool {
	if r.say(runnerNews{Update: u}) != nil {
		return false
	}
	late := time.NewTimer(updateOnce + time.Second)
	defer late.Stop()
	select {
	case d := <-r.delivered:
		r.session = d.Session
		return d.Done
	case <-ctx.Done():
	case <-late.C:
	}
	return false
}
