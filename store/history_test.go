package store

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

// shortSteps makes the walk along a chain take many queries.
func shortSteps(t *testing.T) {
	t.Helper()
	old := chainStep
	chainStep = 3
	t.Cleanup(func() { chainStep = old })
}

func aBot(id skep.BotID) *skep.Bot {
	return &skep.Bot{ID: id, Dimensions: skep.Dimensions{"id": {string(id)}}, Version: "v", SessionID: "s", FirstSeen: time.Now(), LastSeen: time.Now()}
}

// TestEventsAreAChain adds events of several bots in turn, with and without a
// record, and pages through what came of it.
func TestEventsAreAChain(t *testing.T) {
	shortSteps(t)
	each(t, func(t *testing.T, s *Store) {
		want := map[skep.BotID][]string{}
		live := map[skep.BotID]bool{}
		do := func(fn func(tx *Tx) error) {
			t.Helper()
			if err := s.Update(t.Context(), fn); err != nil {
				t.Fatal(err)
			}
		}
		add := func(b skep.BotID, n int) {
			text := fmt.Sprint(n)
			do(func(tx *Tx) error {
				if live[b] {
					return tx.AddEvent(b, skep.EventIdle, text, 0)
				}
				return tx.AddStrayEvent(aBot(b), skep.EventIdle, text)
			})
			want[b] = append(want[b], text)
		}
		var middle time.Time
		for n := range 60 {
			b := skep.BotID([]string{"a", "b", "c"}[rand.IntN(3)])
			switch rand.IntN(8) {
			case 0:
				do(func(tx *Tx) error { return tx.SaveBot(aBot(b)) })
				live[b] = true
			case 1:
				do(func(tx *Tx) error { return tx.DeleteBot(b) })
				live[b] = false
			default:
				add(b, n)
			}
			if n == 30 {
				middle = time.Now()
				want["a before"], want["b before"], want["c before"] = slices.Clone(want["a"]), slices.Clone(want["b"]), slices.Clone(want["c"])
			}
		}
		list := func(f EventFilter) []string {
			out := []string{}
			for f.Limit = 2; ; {
				events, next, err := s.BotEvents(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					if e.Version != "v" || e.Dimensions["id"][0] != string(f.Bot) {
						t.Errorf("event of %s: %+v", f.Bot, e)
					}
					out = append(out, e.Message)
				}
				if f.From = next; next == 0 {
					return out
				}
			}
		}
		for _, b := range []skep.BotID{"a", "b", "c"} {
			before := want[b+" before"]
			after := slices.Clone(want[b][len(before):])
			for name, c := range map[string]struct {
				f    EventFilter
				want []string
			}{
				"all":    {EventFilter{Bot: b}, want[b]},
				"after":  {EventFilter{Bot: b, Start: middle}, after},
				"before": {EventFilter{Bot: b, End: middle}, before},
			} {
				newest := append([]string{}, c.want...)
				slices.Reverse(newest)
				if d := gocmp.Diff(newest, list(c.f)); d != "" {
					t.Errorf("%s of bot %s (-want +got):\n%s", name, b, d)
				}
			}
		}
		// A cursor shows nothing of another bot.
		if _, next, err := s.BotEvents(t.Context(), EventFilter{Bot: "a", Limit: 1}); err != nil || next == 0 {
			t.Errorf("next %d, %v", next, err)
		} else if events, _, err := s.BotEvents(t.Context(), EventFilter{Bot: "b", From: next, Limit: 5}); err != nil || len(events) > 0 {
			t.Errorf("a's cursor with b: %d events, %v", len(events), err)
		}
	})
}

// TestTasksOfABot compares pages of a bot's tasks with a list that is sorted
// as a whole. A bot takes tasks in another order than they were created in.
func TestTasksOfABot(t *testing.T) {
	shortSteps(t)
	each(t, func(t *testing.T, s *Store) {
		var all []*skep.Task
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.SaveBot(aBot("b")) }); err != nil {
			t.Fatal(err)
		}
		for n, created := range rand.Perm(30) {
			req, task := newTask(created * 3_600_000)
			create(t, s, req, task, nil)
			// Far after the latest of them was created.
			started := epoch.Add(40*time.Hour + time.Duration(n)*time.Hour)
			task.Bot, task.StartedAt, task.Claim = "b", started, &skep.Claim{Dimensions: skep.Dimensions{"id": {"b"}}}
			if err := s.Update(t.Context(), func(tx *Tx) error {
				if err := task.Move(skep.Running, started); err != nil {
					return err
				}
				if err := tx.Occupy("b", task.ID, "t", skep.EventTask, "k"); err != nil {
					return err
				}
				if err := tx.ClaimTask(task, 0); err != nil {
					return err
				}
				if n == 29 { // it still runs
					return nil
				}
				if err := task.End(skep.Ending{ExitCode: new(int64(n % 3)), Duration: new(1.5)}, started.Add(30*time.Minute)); err != nil {
					return err
				}
				if err := tx.SaveTask(task); err != nil {
					return err
				}
				return tx.Release("b", task.ID, skep.EventCompleted, "")
			}); err != nil {
				t.Fatal(err)
			}
			all = append(all, task)
			if n == 20 { // the list goes on over a deletion
				if err := s.Update(t.Context(), func(tx *Tx) error {
					if err := tx.DeleteBot("b"); err != nil {
						return err
					}
					return tx.SaveBot(aBot("b"))
				}); err != nil {
					t.Fatal(err)
				}
			}
		}
		failed := true
		for name, f := range map[string]BotTaskFilter{
			"created":            {Order: ByCreated},
			"started":            {Order: ByStarted},
			"completed":          {Order: ByCompleted},
			"created in a range": {Order: ByCreated, Start: epoch.Add(5 * time.Hour), End: epoch.Add(20 * time.Hour)},
			"started in a range": {Order: ByStarted, Start: epoch.Add(45 * time.Hour), End: epoch.Add(60 * time.Hour)},
			"completed since":    {Order: ByCompleted, Start: epoch.Add(61 * time.Hour)},
			"failed":             {State: StateFilter{States: []skep.TaskState{skep.Completed}, Failure: &failed}},
			"running":            {State: StateFilter{States: []skep.TaskState{skep.Running}}},
		} {
			f.Bot, f.Limit = "b", 4
			want, got := []skep.TaskID{}, []skep.TaskID{}
			sorted := slices.Clone(all)
			slices.SortFunc(sorted, func(a, b *skep.Task) int {
				return cmp.Or(cmp.Compare(f.SortKey(b), f.SortKey(a)), cmp.Compare(b.ID, a.ID))
			})
			for _, task := range sorted {
				key := f.SortKey(task)
				if (f.State.States == nil || f.State.States[0] == task.State) && (f.State.Failure == nil || task.Failure) &&
					(f.Start.IsZero() || key >= f.key(f.Start)) && (f.End.IsZero() || key < f.key(f.End)) {
					want = append(want, task.ID)
				}
			}
			for {
				page, err := s.ListBotTasks(t.Context(), f)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range page {
					got = append(got, l.Task.ID)
				}
				if len(page) < f.Limit {
					break
				}
				last := page[len(page)-1].Task
				f.AfterKey, f.AfterID = f.SortKey(last), last.ID
			}
			if d := gocmp.Diff(want, got); d != "" || len(want) == 0 {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
		}
	})
}
