package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/skepdev/skep"
)

func TestMachinePools(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		at := time.UnixMicro(1_700_000_000_000_001).UTC()
		want := []MachinePool{
			{Prefix: "a", Config: json.RawMessage(`{"Prefix":"a"}`), Kind: "process", Shape: "s", Revision: "r", Amount: 3, Duts: []string{}, Generation: 7},
			{
				Prefix: "b", Config: json.RawMessage(`{}`), Kind: "gce", Duts: []string{"x", "y"}, Held: true, Removed: at,
				Failure:  Failure{Class: "quota", Reason: "QUOTA_EXCEEDED", Text: "no", Code: 403, At: at},
				Failures: 2, Paused: at.Add(time.Minute),
			},
		}
		for range 2 { // new, then known
			if err := s.Update(ctx, func(tx *Tx) error {
				for i := range want {
					if err := tx.SaveMachinePool(&want[i]); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			got, err := s.MachinePools(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Fatalf("pools (-want +got):\n%s", d)
			}
			want[0].Amount, want[1].Removed, want[1].Failure = 4, time.Time{}, Failure{}
		}
		err := s.Update(ctx, func(tx *Tx) error {
			p, err := tx.LockMachinePool("b")
			if err != nil || p.Kind != "gce" {
				t.Errorf("locked %+v, %v", p, err)
			}
			return tx.DropMachinePool("b")
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.MachinePool(ctx, "b"); skep.KindOf(err) != skep.NotFound {
			t.Errorf("a dropped pool: %v", err)
		}
	})
}

func TestVMs(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		base := time.UnixMicro(1_700_000_000_000_001).UTC()
		at := func(n int) time.Time { return base.Add(time.Duration(n) * time.Second) }
		v := VM{
			ID: "p-0", Prefix: "p", Kind: "gce", Index: 0, Dut: "", Hostname: "p-0-ab12", Generation: 9, Attributes: json.RawMessage(`{"zone":"z"}`),
			Images: []string{"a-1", "b"}, Project: "pr", Zone: "z", Shape: "s", Scaling: "fixed", Revision: "r", Swarming: "https://s", Lifetime: time.Hour, Timeout: time.Minute,
			Expanded: at(1), Inserted: at(2), Created: at(3), Connected: at(4), Missing: at(5), Retire: at(6), Drained: true, Asked: at(7), AskedTask: 0x1230,
			Park: at(11), Stopping: at(12), Stopped: at(13), Started: at(14),
			Deleting: at(8), Gone: at(9), URL: "u", Networks: json.RawMessage(`[{"Internal":"10.0.0.1"}]`), Failure: Failure{Class: "quota", Text: "t", At: at(10)},
		}
		save := func(v VM) {
			t.Helper()
			if err := s.Update(ctx, func(tx *Tx) error { return tx.SaveVM(&v) }); err != nil {
				t.Fatal(err)
			}
		}
		save(v)
		got, err := s.VM(ctx, "p-0")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(&v, got); d != "" {
			t.Errorf("a new VM (-want +got):\n%s", d)
		}
		v.Hostname, v.Generation, v.Zone, v.Project, v.Attributes = "p-0-cd34", 10, "y", "qr", json.RawMessage(`{"zone":"y"}`)
		v.Inserted, v.Created, v.Connected, v.Missing, v.Retire, v.Drained = time.Time{}, time.Time{}, time.Time{}, time.Time{}, time.Time{}, false
		v.Asked, v.AskedTask, v.Deleting, v.Gone, v.URL, v.Networks, v.Failure = time.Time{}, 0, time.Time{}, time.Time{}, "", json.RawMessage("[]"), Failure{}
		save(v)
		if got, err = s.VMByHostname(ctx, "p-0-cd34"); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(&v, got); d != "" {
			t.Errorf("a known VM (-want +got):\n%s", d)
		}

		// Its bot comes with it.
		b := &skep.Bot{ID: "p-0-cd34", Dimensions: skep.Dimensions{"id": {"p-0-cd34"}}, FirstSeen: at(20), LastSeen: at(21), Dead: true, Terminated: 0x450}
		if err := s.Update(ctx, func(tx *Tx) error { return tx.SaveBot(b) }); err != nil {
			t.Fatal(err)
		}
		v.Bot = VMBot{Known: true, FirstSeen: at(20), LastSeen: at(21), Dead: true, Terminated: true}
		err = s.Update(ctx, func(tx *Tx) error {
			got, err := tx.LockVM("p-0")
			if d := cmp.Diff(&v, got); d != "" {
				t.Errorf("a VM with a bot (-want +got):\n%s", d)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		for i := 1; i < 4; i++ {
			save(VM{ID: fmt.Sprintf("p-%d", i), Prefix: "p", Index: i, Hostname: fmt.Sprintf("h%d", i), Attributes: json.RawMessage("{}")})
		}
		save(VM{ID: "q-0", Prefix: "q", Hostname: "h", Attributes: json.RawMessage("{}")})
		ids := func(vms []VM, err error) (out []string) {
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range vms {
				out = append(out, v.ID)
			}
			return out
		}
		if d := cmp.Diff([]string{"p-0", "p-1", "p-2", "p-3"}, ids(s.VMsOf(ctx, "p"))); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]string{"p-2", "p-3", "q-0"}, ids(s.VMsAfter(ctx, "p-1", 3))); d != "" {
			t.Error(d)
		}
		all, err := s.VMsOf(ctx, "p") // what decides is there, and what is not cannot be lost
		if err != nil {
			t.Fatal(err)
		}
		whole, err := s.VM(ctx, "p-1")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(*whole, all[1], cmpopts.IgnoreFields(VM{}, "Attributes", "Images", "Networks")); d != "" {
			t.Error(d)
		}
		if err := s.Update(ctx, func(tx *Tx) error { return tx.SaveVM(&all[1]) }); err == nil {
			t.Error("a part of a record was saved as the whole")
		}
		yes := true
		if err := s.Update(ctx, func(tx *Tx) error {
			return errors.Join(
				tx.SaveMachinePool(&MachinePool{Prefix: "p", Config: json.RawMessage("{}"), Shape: "s"}),
				tx.SaveMachinePool(&MachinePool{Prefix: "q", Config: json.RawMessage("{}")}),
			)
		}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			f    VMFilter
			want []string
		}{
			{"a pool", VMFilter{Prefix: "q", Limit: 9}, []string{"q-0"}},
			{"a page", VMFilter{After: "p-1", Limit: 2}, []string{"p-2", "p-3"}},
			{"a zone", VMFilter{Zone: "y", Limit: 9}, []string{"p-0"}},
			{"an image", VMFilter{Image: "a-1", Limit: 9}, []string{"p-0"}},
			{"a part of an image", VMFilter{Image: "a_1", Limit: 9}, nil},
			{"drained", VMFilter{Drained: &yes, Limit: 9}, nil},
			{"outdated", VMFilter{Outdated: &yes, Limit: 9}, []string{"p-1", "p-2", "p-3"}},
			{"made since", VMFilter{CreatedFrom: at(0), Limit: 9}, nil},
			{"made before", VMFilter{Created: at(100), Limit: 9}, nil},
		} {
			if d := cmp.Diff(c.want, ids(s.ListVMs(ctx, c.f))); d != "" {
				t.Errorf("%s (-want +got):\n%s", c.name, d)
			}
		}
		if err := s.Update(ctx, func(tx *Tx) error { return tx.DropVM("p-0") }); err != nil {
			t.Fatal(err)
		}
		if _, err := s.VM(ctx, "p-0"); skep.KindOf(err) != skep.NotFound {
			t.Errorf("a dropped VM: %v", err)
		}
	})
}

// What one thing of a record is changed by leaves the others, and makes none.
func TestDrainAndRetireVMs(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		at := time.UnixMicro(1_700_000_000_000_001).UTC()
		plan := VM{ID: "p-0", Prefix: "p", Hostname: "h0", Attributes: json.RawMessage(`{}`), Networks: json.RawMessage(`[]`)}
		asked, told := plan, plan
		asked.ID, asked.Hostname, asked.Inserted, asked.URL = "p-1", "h1", at, "u"
		told.ID, told.Hostname, told.Retire = "p-2", "h2", at
		var now time.Time
		update := func(fn func(tx *Tx) error) {
			t.Helper()
			if err := s.Update(ctx, func(tx *Tx) error { now = tx.Now; return fn(tx) }); err != nil {
				t.Fatal(err)
			}
		}
		want := func(vms ...VM) {
			t.Helper()
			var got []VM
			for i := range 6 {
				if v, err := s.VM(ctx, fmt.Sprintf("p-%d", i)); err == nil {
					got = append(got, *v)
				} else if skep.KindOf(err) != skep.NotFound {
					t.Fatal(err)
				}
			}
			if d := cmp.Diff(vms, got); d != "" {
				t.Errorf("machines (-want +got):\n%s", d)
			}
		}
		all := func(fn func(tx *Tx, id string) error) {
			t.Helper()
			update(func(tx *Tx) error {
				return errors.Join(fn(tx, "p-0"), fn(tx, "p-1"), fn(tx, "p-2"), fn(tx, "p-3"))
			})
		}
		update(func(tx *Tx) error { return errors.Join(tx.SaveVM(&plan), tx.SaveVM(&asked), tx.SaveVM(&told)) })
		all((*Tx).RetireVM)
		plan.Retire, asked.Retire = now, now
		want(plan, asked, told)
		all(func(tx *Tx, id string) error { return tx.DrainVM(id, true) })
		plan.Drained, told.Drained = true, true
		want(plan, asked, told)
		all(func(tx *Tx, id string) error { return tx.DrainVM(id, false) })
		asked.Drained = true
		want(plan, asked, told)
		runs, stopped := asked, asked
		runs.ID, runs.Hostname, runs.Drained = "p-4", "h4", false
		stopped.ID, stopped.Hostname, stopped.Drained, stopped.Park, stopped.Stopping, stopped.Stopped = "p-5", "h5", false, at, at, at
		update(func(tx *Tx) error { return errors.Join(tx.SaveVM(&runs), tx.SaveVM(&stopped)) })
		both := func(fn func(tx *Tx, id string) error) {
			t.Helper()
			update(func(tx *Tx) error { return errors.Join(fn(tx, "p-0"), fn(tx, "p-4"), fn(tx, "p-5"), fn(tx, "p-6")) })
		}
		both((*Tx).ParkVM)
		runs.Park = now
		want(plan, asked, told, runs, stopped)
		both((*Tx).UnparkVM)
		stopped.Park = time.Time{}
		want(plan, asked, told, runs, stopped)
	})
}

func TestLeasesOfPools(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		take := func(holder string, life time.Duration) (held bool) {
			t.Helper()
			if err := s.Update(t.Context(), func(tx *Tx) (err error) {
				held, err = tx.TakeLease("pool/p", holder, tx.Now.Add(life))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return held
		}
		for _, c := range []struct {
			name, holder string
			life         time.Duration
			want         bool
		}{
			{"a free one", "a", time.Hour, true},
			{"another's", "b", time.Hour, false},
			{"one's own, to its end", "a", -time.Second, true},
			{"one that is over", "b", time.Hour, true},
			{"one that was one's own", "a", time.Hour, false},
		} {
			if got := take(c.holder, c.life); got != c.want {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.GiveLeases("b") }); err != nil {
			t.Fatal(err)
		}
		if !take("a", time.Hour) {
			t.Error("a lease that was given up is not free")
		}
	})
}
