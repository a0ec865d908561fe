package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

func TestOrders(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
		set := func(o *Orders) {
			t.Helper()
			if err := s.Update(t.Context(), func(tx *Tx) error {
				old, err := tx.LockOrders(o.Bot)
				if err != nil {
					return err
				}
				old.Drain, old.Quarantine = o.Drain, o.Quarantine
				return tx.SaveOrders(old)
			}); err != nil {
				t.Fatal(err)
			}
		}
		b1 := &Orders{Bot: "b1", Drain: &Order{Reason: "disk", By: "user:a", Since: at, Until: at.Add(time.Hour)}}
		b2 := &Orders{Bot: "b2", Quarantine: &Order{By: "user:a", Since: at}}
		set(b1)
		set(b2)
		set(b2)
		got, err := s.Orders(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]*Orders{b1, b2}, got); diff != "" {
			t.Error(diff)
		}
		set(&Orders{Bot: "b1"})
		if got, err = s.Orders(t.Context()); err != nil || len(got) != 1 || got[0].Bot != "b2" {
			t.Errorf("got %v %v, want b2 alone", got, err)
		}
	})
}

func TestOnce(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		var got []bool
		for _, key := range []string{"a", "b", "a"} {
			if err := s.Update(t.Context(), func(tx *Tx) error {
				first, err := tx.Once("event:"+string(skep.BotID("b1")), key, time.Hour)
				got = append(got, first)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff([]bool{true, true, false}, got[len(got)-3:]); diff != "" {
			t.Error(diff)
		}
	})
}
