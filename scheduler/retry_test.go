package scheduler

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep"
)

// A bot whose connection breaks sends its poll again, with the same key and
// perhaps more dimensions, while the first one may just be getting a task.
func TestARepeatedPollKeepsTheTaskOfTheFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		for i := range 300 {
			key := fmt.Sprint("k", i)
			ctx, cancel := context.WithCancel(t.Context())
			var task *skep.Task
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = w.Poll(ctx, Poll{Bot: w.bot("b"), Key: key, Wait: time.Second}) })
			wg.Go(func() { task = w.submit(slice(time.Hour, true, "pool", "p")) })
			wg.Go(cancel)
			begun := time.Now()
			again := w.poll(w.bot("b", "round", fmt.Sprint(i%2)), key, time.Minute)
			wg.Wait()
			if again == nil || again.ID != task.ID {
				t.Fatalf("round %d: the repeated poll got %v after %v; the task is %s", i, again, time.Since(begun), w.state(task))
			}
			if st := w.state(task); st != skep.Running {
				t.Fatalf("round %d: the task is %s", i, st)
			}
			zero := int64(0)
			if _, err := w.Report(t.Context(), skep.Report{Bot: "b", Task: task.ID, Ending: &skep.Ending{ExitCode: &zero, Duration: new(float64)}}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
