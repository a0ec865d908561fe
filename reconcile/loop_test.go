package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs l in the bubble of t until the returned function is called.
func start(t *testing.T, l *Loop) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
	}
}

func keys(names ...string) func(context.Context, func(string)) error {
	return func(_ context.Context, each func(string)) error {
		for _, n := range names {
			each(n)
		}
		return nil
	}
}

func TestListedAtStartAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		stop := start(t, &Loop{List: keys("a", "b"), Step: func(context.Context, string) (time.Duration, error) { n.Add(1); return 0, nil }})
		defer stop()
		for i, want := range []int32{2, 4, 6} {
			synctest.Wait()
			if got := n.Load(); got != want {
				t.Errorf("after %d resyncs: %d steps, want %d", i, got, want)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestWakesCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n, at atomic.Int32
		gate := make(chan struct{})
		l := &Loop{Step: func(context.Context, string) (time.Duration, error) {
			if at.Add(1) > 1 {
				t.Error("two steps for one key at once")
			}
			<-gate
			at.Add(-1)
			n.Add(1)
			return 0, nil
		}}
		stop := start(t, l)
		defer stop()
		l.Wake("a")
		synctest.Wait()
		for range 100 {
			l.Wake("a")
		}
		close(gate)
		synctest.Wait()
		if got := n.Load(); got != 2 {
			t.Errorf("%d steps, want 2: the one that ran and one for all wakes meanwhile", got)
		}
	})
}

func TestAgainIsADateAndAWakeComesBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration // read after the loop has ended
		begun := time.Now()
		l := &Loop{Step: func(context.Context, string) (time.Duration, error) {
			at = append(at, time.Since(begun))
			return 10 * time.Second, nil
		}}
		stop := start(t, l)
		l.Wake("a")
		time.Sleep(13 * time.Second)
		l.Wake("a")
		time.Sleep(11 * time.Second)
		stop()
		want := []time.Duration{0, 10 * time.Second, 13 * time.Second, 23 * time.Second}
		if !slices.Equal(at, want) {
			t.Errorf("steps at %v, want %v", at, want)
		}
	})
}

func TestFailuresPauseAndAWakeDoesNotShortenIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		var fine atomic.Bool
		l := &Loop{Min: 8 * time.Second, Max: 32 * time.Second, Step: func(context.Context, string) (time.Duration, error) {
			n.Add(1)
			if fine.Load() {
				return 0, nil
			}
			return 0, errors.New("no")
		}}
		stop := start(t, l)
		defer stop()
		l.Wake("a")
		synctest.Wait()
		for range 3 * 10 { // 3 s of wakes, and the pause is 4 at least
			l.Wake("a")
			time.Sleep(time.Second / 10)
		}
		if got := n.Load(); got != 1 {
			t.Errorf("%d steps within a pause, want 1", got)
		}
		time.Sleep(time.Hour - 3*time.Second)
		if got := n.Load(); got < 110 || got > 230 { // 16 to 32 s apart
			t.Errorf("%d failing steps in an hour", got)
		}
		n.Store(0)
		fine.Store(true)
		l.Forgive()
		time.Sleep(time.Hour)
		if got := n.Load(); got != 1 {
			t.Errorf("%d steps after Forgive and success, want 1", got)
		}
	})
}

func TestAHungStepDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended time.Duration
		begun := time.Now()
		others := map[string]time.Duration{}
		var mu sync.Mutex
		l := &Loop{
			Workers: 2, Limit: 20 * time.Second, List: keys("hung", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
			Step: func(ctx context.Context, key string) (time.Duration, error) {
				if key == "hung" {
					<-ctx.Done()
					if ended == 0 {
						ended = time.Since(begun)
					}
					return 0, context.Cause(ctx)
				}
				time.Sleep(100 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				if _, ok := others[key]; !ok {
					others[key] = time.Since(begun)
				}
				return 0, nil
			},
		}
		stop := start(t, l)
		time.Sleep(30 * time.Second)
		stop()
		for key, took := range others {
			if took > 2*time.Second {
				t.Errorf("%s was served after %v", key, took)
			}
		}
		if len(others) != 9 || ended != 20*time.Second {
			t.Errorf("%d of 9 served; the hung step ended after %v, want 20 s", len(others), ended)
		}
	})
}

func TestHeldElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		var free atomic.Bool
		l := &Loop{
			Hold: func(context.Context, string) (func(), error) {
				if !free.Load() {
					return nil, fmt.Errorf("slot: %w", ErrHeld)
				}
				return func() {}, nil
			},
			Step: func(context.Context, string) (time.Duration, error) { n.Add(1); return 0, nil },
		}
		stop := start(t, l)
		defer stop()
		l.Wake("a")
		time.Sleep(time.Minute)
		if n.Load() != 0 {
			t.Error("a step without the right to it")
		}
		free.Store(true)
		time.Sleep(heldAgain)
		synctest.Wait()
		if got := n.Load(); got != 1 {
			t.Errorf("%d steps, want 1", got)
		}
	})
}

func TestAPanicIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		l := &Loop{Step: func(context.Context, string) (time.Duration, error) {
			if n.Add(1) == 1 {
				panic("no")
			}
			return 0, nil
		}}
		stop := start(t, l)
		defer stop()
		l.Wake("a")
		time.Sleep(time.Minute)
		if got := n.Load(); got != 2 {
			t.Errorf("%d steps, want 2", got)
		}
	})
}

func TestPassTellsWhatFailed(t *testing.T) {
	l := &Loop{List: keys("a", "b", "c"), Step: func(_ context.Context, key string) (time.Duration, error) {
		if key == "b" {
			return 0, errors.New("no")
		}
		return 0, nil
	}}
	if err := l.Pass(t.Context()); err == nil || err.Error() != "b: no" {
		t.Errorf("Pass = %v", err)
	}
}

// Whatever is woken, fails or takes time: no key is worked twice at once, no
// more keys than there are workers, and none that was woken is forgotten.
func TestNothingIsForgotten(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			workers := rapid.IntRange(1, 4).Draw(rt, "workers")
			steps := rapid.SliceOfN(rapid.IntRange(0, 5999), 1, 80).Draw(rt, "steps")
			var mu sync.Mutex
			wanted, running, had := map[string]int{}, map[string]bool{}, map[string]int{}
			fails := 0
			l := &Loop{Workers: workers, Min: time.Second, Max: 4 * time.Second}
			l.Step = func(_ context.Context, key string) (time.Duration, error) {
				mu.Lock()
				if running[key] || len(running) >= workers {
					rt.Errorf("%s starts beside %v", key, running)
				}
				running[key] = true
				see := wanted[key]
				fails++
				failing := fails%3 == 0
				mu.Unlock()
				time.Sleep(70 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				delete(running, key)
				if failing {
					return 0, errors.New("no")
				}
				had[key] = see
				return 0, nil
			}
			stop := start(t, l)
			for _, s := range steps {
				key := string(rune('a' + s%6))
				mu.Lock()
				wanted[key]++
				mu.Unlock()
				l.Wake(key)
				time.Sleep(time.Duration(s/6) * time.Millisecond / 4)
			}
			time.Sleep(time.Minute)
			stop()
			for key, n := range wanted {
				if had[key] != n {
					rt.Errorf("%s: the last step saw %d of %d changes", key, had[key], n)
				}
			}
			if len(l.keys) != 0 || len(l.queue) != 0 {
				rt.Errorf("%d keys are remembered with nothing to do", len(l.keys))
			}
		})
	})
}
