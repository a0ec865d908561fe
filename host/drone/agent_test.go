package drone

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/bot"
)

// told is a queen that answers what it is told to, and writes down who asks.
type told struct {
	mu       sync.Mutex
	answer   Answer
	err      error
	capacity []int // of the reports
	released []string
}

func (q *told) Report(_ context.Context, _ string, capacity int) (Answer, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.capacity = append(q.capacity, capacity)
	a := q.answer
	a.Duts = slices.Clone(a.Duts)
	return a, q.err
}

func (q *told) Release(_ context.Context, _ string, duts []Assignment) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, d := range duts {
		q.released = append(q.released, d.Dut)
		q.answer.Duts = slices.DeleteFunc(q.answer.Duts, func(o Assignment) bool { return o.Dut == d.Dut })
	}
	return nil
}

// says sets what is answered from now on, and returns what was asked so far.
func (q *told) says(a Answer, err error) (capacity []int, released []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.answer, q.err = a, err
	return slices.Clone(q.capacity), slices.Clone(q.released)
}

var errAway = skep.Errorf(skep.Unavailable, "the queen is away")

// agency is an agent of a queen, in the bubble of t, whose bots drain for an
// hour; leave ends it.
func agency(q Queen, terms func() Terms, start func(a *Agent, id string) error) (a *Agent, leave func()) {
	m := &Manager{}
	a = &Agent{Queen: q, Manager: m, Terms: terms}
	m.Start = func(id string) (bot.Bot, error) {
		if err := start(a, id); err != nil {
			return nil, err
		}
		b := bot.NewFakeBot()
		b.DrainFunc = func(b *bot.FakeBot) error {
			go func() { time.Sleep(time.Hour); b.Stop() }()
			return nil
		}
		return b, nil
	}
	life, end := context.WithCancel(context.Background())
	ctx, cancel := context.WithCancel(life)
	var parts sync.WaitGroup
	parts.Go(func() { _ = m.Run(life) })
	left := make(chan struct{})
	go func() { _ = a.Run(ctx); close(left) }()
	return a, func() {
		cancel()
		<-left
		end()
		parts.Wait()
	}
}

func states(m *Manager) map[string]State {
	out := map[string]State{}
	for _, s := range m.Status() {
		out[s.ID] = s.State
	}
	return out
}

// A bot that may take long to end is not started when the lease ends too soon
// for it, and makes all bots end sooner; promise B1. The grace of bots that
// start may change while a drone runs.
func TestAGraceFitsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &told{answer: Answer{UUID: "u", Lease: 600 * time.Second, Duts: []Assignment{{Dut: "a"}}}}
		a, leave := agency(q, one, func(a *Agent, id string) error { return a.Admit(id, 180*time.Second) })
		defer leave()
		synctest.Wait()
		if got := states(a.Manager); got["a"] != Running {
			t.Fatalf("at first: %v", got)
		}
		q.says(Answer{}, errAway)
		time.Sleep(100 * time.Second)
		if err := a.Admit("b", 500*time.Second); skep.KindOf(err) != skep.Unavailable {
			t.Errorf("500 s before the end of the lease a bot that may take as long: %v", err)
		}
		if err := a.Admit("b", 300*time.Second); err != nil {
			t.Errorf("and one that may take 300 s: %v", err)
		}
		time.Sleep(124 * time.Second) // 376 s are left, 300 + 15 + 60 needed
		synctest.Wait()
		if got := states(a.Manager); got["a"] != Running {
			t.Errorf("376 s before the end of the lease: %v", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := states(a.Manager); len(got) > 0 {
			t.Errorf("374 s before the end of the lease: %v", got)
		}
	})
}

// What is asked of the queen changes while the drone runs, and is said at once.
func TestTermsTakeEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &told{answer: Answer{UUID: "u", Lease: 10 * time.Minute}}
		var mu sync.Mutex
		terms := Terms{Capacity: 2, Interval: 5 * time.Minute}
		a, leave := agency(q, func() Terms {
			mu.Lock()
			defer mu.Unlock()
			return terms
		}, func(*Agent, string) error { return nil })
		defer leave()
		time.Sleep(6 * time.Minute)
		mu.Lock()
		terms = Terms{Capacity: 7, Interval: time.Minute}
		mu.Unlock()
		a.Changed()
		time.Sleep(130 * time.Second)
		if got, _ := q.says(Answer{UUID: "u", Lease: 10 * time.Minute}, nil); !slices.Equal(got, []int{2, 2, 7, 7, 7}) {
			t.Errorf("reported capacities %v", got)
		}
		if s := a.Status(); s.Capacity != 7 {
			t.Errorf("status says %+v", s)
		}
	})
}

// A drone whose version is refused finishes its tasks, with a lease or what is
// left of it, and gives its devices back; promise B22.
func TestRefusedDronesDrain(t *testing.T) {
	for name, lease := range map[string]time.Duration{"the lease goes on": 10 * time.Minute, "it does not": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				good := func(generation int64) Answer {
					return Answer{UUID: "u", Lease: 10 * time.Minute, Duts: []Assignment{{Dut: "a", Generation: generation}}}
				}
				q := &told{answer: good(1)}
				a, leave := agency(q, one, func(a *Agent, id string) error { return a.Admit(id, time.Minute) })
				defer leave()
				synctest.Wait()
				refusal := Answer{Refused: "too old", UUID: "u"}
				if lease > 0 {
					refusal.Lease, refusal.Duts = lease, good(1).Duts
				}
				q.says(refusal, nil)
				time.Sleep(7 * time.Minute)
				synctest.Wait()
				if d := cmp.Diff(map[string]State{"a": Draining}, states(a.Manager)); d != "" {
					t.Errorf("after the refusal (-want +got):\n%s", d)
				}
				if s := a.Status(); s.Refused != "too old" {
					t.Errorf("status says %+v", s)
				}
				time.Sleep(time.Minute) // without a lease they end before it does
				synctest.Wait()
				if d := cmp.Diff(lease > 0, len(states(a.Manager)) == 1); d != "" {
					t.Errorf("near the end of the first lease: %v", states(a.Manager))
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				// This queen goes on to say that it has the device, so that it may be released again.
				if _, released := q.says(good(2), nil); lease > 0 && !slices.Contains(released, "a") || len(states(a.Manager)) > 0 {
					t.Errorf("at the end: released %v, %v", released, states(a.Manager))
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if d := cmp.Diff(map[string]State{"a": Running}, states(a.Manager)); d != "" {
					t.Errorf("admitted again (-want +got):\n%s", d)
				}
			})
		})
	}
}
