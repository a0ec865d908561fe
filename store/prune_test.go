package store

import (
	"slices"
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
		died := &skep.Bot{ID: "died", Dimensions: skep.Dimensions{"id": {"died"}}, LastSeen: b.LastSeen, Task: young.ID, Dead: true} // it ended since
		busy, task := newTask(2, "a:c")
		busy.ID = skep.NewTaskID(time.Now().Add(-time.Second))
		task.ID, task.State = busy.ID, skep.Running
		create(t, s, busy, task, nil)
		late := &skep.Bot{ID: "late", Dimensions: skep.Dimensions{"id": {"late"}}, LastSeen: b.LastSeen, Task: busy.ID}
		here := &skep.Bot{ID: "here", Dimensions: skep.Dimensions{"id": {"here"}}, LastSeen: time.Now()}
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if _, err := tx.WriteOutput(old.ID, 0, 0, []byte("x")); err != nil {
				return err
			}
			for _, b := range []*skep.Bot{b, died, late, here} {
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
		if err != nil || len(bots) != 2 || bots[0].ID != "here" || bots[1].ID != "late" {
			t.Errorf("bots: %v %v", bots, err)
		}
		if ev, _, err := s.BotEvents(t.Context(), EventFilter{Bot: "gone", Limit: 5}); err != nil || len(ev) != 1 {
			t.Errorf("the young event of an old bot: %v %v", ev, err)
		}
	})
}

// Tokens of bots go when they are long over; those that a server is closed by
// stay, so that no server opens by itself.
func TestPruneKeepsServersClosed(t *testing.T) {
	long, lately := time.Now().Add(-tokenLife-time.Hour), time.Now().Add(-time.Hour)
	for _, tc := range []struct {
		name string
		all  map[string]Token
		left []string
	}{
		{"bots' own", map[string]Token{
			"1": {Scope: "bot", ExpiresAt: long}, "2": {Scope: "bootstrap", ExpiresAt: long}, "3": {Scope: "drone", ExpiresAt: long},
		}, []string{"1", "3"}},
		{"with an admin's", map[string]Token{
			"1": {Scope: "bot", ExpiresAt: long}, "2": {Scope: "bot", ExpiresAt: lately}, "3": {Scope: "bot"},
			"4": {Scope: "admin", ExpiresAt: long}, "5": {Scope: "bootstrap", ExpiresAt: long}, "6": {Scope: "bootstrap", ExpiresAt: lately},
		}, []string{"2", "3", "4", "6"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			each(t, func(t *testing.T, s *Store) {
				if err := s.Update(t.Context(), func(tx *Tx) error {
					for id, token := range tc.all {
						token.ID, token.Hash, token.Name = id, []byte(id), "n"+id
						if err := tx.AddToken(token); err != nil {
							return err
						}
					}
					_, err := tx.Prune(10, 0)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				all, err := s.Tokens(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var left []string
				for _, token := range all {
					left = append(left, token.ID)
				}
				if !slices.Equal(left, tc.left) {
					t.Errorf("left %v, want %v", left, tc.left)
				}
			})
		})
	}
}
