package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDrones(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		update := func(fn func(*Tx) error) {
			t.Helper()
			if err := s.Update(ctx, fn); err != nil {
				t.Fatal(err)
			}
		}
		duts := func(want ...Dut) {
			t.Helper()
			got, err := s.Duts(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("devices (-want +got):\n%s", d)
			}
		}
		yes := func(ok bool, err error) error {
			if !ok {
				t.Error("it did nothing")
			}
			return err
		}
		no := func(ok bool, err error) error {
			if ok {
				t.Error("it did something")
			}
			return err
		}
		update(func(tx *Tx) error {
			d := Drone{UUID: "u", Key: "k", Hive: "x", Capacity: 2, Expires: tx.Now.Add(time.Hour)}
			if err := tx.AddDrone(d); err != nil {
				return err
			}
			d.UUID, d.Key, d.Expires = "old", "", tx.Now
			return tx.AddDrone(d)
		})
		var first, b int64 // generations before the first assignment
		update(func(tx *Tx) error { first = micros(tx.Now); return tx.PutDut("a", "x") })
		update(func(tx *Tx) error { b = micros(tx.Now); return tx.PutDut("b", "y") })
		update(func(tx *Tx) error { return yes(tx.TakeDut("a", "x", "u")) })
		update(func(tx *Tx) error { return no(tx.TakeDut("a", "x", "old")) })
		update(func(tx *Tx) error { return no(tx.TakeDut("b", "x", "u")) })
		update(func(tx *Tx) error { return yes(tx.LockDrone("u")) })
		update(func(tx *Tx) error { return no(tx.LockDrone("old")) })
		update(func(tx *Tx) error { return no(tx.KeepDrone(Drone{UUID: "old", Expires: tx.Now.Add(time.Hour)})) })
		update(func(tx *Tx) error { return no(tx.EndDrone("u")) })
		update(func(tx *Tx) error { return yes(tx.EndDrone("old")) })
		update(func(tx *Tx) error {
			uuid, err := tx.DroneByKey("k")
			if uuid != "u" {
				t.Errorf("drone by key: %q", uuid)
			}
			return err
		})
		duts(Dut{Name: "a", Hive: "x", Drone: "u", Generation: first + 1}, Dut{Name: "b", Hive: "y", Generation: b})
		update(func(tx *Tx) error { return tx.ReleaseDut("a", "u", 7) })
		update(func(tx *Tx) error { return tx.RenewDuts("u") })
		first++
		duts(Dut{Name: "a", Hive: "x", Drone: "u", Generation: first + 1}, Dut{Name: "b", Hive: "y", Generation: b})
		update(func(tx *Tx) error { return tx.ReleaseDut("a", "u", first) })
		update(func(tx *Tx) error { return tx.LeaveDut("a", "u") })
		update(func(tx *Tx) error { return tx.DropDut("a") })
		update(func(tx *Tx) error { return tx.DropDut("b") })
		duts(Dut{Name: "a", Hive: "x", Drone: "u", Generation: first + 1, Leaving: true, Gone: true})
		update(func(tx *Tx) error { return tx.PutDut("a", "z") })
		update(func(tx *Tx) error { return tx.ReleaseDut("a", "u", first+1) })
		duts(Dut{Name: "a", Hive: "z", Generation: first + 1})
		if n, err := s.CountDuts(ctx, "z"); n != 1 || err != nil {
			t.Errorf("%d devices in z, %v", n, err)
		}
		if free, err := s.FreeDutsOf(ctx, "z", 5); len(free) != 1 || err != nil {
			t.Errorf("free: %v, %v", free, err)
		}
		if next, err := s.NextDroneEnd(ctx); err != nil || time.Until(next) < 50*time.Minute {
			t.Errorf("next end %v, %v", next, err)
		}
		update(func(tx *Tx) error { return yes(tx.TakeDut("a", "z", "nobody")) })
		update(func(tx *Tx) error { return tx.FreeDuts() })
		duts(Dut{Name: "a", Hive: "z", Generation: first + 2})

		// A device that was deleted and comes again begins beyond: what is said of
		// an old assignment means no new one.
		update(func(tx *Tx) error { return tx.DropDut("a") })
		duts()
		update(func(tx *Tx) error { return tx.PutDut("a", "x") })
		update(func(tx *Tx) error { return yes(tx.TakeDut("a", "x", "u")) })
		for old := range int64(3) {
			update(func(tx *Tx) error { return tx.ReleaseDut("a", "u", first+old) })
			update(func(tx *Tx) error { return tx.ReleaseDut("a", "u", old+1) })
		}
		if got, err := s.Duts(ctx); err != nil || len(got) != 1 || got[0].Drone != "u" || got[0].Generation <= first+2 {
			t.Errorf("after releases of old assignments: %+v, %v", got, err)
		}
	})
}
