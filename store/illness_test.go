package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

func TestIllness(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
		rows := []Illness{
			{Bot: "a", Pool: "p", Since: at},
			{Bot: "b", Pool: "p", Held: true, Why: "disk", Since: at.Add(time.Minute)},
			{Bot: "c", Pool: "p"},
			{Bot: "d", Pool: "q", Since: at},
		}
		update := func(f func(*Tx) error) {
			t.Helper()
			if err := s.Update(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		update(func(tx *Tx) error {
			for _, i := range rows {
				old, err := tx.LockIllness(i.Bot)
				if err != nil || old != nil {
					t.Errorf("%v, %v before anything was noted", old, err)
				}
				if err := tx.SaveIllness(i); err != nil {
					return err
				}
			}
			return nil
		})
		got, err := s.Illnesses(t.Context())
		if diff := cmp.Diff(rows, got); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
		update(func(tx *Tx) error {
			old, err := tx.LockIllness("b")
			if err != nil {
				return err
			}
			if diff := cmp.Diff(&rows[1], old); diff != "" {
				t.Error(diff)
			}
			for _, c := range []struct {
				after      time.Time
				fell, held int
			}{{at, 1, 1}, {at.Add(time.Second), 0, 1}, {time.Time{}, 1, 1}} {
				fell, held, err := tx.CountIllness("p", c.after)
				if err != nil || fell != c.fell || held != c.held {
					t.Errorf("after %v: %d fell, %d held, %v; want %d and %d", c.after, fell, held, err, c.fell, c.held)
				}
			}
			return tx.DropIllness("b")
		})
		if got, err := s.Illnesses(t.Context()); err != nil || len(got) != 3 {
			t.Errorf("%v, %v", got, err)
		}
	})
}

// Of bots that run nothing is told whether they are ill, whatever is at hand of
// their records.
func TestFreeBots(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		save := func(b *skep.Bot) {
			t.Helper()
			if err := s.Update(t.Context(), func(tx *Tx) error { return tx.SaveBot(b) }); err != nil {
				t.Fatal(err)
			}
		}
		d := skep.Dimensions{"id": {"x"}, "pool": {"p"}}
		save(&skep.Bot{ID: "well", Dimensions: d})
		save(&skep.Bot{ID: "ill", Dimensions: d, Quarantined: "disk"})
		save(&skep.Bot{ID: "drained", Dimensions: d, Maintenance: "drained"})
		save(&skep.Bot{ID: "busy", Dimensions: d, Task: 1})
		want := map[skep.BotID]Free{"well": {}, "ill": {true}, "drained": {true}}
		for range 2 { // from the database, and from what is at hand
			err := s.Update(t.Context(), func(tx *Tx) error {
				got, err := tx.FreeBots([]skep.BotID{"well", "ill", "drained", "busy", "nobody"})
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for id := range want {
				if _, _, err := s.BotLookNow(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
