package machine

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/store"
)

// What another process tells is followed at once, not at the next look at
// everything.
func TestHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.r = w.reconciler(Options{Resync: 24 * time.Hour, Audit: 24 * time.Hour})
		w.declare(fixed("a", 1))
		stop := w.run()
		defer stop()
		time.Sleep(time.Minute)
		first := w.names()[0]

		// A bot that left, which another process saw.
		leave := func() {
			err := w.store.Update(t.Context(), func(tx *store.Tx) error {
				b, err := tx.LockBot(skep.BotID(first))
				if err != nil {
					return err
				}
				b.Dead, b.Terminated = true, 0x70
				return tx.SaveBot(b)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		leave()
		time.Sleep(time.Hour)
		if got := w.names()[0]; got != first {
			t.Fatal("somebody told it")
		}
		w.r.Heard(store.News{Topic: store.NewsBot, Key: first})
		time.Sleep(time.Minute)
		second := w.names()[0]
		if second == first {
			t.Fatal("it did not hear of the bot")
		}

		// The same, when nobody knows what was missed.
		first = second
		leave()
		w.r.Missed()
		time.Sleep(time.Minute)
		if got := w.names()[0]; got == first {
			t.Error("it did not look at everything")
		}

		// A pool that somebody else resized.
		err := w.store.Update(t.Context(), func(tx *store.Tx) error {
			p, err := tx.LockMachinePool("a")
			if err != nil {
				return err
			}
			p.Held = true
			return tx.SaveMachinePool(p)
		})
		if err != nil {
			t.Fatal(err)
		}
		w.r.Heard(store.News{Topic: store.NewsMachine, Key: poolKey("a")})
		time.Sleep(time.Minute)
		if got := w.names(); len(got) > 0 {
			t.Errorf("the pool keeps %v", got)
		}
		w.r.Heard(store.News{Topic: store.NewsMachine, Key: "nonsense"})
		w.r.Heard(store.News{Topic: "other", Key: "a"})
		time.Sleep(time.Minute)
	})
}

// One without clouds steers what another looks after, and tells it.
func TestSteeredFromElsewhere(t *testing.T) {
	w := newWorldOn(t, pgtest.DSN(t))
	other, err := store.Open(t.Context(), w.dsn, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	steer, err := New(t.Context(), other, nil, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.declare(fixed("a", 1))
	heard := make(chan store.News, 100)
	listening := make(chan error, 100)
	go func() {
		_ = w.store.Listen(t.Context(), func(n store.News) { heard <- n }, func(err error) { listening <- err })
	}()
	if err := <-listening; err != nil {
		t.Fatal(err)
	}
	if _, err := steer.RunStep(t.Context(), ExpandConfigs, "a"); skep.KindOf(err) != skep.Precondition {
		t.Errorf("a step without clouds: %v", err)
	}
	if _, err := w.r.RunStep(t.Context(), ExpandConfigs, "a"); err != nil {
		t.Fatal(err)
	}
	next := func(want string) {
		t.Helper()
		for n := range heard {
			if n.Topic == store.NewsMachine && n.Key == want {
				return
			}
		}
	}
	if _, err := steer.Hold(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	next("pool a")
	if _, err := steer.Replace(t.Context(), "a-0"); err != nil {
		t.Fatal(err)
	}
	next("vm a a-0")
}
