package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

var epoch = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

// newTask returns a request and its waiting task, created at epoch plus n ms.
func newTask(n int, tags ...string) (*skep.TaskRequest, *skep.Task) {
	at := epoch.Add(time.Duration(n) * time.Millisecond)
	req := &skep.TaskRequest{
		ID: skep.NewTaskID(at), CreatedAt: at, Name: "t", Priority: 100, Tags: tags, Authenticated: "user:x", ServiceAccount: "none",
		Slices: []skep.Slice{{Expiration: time.Hour, Properties: skep.Properties{
			Command: []string{"true"}, Dimensions: skep.Constraints{{Key: "pool", Values: []string{"p"}}},
		}}},
	}
	return req, &skep.Task{
		ID: req.ID, State: skep.Pending, Priority: req.Priority, Queue: 7, ExpiresAt: time.Now().Add(time.Hour).Truncate(time.Microsecond).UTC(),
		ModifiedAt: at, PingTolerance: time.Minute, ServerVersions: []string{"v1"},
	}
}

func create(t *testing.T, s *Store, req *skep.TaskRequest, task *skep.Task, secret []byte) {
	t.Helper()
	ready, err := Prepare(req, task, secret)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.CreateTask(ready) }); err != nil {
		t.Fatal(err)
	}
}

func TestTaskRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		req, task := newTask(0, "a:b")
		create(t, s, req, task, []byte("secret"))
		got, err := s.Request(t.Context(), req.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(req, got); d != "" {
			t.Errorf("request (-want +got):\n%s", d)
		}
		task.Bot, task.ClaimKey = "b1", "k"
		task.StartedAt, task.ContactAt = epoch, epoch
		task.Claim = &skep.Claim{Dimensions: skep.Dimensions{"id": {"b1"}}, IdleSince: epoch}
		if err := task.Move(skep.Running, epoch); err != nil {
			t.Fatal(err)
		}
		if err := task.End(skep.Ending{ExitCode: new(int64(3)), Duration: new(1.5)}, epoch.Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		task.Outcome = &skep.Outcome{Message: "m", Stats: &skep.Stats{BotOverhead: 1}}
		if err := s.Update(t.Context(), func(tx *Tx) error {
			if err := tx.ClaimTask(task, 0); err != nil {
				return err
			}
			return tx.SaveTask(task)
		}); err != nil {
			t.Fatal(err)
		}
		back, err := s.Task(t.Context(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(task, back); d != "" {
			t.Errorf("task (-want +got):\n%s", d)
		}
		secret, err := s.Secret(t.Context(), req.ID)
		if err != nil || string(secret) != "secret" {
			t.Errorf("secret is %q, %v", secret, err)
		}
		if _, err := s.Task(t.Context(), 17); skep.KindOf(err) != skep.NotFound {
			t.Errorf("unknown task: %v", err)
		}
	})
}

func TestFailedChangeTakesBackOnlyItself(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		boom := errors.New("boom")
		var wg sync.WaitGroup
		const n = 60
		errs := make([]error, n)
		ids := make([]skep.TaskID, n)
		for i := range n {
			wg.Go(func() {
				req, task := newTask(i)
				ids[i] = req.ID
				ready, err := Prepare(req, task, nil)
				if err != nil {
					t.Error(err)
				}
				errs[i] = s.Update(context.WithoutCancel(t.Context()), func(tx *Tx) error {
					if err := tx.CreateTask(ready); err != nil {
						return err
					}
					if i%3 == 0 {
						return boom
					}
					if i%7 == 0 {
						panic("a bug in a change")
					}
					return nil
				})
			})
		}
		wg.Wait()
		for i, err := range errs {
			bad := i%3 == 0 || i%7 == 0
			if (err != nil) != bad || (i%3 == 0 && !errors.Is(err, boom)) {
				t.Errorf("change %d: %v", i, err)
			}
			if _, err := s.Task(t.Context(), ids[i]); (skep.KindOf(err) == skep.NotFound && err != nil) != bad {
				t.Errorf("task of change %d: %v", i, err)
			}
		}
	})
}

func TestUpdateSkipsCallersThatLeft(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		ran := false
		err := s.Update(ctx, func(*Tx) error { ran = true; return nil })
		if !errors.Is(err, context.Canceled) || ran {
			t.Errorf("got %v, ran %v", err, ran)
		}
	})
}

func TestListAndCountByTagAndState(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		var ids []skep.TaskID
		for i := range 9 {
			tags := []string{"n:" + string(rune('0'+i)), "parity:" + []string{"even", "odd"}[i%2]}
			req, task := newTask(i, tags...)
			create(t, s, req, task, nil)
			ids = append(ids, req.ID)
		}
		f := TaskFilter{Tags: [][]string{{"parity:odd"}}, State: StateFilter{States: []skep.TaskState{skep.Pending}}, Limit: 3}
		page, err := s.ListTasks(t.Context(), f)
		if err != nil || len(page) != 3 || page[0].Task.ID != ids[7] || page[2].Task.ID != ids[3] {
			t.Fatalf("first page: %v %v", page, err)
		}
		f.Below = page[2].Task.ID
		page, err = s.ListTasks(t.Context(), f)
		if err != nil || len(page) != 1 || page[0].Task.ID != ids[1] {
			t.Errorf("second page: %v %v", page, err)
		}
		n, err := s.CountTasks(t.Context(), TaskFilter{Tags: [][]string{{"n:1", "n:2", "n:3"}, {"parity:odd"}}})
		if err != nil || n != 2 {
			t.Errorf("alternatives: %d %v", n, err)
		}
		n, err = s.CountTasks(t.Context(), TaskFilter{Start: epoch.Add(2 * time.Millisecond), End: epoch.Add(5 * time.Millisecond)})
		if err != nil || n != 3 {
			t.Errorf("range: %d %v", n, err)
		}
		n, err = s.CountTasks(t.Context(), TaskFilter{State: StateFilter{States: []skep.TaskState{skep.Completed}, Failure: new(true)}})
		if err != nil || n != 0 {
			t.Errorf("completed: %d %v", n, err)
		}
	})
}

func TestWaitingTasksInOrder(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		var want []skep.TaskID
		prios := []int32{50, 20, 20, 90}
		order := []int{1, 2, 0, 3}
		ids := make([]skep.TaskID, len(prios))
		for i, p := range prios {
			req, task := newTask(i)
			req.Priority, task.Priority = p, p
			ids[i] = req.ID
			create(t, s, req, task, nil)
		}
		for _, i := range order {
			want = append(want, ids[i])
		}
		late, task := newTask(9)
		task.ExpiresAt = time.Now().Add(-time.Hour)
		create(t, s, late, task, nil)
		var got []skep.TaskID
		var expired []*skep.Task
		err := s.Update(t.Context(), func(tx *Tx) error {
			got = nil
			ws, err := tx.WaitingTasks(7, 10)
			for _, w := range ws {
				got = append(got, w.ID)
			}
			if err == nil {
				expired, err = tx.ExpiredTasks(10)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("order (-want +got):\n%s", d)
		}
		if len(expired) != 1 || expired[0].ID != late.ID {
			t.Errorf("expired: %v", expired)
		}
	})
}

func TestRestartKeepsEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "skep.db")
	s, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	req, task := newTask(0)
	create(t, s, req, task, nil)
	key, err := s.ServerKey(t.Context(), "session")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), path, Options{}); skep.KindOf(err) != skep.Conflict {
		t.Errorf("second process: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(*Tx) error { return nil }); skep.KindOf(err) != skep.Unavailable {
		t.Errorf("update after close: %v", err)
	}
	if s, err = Open(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Task(t.Context(), req.ID); err != nil {
		t.Error(err)
	}
	again, err := s.ServerKey(t.Context(), "session")
	if err != nil || string(again) != string(key) {
		t.Errorf("key changed: %v", err)
	}
}

func TestTokens(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		want := Token{ID: "abc", Hash: []byte{1, 2}, Name: "n", Scope: "bot", Bots: []string{"a", "b*"}}
		if err := s.Update(t.Context(), func(tx *Tx) error { return tx.AddToken(want) }); err != nil {
			t.Fatal(err)
		}
		all, err := s.Tokens(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%v %v", all, err)
		}
		want.CreatedAt = all[0].CreatedAt
		if d := cmp.Diff(want, all[0]); d != "" {
			t.Error(d)
		}
		revoke := func() error { return s.Update(t.Context(), func(tx *Tx) error { return tx.RevokeToken("abc") }) }
		if err := revoke(); err != nil {
			t.Error(err)
		}
		if err := revoke(); skep.KindOf(err) != skep.NotFound {
			t.Errorf("second revocation: %v", err)
		}
	})
}

// A bot that gets a credential of its own ends the one before, and no token
// that others live by.
func TestReplaceTokens(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		until := time.Now().Add(time.Hour).Truncate(time.Second).UTC()
		ends := map[string]bool{"before": true, "fleet": false, "pair": false, "new": false, "user": false}
		if err := s.Update(t.Context(), func(tx *Tx) error {
			for id, k := range map[string]Token{
				"before": {Scope: "bot", Bots: []string{"lab1"}}, "new": {Scope: "bot", Bots: []string{"lab1"}},
				"fleet": {Scope: "bot", Bots: []string{"lab*"}}, "pair": {Scope: "bot", Bots: []string{"lab1", "lab2"}}, "user": {Scope: "user"},
			} {
				k.ID, k.Hash, k.Name = id, []byte{1}, "lab1"
				if err := tx.AddToken(k); err != nil {
					return err
				}
			}
			return tx.ReplaceTokens("lab1", "bot", "new", until)
		}); err != nil {
			t.Fatal(err)
		}
		all, err := s.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, k := range all {
			got[k.ID] = k.ExpiresAt.Equal(until)
		}
		if d := cmp.Diff(ends, got); d != "" {
			t.Errorf("tokens that end (-want +got):\n%s", d)
		}
	})
}

func TestDurability(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		d, err := s.Durability(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.Engine() == "sqlite" && (d["synchronous"] != "FULL" || d["journal_mode"] != "wal") {
			t.Errorf("SQLite is not durable: %v", d)
		}
	})
}

// A caller who leaves while its change runs takes back nobody's change, though
// what others wrote before may be on its way with what it reads.
func TestWhoLeavesTakesNobodyAlong(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		var wg sync.WaitGroup
		for i := range 200 {
			req, task := newTask(i)
			ready, err := Prepare(req, task, nil)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if err := s.Update(t.Context(), func(tx *Tx) error { return tx.CreateTask(ready) }); err != nil {
					t.Errorf("who stays: %v", err)
					return
				}
				if _, err := s.Task(t.Context(), req.ID); err != nil {
					t.Errorf("an acknowledged task: %v", err)
				}
			})
			wg.Go(func() {
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				err := s.Update(ctx, func(tx *Tx) error {
					leave()
					_, _, err := tx.Token(ctx, "none")
					return err
				})
				if err != nil {
					t.Errorf("who leaves reads on: %v", err)
				}
			})
		}
		wg.Wait()
	})
}

// How much waits is counted up to a limit, of tasks that are old enough and wait.
func TestQueueLoads(t *testing.T) {
	each(t, func(t *testing.T, s *Store) {
		for queue, n := range map[skep.QueueID]int{7: 4, 9: 1, 11: 2} {
			q := Queue{ID: queue, Dimensions: skep.Constraints{{Key: "pool", Values: []string{fmt.Sprint(queue)}}}, Expires: epoch.Add(time.Hour)}
			if err := s.Update(t.Context(), func(tx *Tx) error { return tx.SaveQueue(q) }); err != nil {
				t.Fatal(err)
			}
			for i := range n {
				req, task := newTask(i + int(queue)*10)
				if task.Queue = queue; queue == 11 && i == 0 {
					task.State = skep.Canceled
				}
				create(t, s, req, task, nil)
			}
		}
		for name, tc := range map[string]struct {
			before time.Time
			limit  int
			want   string
		}{
			"all":           {epoch.Add(time.Hour), 100, "7:4 9:1 11:1"},
			"up to a limit": {epoch.Add(time.Hour), 2, "7:2 9:1 11:1"},
			"the old ones":  {epoch.Add(72 * time.Millisecond), 100, "7:2"},
			"none is so":    {epoch, 100, ""},
		} {
			loads, err := s.QueueLoads(t.Context(), tc.before, tc.limit)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, l := range loads {
				if want := fmt.Sprint(int64(l.ID)); l.Dimensions.Get("pool")[0] != want {
					t.Errorf("queue %d has %v", l.ID, l.Dimensions)
				}
				got = append(got, fmt.Sprintf("%d:%d", l.ID, l.Tasks))
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%s: %v, want %s", name, got, tc.want)
			}
		}
	})
}
