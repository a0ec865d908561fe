package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
)

// A bot whose connection breaks sends its poll again, with the same key and
// perhaps more dimensions, while the first one may just be getting a task.
func TestARepeatedPollKeepsTheTaskOfTheFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for i := range 300 {
			if err := w.retryRound(i); err != nil {
				t.Errorf("round %d: %v", i, err)
				return
			}
		}
	})
}

func (w *world) retryRound(i int) error {
	key := fmt.Sprint("k", i)
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	var task *skep.Task
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = w.Poll(ctx, Poll{Bot: w.bot("b"), Key: key, Wait: time.Second}) })
	synctest.Wait() // it waits
	wg.Go(func() { task = w.submit(slice(time.Hour, true, "pool", "p")) })
	wg.Go(cancel)
	begun := time.Now()
	second := w.bot("b")
	if i%2 == 0 {
		second = w.bot("b", "more", "x")
	}
	again := w.poll(second, key, time.Minute)
	wg.Wait()
	if again == nil || again.ID != task.ID {
		return fmt.Errorf("the repeated poll got %v after %v; the task is %s", again, time.Since(begun), w.state(task))
	}
	// No time passes in a bubble but by waiting, which SQLite does a little where
	// a database is busy.
	if took := time.Since(begun); took > 500*time.Millisecond {
		return fmt.Errorf("the repeated poll got its task after %v", took)
	}
	if st := w.state(task); st != skep.Running {
		return fmt.Errorf("the task is %s", st)
	}
	_, err := w.Report(w.t.Context(), skep.Report{Bot: "b", Task: task.ID, Ending: &skep.Ending{ExitCode: new(int64), Duration: new(float64)}})
	return err
}
