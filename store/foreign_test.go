package store

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A machine whose bot lives at another server is read with what that server
// said of it, and never with a bot of ours that has its name.
func TestForeignBots(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		at := func(n int64) time.Time { return time.UnixMicro(1_700_000_000_000_000 + n).UTC() }
		const server = "https://other.example.com"
		vm := func(id, server string) *VM {
			return &VM{ID: id, Prefix: "p", Hostname: id + "-x", Attributes: json.RawMessage(`{}`), Server: server, Asked: at(1), AskedTask: 0x70}
		}
		update := func(fn func(*Tx) error) {
			t.Helper()
			if err := s.Update(ctx, fn); err != nil {
				t.Fatal(err)
			}
		}
		bot := VMBot{Known: true, FirstSeen: at(10), LastSeen: at(20), Dead: true, Terminated: true, Ill: true, Task: 0x7770, Heard: at(30)}
		update(func(tx *Tx) error {
			for _, v := range []*VM{vm("a", ""), vm("b", server), vm("c", server)} {
				if err := tx.SaveVM(v); err != nil {
					return err
				}
			}
			return tx.SaveForeignBot(server, "b-x", bot)
		})
		read := func(id string) *VM {
			t.Helper()
			v, err := s.VM(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		if v := read("b"); !cmp.Equal(v.Bot, bot) || v.Server != server || v.AskedDone || !v.Answers.IsZero() {
			t.Errorf("read %+v", v)
		}
		if v := read("a"); v.Bot != (VMBot{}) || v.Server != "" {
			t.Errorf("of ours: %+v", v)
		}

		// What was said before does not come over what was said later.
		later := VMBot{Heard: at(40)}
		update(func(tx *Tx) error { return tx.SaveForeignBot(server, "b-x", later) })
		update(func(tx *Tx) error { return tx.SaveForeignBot(server, "b-x", bot) })
		if v := read("b"); v.Bot != later {
			t.Errorf("read %+v, want %+v", v.Bot, later)
		}

		// Since when it answers.
		for i, c := range []struct{ answers, began bool }{{true, true}, {true, false}, {false, false}, {true, true}} {
			var began bool
			var now time.Time
			update(func(tx *Tx) (err error) {
				now = tx.Now
				began, err = tx.SaveForeignServer(server, c.answers)
				return err
			})
			if v := read("c"); began != c.began || v.Answers.IsZero() == c.answers || began && !v.Answers.Equal(now) {
				t.Errorf("%d: began %v, answers since %v", i, began, v.Answers)
			}
		}
		if v := read("a"); !v.Answers.IsZero() {
			t.Errorf("ours: %v", v.Answers)
		}

		names := []string{"a-x"}
		for i := range 1200 {
			names = append(names, fmt.Sprint("n", i))
		}
		vms, err := s.VMsByHostname(ctx, server, append(names, "c-x"))
		if err != nil || len(vms) != 1 || vms["c-x"] == nil {
			t.Errorf("by name: %v, %v", vms, err)
		}
		list, err := s.VMsAt(ctx, server, "b", 10)
		if err != nil || len(list) != 1 || list[0].ID != "c" {
			t.Errorf("at the server: %v, %v", list, err)
		}
		servers, err := s.ForeignServers(ctx)
		if d := cmp.Diff(map[string][]string{server: {"p"}}, servers); d != "" || err != nil {
			t.Errorf("servers (-want +got):\n%s%v", d, err)
		}
		if known, err := s.KnownServers(ctx); err != nil || !cmp.Equal(known, []string{server}) {
			t.Errorf("known: %v, %v", known, err)
		}

		// It goes with its machine: the next one of the name begins anew.
		update(func(tx *Tx) error { return tx.DropVM("b") })
		update(func(tx *Tx) error { return tx.SaveVM(vm("b", server)) })
		if v := read("b"); v.Bot != (VMBot{}) {
			t.Errorf("the next one's bot: %+v", v.Bot)
		}
	})
}
