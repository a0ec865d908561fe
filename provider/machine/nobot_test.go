package machine

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skepdev/skep/provider"
)

// A pool whose machines are made and whose bots never come says so, makes few
// at a time, and is itself again when a bot came, whatever else its cloud refuses
// now and then. promise P12.
func TestBotsThatNeverCome(t *testing.T) {
	for name, fails := range map[string]bool{"a good cloud": false, "one that fails every second call": true} {
		t.Run(name, func(t *testing.T) { botsThatNeverCome(t, fails) })
	}
}

func botsThatNeverCome(t *testing.T, fails bool) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		if fails {
			n, began := map[string]int{}, time.Now()
			w.fail = func(call, name, _ string) error {
				if n[call+name]++; (call == "create" || call == "delete") && n[call+name]%2 == 1 && time.Since(began) > 10*time.Minute {
					return &provider.Error{Class: provider.Transient, Text: "not now"}
				}
				return nil
			}
		}
		boot := w.boot
		set := func(d time.Duration) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.boot = d
		}
		set(1000 * time.Hour)
		c := fixed("a", 20)
		c.Timeout = 15 * time.Minute
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(16*time.Minute + time.Second)
		p, err := w.store.MachinePool(t.Context(), "a")
		if err != nil || p.Failure.Class != string(provider.NoBot) || !strings.Contains(p.Failure.Text, "its bot never came") {
			t.Fatalf("%+v, %v", p, err)
		}
		w.mu.Lock()
		made := w.inserts
		w.mu.Unlock()
		time.Sleep(time.Hour)
		w.mu.Lock()
		if n := w.inserts - made; n < 4 || n > 10 {
			t.Errorf("%d machines in an hour", n)
		}
		w.mu.Unlock()
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || p.Failure.Class != string(provider.NoBot) {
			t.Errorf("what was wrong is forgotten: %+v, %v", p, err)
		}
		set(boot)
		time.Sleep(35 * time.Minute)
		if err := w.check(map[string]int{"a": 20}); err != nil {
			t.Error(err)
		}
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || !p.Failure.At.IsZero() {
			t.Errorf("the failure stays: %+v, %v", p, err)
		}
	})
}

// One machine whose bot does not come among others that do says nothing of
// their pool; nor does one that was not wanted any more.
func TestOneBotThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := fixed("a", 5)
		c.Timeout = 15 * time.Minute
		w.declare(c)
		stop := w.run()
		defer stop()
		time.Sleep(time.Second) // all are not made yet, and none has a bot
		for len(w.names()) < 2 {
			time.Sleep(100 * time.Millisecond)
		}
		w.mu.Lock()
		for _, in := range w.instances {
			w.instances[in.Ref.Name] = &provider.Instance{Ref: in.Ref, URL: in.URL, Created: in.Created, Labels: in.Labels} // its bot was another one's
			break
		}
		w.mu.Unlock()
		time.Sleep(16 * time.Minute)
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || !p.Failure.At.IsZero() {
			t.Errorf("%+v, %v", p, err)
		}
		if err := w.check(map[string]int{"a": 5}); err != nil || w.inserts != 6 {
			t.Errorf("%d inserts: %v", w.inserts, err)
		}
		w.mu.Lock()
		w.boot = 1000 * time.Hour
		w.mu.Unlock()
		w.declare(fixed("a", 6))
		time.Sleep(time.Minute)
		w.declare(fixed("a", 5))
		time.Sleep(20 * time.Minute)
		if p, err := w.store.MachinePool(t.Context(), "a"); err != nil || !p.Failure.At.IsZero() || len(w.names()) != 5 {
			t.Errorf("%v: %+v, %v", slices.Sorted(slices.Values(w.names())), p, err)
		}
	})
}
