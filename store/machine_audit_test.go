package store

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVMsForAudits(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		var ids []string
		err := s.Update(t.Context(), func(tx *Tx) error {
			for i := range 700 {
				id := fmt.Sprintf("a-%04d", i)
				ids = append(ids, id)
				v := &VM{ID: id, Attributes: json.RawMessage("{}"), Prefix: "a", Kind: "gce", Index: i, Hostname: id + "-h", Project: "p", Zone: fmt.Sprintf("z%d", i%2)}
				if i%7 == 0 {
					v.Kind = "exec"
				}
				if err := tx.SaveVM(v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		vms, err := s.VMsNamed(t.Context(), append([]string{"none", ""}, ids...))
		if err != nil || len(vms) != 700 || vms["a-0699"].Hostname != "a-0699-h" || vms["none"] != nil {
			t.Errorf("%d machines, %v", len(vms), err)
		}
		if vms, err := s.VMsNamed(t.Context(), nil); err != nil || len(vms) != 0 {
			t.Errorf("of no ids: %v, %v", vms, err)
		}
		var got []string
		for after := ""; ; {
			page, err := s.VMsIn(t.Context(), "gce", "p", "z1", after, 100)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page {
				got = append(got, v.ID)
			}
			if len(page) < 100 {
				break
			}
			after = page[99].ID
		}
		var want []string
		for i, id := range ids {
			if i%2 == 1 && i%7 != 0 {
				want = append(want, id)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}
