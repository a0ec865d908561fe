package store

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/skepdev/skep"
)

func TestCASInputs(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ref := func(n int) *skep.CASReference {
			return &skep.CASReference{Instance: "projects/p/instances/i", Hash: fmt.Sprint("h", n), Size: int64(n)}
		}
		add := func(n int, inputs ...*skep.CASReference) *skep.Task {
			req, task := newTask(n)
			slice := req.Slices[0]
			req.Slices = nil
			for _, in := range inputs {
				slice.Properties.CASInput = in
				req.Slices = append(req.Slices, slice)
			}
			create(t, s, req, task, nil)
			return task
		}
		add(0, nil)
		add(1, ref(1), ref(2))
		add(2, ref(2), nil)
		running, ended := add(3, ref(3)), add(4, ref(4))
		for bot, task := range map[skep.BotID]*skep.Task{"b1": running, "b2": ended} {
			if err := s.Update(t.Context(), func(tx *Tx) error {
				task.Bot, task.Claim = bot, &skep.Claim{Dimensions: skep.Dimensions{"id": {string(bot)}}}
				if err := task.Move(skep.Running, epoch); err != nil {
					return err
				}
				if err := tx.ClaimTask(task, 0); err != nil {
					return err
				}
				return tx.SaveBot(&skep.Bot{ID: bot, Dimensions: task.Claim.Dimensions, Task: task.ID, FirstSeen: epoch, LastSeen: epoch})
			}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if err := ended.End(skep.Ending{ExitCode: new(int64)}, epoch); err != nil {
				return err
			}
			return tx.SaveTask(ended)
		}); err != nil {
			t.Fatal(err)
		}
		got, err := s.CASInputs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := []skep.CASReference{*ref(1), *ref(2), *ref(3)}
		if d := cmp.Diff(want, got, cmpopts.SortSlices(func(a, b skep.CASReference) bool { return a.Size < b.Size })); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	})
}
