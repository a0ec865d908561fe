package scheduler

import (
	"context"
	"runtime"
	"testing"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/store"
)

// newHearing is a scheduler that hears what others on the database tell. It
// looks at its queues only when something wakes it: no tick finds what was not
// heard. heard has a value for each hint, after it was followed.
func newHearing(t *testing.T, dsn string, o Options) (s *Scheduler, heard chan store.News) {
	t.Helper()
	st, err := store.Open(t.Context(), dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s = New(st, o)
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	heard = make(chan store.News, 100)
	listening := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, 2)
	go func() {
		_ = st.Listen(ctx, func(n store.News) { s.Heard(ctx, n); heard <- n }, func(error) { listening <- struct{}{} })
		done <- struct{}{}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			select {
			case <-ctx.Done():
				s.Drain()
				return
			case <-s.queues.wake:
				s.match(ctx)
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		<-done
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	<-listening
	return s, heard
}

func hear(t *testing.T, heard chan store.News, topic store.Topic, key string) {
	t.Helper()
	for n := range heard {
		if n == (store.News{Topic: topic, Key: key}) {
			return
		}
	}
}

// A poll that waits at one server gets the task that came in at another
// process, in a queue that nobody knew; and the end of the bot is told to that
// process, which has no polls and keeps nothing of what it took in.
func TestOtherProcessesAreHeard(t *testing.T) {
	dsn := pgtest.DSN(t)
	watched := make(chan skep.BotID, 10)
	a, atA := newHearing(t, dsn, Options{Version: "v"})
	b, atB := newHearing(t, dsn, Options{Version: "v", NoPolls: true, Watch: func(id skep.BotID) { watched <- id }})

	bot := func() *skep.Bot {
		return &skep.Bot{ID: "b1", Version: "v", SessionID: "s", Dimensions: skep.Dimensions{"id": {"b1"}, "pool": {"p"}}}
	}
	if err := a.Connect(t.Context(), bot()); err != nil {
		t.Fatal(err)
	}
	hear(t, atB, store.NewsBot, "b1")
	if got := <-watched; got != "b1" {
		t.Errorf("watched %q", got)
	}
	poll := func(key string) chan Command {
		got := make(chan Command, 1)
		go func() {
			cmd, err := a.Poll(t.Context(), Poll{Bot: bot(), Key: key, Wait: MaxWait})
			if err != nil {
				t.Error(err)
			}
			got <- cmd
		}()
		for !a.queues.waits("b1", key) {
			runtime.Gosched()
		}
		return got
	}
	got := poll("k1")
	id, err := b.Terminate(t.Context(), "b1", "skep:provider", "its time is over")
	if err != nil {
		t.Fatal(err)
	}
	if cmd := <-got; cmd.Task == nil || cmd.Task.ID != id {
		t.Fatalf("the poll at the other server got %+v", cmd)
	}
	if n := len(b.queues.all) + len(b.recent.byID); n != 0 {
		t.Errorf("%d things are kept where no bot polls", n)
	}
	if err := a.Event(t.Context(), bot(), skep.EventShutdown, "", ""); err != nil {
		t.Fatal(err)
	}
	if got := <-watched; got != "b1" {
		t.Errorf("watched %q", got)
	}

	// One that is deleted elsewhere while its poll waits here comes back at once.
	got = poll("k2")
	if err := b.Delete(t.Context(), "b1"); err != nil {
		t.Fatal(err)
	}
	hear(t, atA, store.NewsDeleted, "b1")
	if cmd := <-got; cmd.Task != nil {
		t.Errorf("the poll of a deleted bot got %+v", cmd)
	}
}
