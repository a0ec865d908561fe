package scheduler

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// A poll that read the rules before they changed does not wait with them,
// whether it waits at that moment, is on its way, or is being matched.
func TestChangesEndWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		poll := func(changes uint64) time.Duration {
			t.Helper()
			begun := time.Now()
			cmd, err := w.Poll(t.Context(), Poll{Bot: w.bot("b"), Key: begun.String(), Wait: MaxWait, Changes: changes})
			if err != nil || cmd.Task != nil {
				t.Errorf("%v %v", cmd, err)
			}
			return time.Since(begun)
		}
		for name, change := range map[string]func(){"rules": w.EndWaits, "orders": func() { w.Wake("b") }, "deletion": func() { w.deleted("b") }} {
			old := w.Changes()
			change()
			if took := poll(old); took != 0 {
				t.Errorf("%s: a poll that was on its way waits %v", name, took)
			}
			if took := poll(w.Changes()); took != MaxWait {
				t.Errorf("%s: a poll that knows all waits %v", name, took)
			}
			go func() {
				time.Sleep(time.Second)
				change()
			}()
			if took := poll(w.Changes()); took != time.Second {
				t.Errorf("%s: a poll that waits goes on for %v", name, took)
			}
		}
		synctest.Wait()
	})
}

func TestChangesEndWaitsOfAMatch(t *testing.T) {
	s := &Scheduler{queues: newQueues()}
	qs := s.queues
	qs.add(store.Queue{ID: 1})
	qs.filled(1)
	w := &waiter{bot: &skep.Bot{ID: "b"}, key: "k", reply: make(chan Command, 1)}
	qs.enter(w)
	r := qs.begin()
	heir := &waiter{bot: &skep.Bot{ID: "b"}, key: "k", reply: make(chan Command, 1)}
	qs.enter(heir)
	s.EndWaits()
	qs.finish(r, nil, nil, nil)
	for name, w := range map[string]*waiter{"matched": w, "heir": heir} {
		if len(w.reply) != 1 {
			t.Errorf("%s: it goes on waiting", name)
		}
	}
	if len(qs.bots) != 0 {
		t.Errorf("%d polls wait", len(qs.bots))
	}
}
