package store

import (
	"testing"
	"time"

	"github.com/skepdev/skep"
)

func TestPruneDeletesOnlyWhatIsOld(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		young, task := newTask(0, "a:b")
		young.ID = skep.NewTaskID(time.Now())
		task.ID = young.ID
		create(t, s, young, task, nil)
		old, task := newTask(1, "a:b")
		old.ID = skep.NewTaskID(time.Now().Add(-taskLife - time.Hour))
		task.ID = old.ID
		create(t, s, old, task, nil)
		b := &skep.Bot{ID: "gone", Dimensions: skep.Dimensions{"id": {"gone"}}, LastSeen: time.Now().Add(-botLife - time.Hour)}
		here := &skep.Bot{ID: "here", Dimensions: skep.Dimensions{"id": {"here"}}, LastSeen: time.Now()}
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if _, err := tx.WriteOutput(old.ID, 0, 0, []byte("x")); err != nil {
				return err
			}
			for _, b := range []*skep.Bot{b, here} {
				if err := tx.SaveBot(b); err != nil {
					return err
				}
				if err := tx.AddEvent(b.ID, skep.EventConnected, "", 0); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Update(t.Context(), func(tx *Tx) error { _, err := tx.Prune(10, 0); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Task(t.Context(), old.ID); skep.KindOf(err) != skep.NotFound || err == nil {
			t.Errorf("old task: %v", err)
		}
		if n, err := s.CountTasks(t.Context(), TaskFilter{Tags: [][]string{{"a:b"}}}); err != nil || n != 1 {
			t.Errorf("%d tasks are left, %v", n, err)
		}
		bots, err := s.BotsAfter(t.Context(), "", 10)
		if err != nil || len(bots) != 1 || bots[0].ID != "here" {
			t.Errorf("bots: %v %v", bots, err)
		}
		if ev, _, err := s.BotEvents(t.Context(), EventFilter{Bot: "gone", Limit: 5}); err != nil || len(ev) != 1 {
			t.Errorf("the young event of an old bot: %v %v", ev, err)
		}
	})
}
