package scheduler

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

func TestConcurrentTerminationsAreOne(t *testing.T) {
	s := newScheduler(t)
	var wg sync.WaitGroup
	ids := make([]skep.TaskID, 20)
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = s.Terminate(t.Context(), "b1", "user:a", ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == 0 {
			t.Fatalf("tasks %v, want one", ids)
		}
	}
	if other, err := s.Terminate(t.Context(), "b2", "user:a", ""); err != nil || other == ids[0] {
		t.Errorf("termination of another bot: %v %v", other, err)
	}
}

func TestSteer(t *testing.T) {
	s := newScheduler(t)
	drain := func(o *store.Orders, now time.Time) { o.Drain = &store.Order{Reason: "disk", By: "user:a", Since: now} }
	if _, err := s.Steer(t.Context(), "b1", "drained", drain); skep.KindOf(err) != skep.NotFound {
		t.Fatalf("an unknown bot: %v, want NotFound", err)
	}
	b := &skep.Bot{ID: "b1", Dimensions: skep.Dimensions{"id": {"b1"}, "pool": {"p"}}, Version: "v"}
	if err := s.Connect(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Steer(t.Context(), "b1", "drained", drain); err != nil {
		t.Fatal(err)
	}
	got, err := s.store.Bot(t.Context(), "b1")
	if err != nil || got.Maintenance != "drained by user:a: disk" {
		t.Errorf("the record says %q, %v", got.Maintenance, err)
	}
	if _, err := s.Steer(t.Context(), "b1", "undrained", func(o *store.Orders, _ time.Time) { o.Drain = nil }); err != nil {
		t.Fatal(err)
	}
	if got, err = s.store.Bot(t.Context(), "b1"); err != nil || got.Maintenance != "" {
		t.Errorf("afterwards the record says %q, %v", got.Maintenance, err)
	}
	if os, err := s.store.Orders(t.Context()); err != nil || len(os) != 0 {
		t.Errorf("orders %v %v, want none", os, err)
	}
}

// A drained bot gets no work, but may be told to end.
func TestDrainedBotEnds(t *testing.T) {
	s := newScheduler(t)
	poll := func(end bool) Command {
		t.Helper()
		b := &skep.Bot{ID: "b1", Dimensions: skep.Dimensions{"id": {"b1"}, "pool": {"p"}}, Version: "v", Maintenance: "drained"}
		cmd, err := s.Poll(t.Context(), Poll{Bot: b, Key: time.Now().String(), Wait: 10 * time.Millisecond, End: end})
		if err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	poll(true)
	id, err := s.Terminate(t.Context(), "b1", "user:a", "")
	if err != nil {
		t.Fatal(err)
	}
	if cmd := poll(false); cmd.Task != nil {
		t.Errorf("a bot that ends by itself is given %v", cmd.Task.ID)
	}
	if cmd := poll(true); cmd.Task == nil || cmd.Task.ID != id {
		t.Errorf("got %v, want the termination", cmd.Task)
	}
}

// newScheduler returns a scheduler that runs until the test ends.
func newScheduler(t *testing.T) *Scheduler {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skep.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st, Options{Version: "v1"})
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
