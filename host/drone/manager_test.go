package drone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/bot"
)

// manage runs m in the bubble of t; the function ends all bots and it.
func manage(t *testing.T, m *Manager) (end func()) {
	ctx, cancel := context.WithCancel(context.Background()) //nolint:usetesting // it ends in the bubble
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		m.Block()
		m.TerminateAll()
		if err := m.Wait(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}

// Starts that fail, and bots that end at once, are tried 40 times an hour at
// most; promise B2.
func TestStartsArePaced(t *testing.T) {
	for name, start := range map[string]func() (bot.Bot, error){
		"fails": func() (bot.Bot, error) { return nil, errors.New("no") },
		"ends at once": func() (bot.Bot, error) {
			b := bot.NewFakeBot()
			b.Stop()
			return b, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var at []time.Time
				m := &Manager{Start: func(string) (bot.Bot, error) {
					mu.Lock()
					defer mu.Unlock()
					at = append(at, time.Now())
					return start()
				}}
				end := manage(t, m)
				begun := time.Now()
				m.Add("a")
				time.Sleep(5 * time.Second)
				synctest.Wait()
				mu.Lock()
				if n := len(at); n < 2 || n > 5 {
					t.Errorf("%d starts in 5 s", n)
				}
				mu.Unlock()
				time.Sleep(10 * time.Hour)
				end()
				for i, first := range at {
					n := 0
					for _, next := range at[i:] {
						if next.Sub(first) < time.Hour {
							n++
						}
					}
					if n > maxAttempts {
						t.Fatalf("%d starts within an hour from %v", n, first.Sub(begun))
					}
				}
				if len(at) < 300 {
					t.Errorf("%d starts in 10 h: it gave up", len(at))
				}
			})
		})
	}
}

func TestPauseStartsOverAfterTenMinutesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var last *bot.FakeBot
		var at []time.Time
		m := &Manager{Start: func(string) (bot.Bot, error) {
			mu.Lock()
			defer mu.Unlock()
			last = bot.NewFakeBot()
			at = append(at, time.Now())
			return last, nil
		}}
		stop := func() {
			mu.Lock()
			defer mu.Unlock()
			last.Stop()
		}
		end := manage(t, m)
		m.Add("a")
		for range 8 {
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			stop()
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		time.Sleep(steady)
		stop()
		ended := time.Now()
		time.Sleep(time.Minute)
		synctest.Wait()
		mu.Lock()
		pause := at[len(at)-1].Sub(ended)
		mu.Unlock()
		if pause <= 0 || pause > minPause {
			t.Errorf("started %v after its end, want within %v", pause, minPause)
		}
		end()
	})
}

func TestDrainAndTerminate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var gone []string
		released := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(gone)
		}
		var starts atomic.Int32
		m := &Manager{
			Start: func(string) (bot.Bot, error) {
				starts.Add(1)
				b := bot.NewFakeBot()
				b.DrainFunc = func(b *bot.FakeBot) error {
					go func() { time.Sleep(time.Hour); b.Stop() }()
					return nil
				}
				b.TerminateFunc = func(b *bot.FakeBot) error { time.Sleep(time.Minute); b.Stop(); return nil }
				return b, nil
			},
			Released: func(id string) {
				mu.Lock()
				defer mu.Unlock()
				gone = append(gone, id)
			},
		}
		end := manage(t, m)
		for _, id := range []string{"drained", "ended", "undrained"} {
			m.Add(id)
			m.Add(id)
		}
		synctest.Wait()
		m.Drain("drained")
		m.Drain("undrained")
		m.Terminate("ended")
		m.Terminate("unknown")
		synctest.Wait()
		if !slices.Equal(released(), []string{"unknown"}) {
			t.Errorf("released %v at once, want the one that was not known", released())
		}
		for _, s := range m.Status() {
			if want := map[string]State{"drained": Draining, "ended": Stopping, "undrained": Draining}[s.ID]; s.State != want {
				t.Errorf("%s is %s, want %s", s.ID, s.State, want)
			}
		}
		m.Undrain("undrained")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !slices.Equal(released(), []string{"unknown", "ended"}) {
			t.Errorf("released %v", released())
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if !slices.Equal(released(), []string{"unknown", "ended", "drained"}) || !slices.Equal(m.Active(), []string{"undrained"}) || starts.Load() != 4 {
			t.Errorf("released %v, active %v, %d starts", released(), m.Active(), starts.Load())
		}
		m.Block()
		m.Add("late")
		if slices.Contains(m.Active(), "late") {
			t.Error("added although blocked")
		}
		end()
	})
}

// A bot that is held finishes, and is neither started nor released whatever
// else is added and undrained, until it is held no more; promise B10.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		starts, gone := map[string]int{}, map[string]int{}
		m := &Manager{
			Start: func(id string) (bot.Bot, error) {
				mu.Lock()
				defer mu.Unlock()
				starts[id]++
				b := bot.NewFakeBot()
				b.DrainFunc = func(b *bot.FakeBot) error {
					go func() { time.Sleep(time.Minute); b.Stop() }()
					return nil
				}
				return b, nil
			},
			Released: func(id string) {
				mu.Lock()
				defer mu.Unlock()
				gone[id]++
			},
		}
		end := manage(t, m)
		m.Hold("early")
		for _, id := range []string{"held", "early", "quick"} {
			m.Add(id)
		}
		want := func(when string, states map[string]State, started map[string]int) {
			t.Helper()
			synctest.Wait()
			have := map[string]State{}
			for _, s := range m.Status() {
				have[s.ID] = s.State
			}
			mu.Lock()
			defer mu.Unlock()
			if d := cmp.Diff(states, have); d != "" {
				t.Errorf("%s, states (-want +got):\n%s", when, d)
			}
			if d := cmp.Diff(started, starts); d != "" {
				t.Errorf("%s, starts (-want +got):\n%s", when, d)
			}
			if len(gone) > 0 {
				t.Errorf("%s, released: %v", when, gone)
			}
		}
		want("at first", map[string]State{"held": Running, "early": Drained, "quick": Running}, map[string]int{"held": 1, "quick": 1})
		m.Hold("held")
		m.Hold("quick")
		want("held", map[string]State{"held": Draining, "early": Drained, "quick": Draining}, map[string]int{"held": 1, "quick": 1})
		m.Unhold("quick") // before it has ended
		time.Sleep(2 * time.Minute)
		for _, id := range m.Active() {
			m.Add(id)
			m.Undrain(id)
		}
		want("drained", map[string]State{"held": Drained, "early": Drained, "quick": Running}, map[string]int{"held": 1, "quick": 2})
		m.Unhold("held")
		m.Unhold("early")
		want("taken back", map[string]State{"held": Running, "early": Running, "quick": Running}, map[string]int{"held": 2, "early": 1, "quick": 2})
		m.Hold("held")
		time.Sleep(2 * time.Minute)
		m.Drain("held")
		synctest.Wait()
		mu.Lock()
		if len(gone) != 1 || gone["held"] != 1 {
			t.Errorf("drained for good: %v are released", gone)
		}
		mu.Unlock()
		end()
	})
}

// A bot that cannot be ended is not released: its device stays its.
func TestWhatCannotBeEndedIsNotReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tries atomic.Int32
		var released atomic.Bool
		m := &Manager{
			Start: func(string) (bot.Bot, error) {
				b := bot.NewFakeBot()
				b.TerminateFunc = func(b *bot.FakeBot) error {
					if tries.Add(1) < 5 {
						return errors.New("still there")
					}
					b.Stop()
					return nil
				}
				return b, nil
			},
			Released: func(string) { released.Store(true) },
		}
		end := manage(t, m)
		m.Add("a")
		synctest.Wait()
		m.Terminate("a")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if released.Load() {
			t.Error("released while it lives")
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if !released.Load() {
			t.Errorf("not released after %d tries", tries.Load())
		}
		end()
	})
}

// Whatever is asked when: moves are those of the table (another panics), one
// bot of an id lives at a time, and everything is released in the end.
func TestManagerMoves(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			live := map[string]*atomic.Int32{"a": {}, "b": {}}
			fail := rapid.SliceOfN(rapid.Bool(), 8, 8).Draw(rt, "fail")
			n := atomic.Int32{}
			m := &Manager{Start: func(id string) (bot.Bot, error) {
				if fail[int(n.Add(1))%len(fail)] {
					return nil, errors.New("no")
				}
				if live[id].Add(1) != 1 {
					t.Errorf("two bots %s", id)
				}
				b := bot.NewFakeBot()
				stop := func(b *bot.FakeBot) error { live[id].Store(0); b.Stop(); return nil }
				b.TerminateFunc = stop
				b.DrainFunc = func(b *bot.FakeBot) error { go func() { time.Sleep(time.Minute); _ = stop(b) }(); return nil }
				return b, nil
			}}
			end := manage(t, m)
			for range rapid.IntRange(1, 30).Draw(rt, "steps") {
				id := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "id")
				switch rapid.IntRange(0, 6).Draw(rt, "what") {
				case 0, 1:
					m.Add(id)
				case 2:
					m.Drain(id)
				case 3:
					m.Undrain(id)
				case 4:
					m.Terminate(id)
				case 5:
					m.Hold(id)
				case 6:
					m.Unhold(id)
				}
				time.Sleep(time.Duration(rapid.IntRange(0, 100).Draw(rt, "seconds")) * time.Second)
			}
			end()
			time.Sleep(2 * time.Minute)
			if left := m.Active(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	})
}

// one is room for one device.
func one() Terms { return Terms{Capacity: 1} }

// dead is a queen that never answers.
type dead struct{ at []time.Time }

func (d *dead) Report(ctx context.Context, _ string, _ int) (Answer, error) {
	d.at = append(d.at, time.Now())
	<-ctx.Done()
	return Answer{}, ctx.Err()
}

func (d *dead) Release(ctx context.Context, _ string, _ []Assignment) error {
	<-ctx.Done()
	return ctx.Err()
}

// A dead queen is asked with pauses that grow; promise B3.
func TestADeadQueenIsNotHammered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &dead{}
		m := &Manager{Start: func(string) (bot.Bot, error) { return bot.NewFakeBot(), nil }}
		life, end := context.WithCancel(context.Background()) //nolint:usetesting // it ends in the bubble
		done := make(chan struct{})
		go func() { _ = m.Run(life); close(done) }()
		a := &Agent{Queen: q, Manager: m, Terms: one}
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour) //nolint:usetesting // it ends in the bubble
		defer cancel()
		_ = a.Run(ctx)
		end()
		<-done
		if n := len(q.at); n > 90 || n < 50 {
			t.Errorf("%d reports in an hour", n)
		}
	})
}

// busy is a queen that is away, and then counts.
type busy struct {
	back time.Time

	mu        sync.Mutex
	perSecond map[int64]int
	last      map[string]time.Time // first report of each drone since it is back
}

func (q *busy) Report(_ context.Context, uuid string, _ int) (Answer, error) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.perSecond[now.Unix()]++
	if now.Before(q.back) {
		return Answer{}, skep.Errorf(skep.Unavailable, "the queen is away")
	}
	if uuid == "" {
		uuid = fmt.Sprint("drone", len(q.last))
	}
	if _, ok := q.last[uuid]; !ok {
		q.last[uuid] = now
	}
	return Answer{UUID: uuid, Lease: 10 * time.Minute}, nil
}

func (q *busy) Release(context.Context, string, []Assignment) error { return nil }

// 1,000 drones find a queen that comes back within 60 s, with no more than 100
// requests in a second; promise B3. With the race detector they are fewer.
func TestAThousandDronesComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		q := &busy{back: begun.Add(10 * time.Minute), perSecond: map[int64]int{}, last: map[string]time.Time{}}
		life, end := context.WithCancel(context.Background()) //nolint:usetesting // it ends in the bubble
		ctx, cancel := context.WithTimeout(life, 12*time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for range drones {
			m := &Manager{Start: func(string) (bot.Bot, error) { return bot.NewFakeBot(), nil }}
			all.Go(func() { _ = m.Run(life) })
			all.Go(func() {
				_ = (&Agent{Queen: q, Manager: m, Terms: one}).Run(ctx)
			})
		}
		time.Sleep(11*time.Minute + 30*time.Second)
		q.mu.Lock()
		most, latest := 0, time.Duration(0)
		for at, n := range q.perSecond {
			if time.Unix(at, 0).After(begun.Add(5 * time.Minute)) { // they were not all started in one second
				most = max(most, n)
			}
		}
		for _, at := range q.last {
			latest = max(latest, at.Sub(q.back))
		}
		found := len(q.last)
		q.mu.Unlock()
		t.Logf("%d drones are back %v after the queen; %d requests in a second at most", found, latest, most)
		if found != drones || latest > time.Minute || most > 100 {
			t.Error("want all within a minute, and 100 requests in a second")
		}
		<-ctx.Done()
		end()
		all.Wait()
	})
}

// The drain file is followed at once; the socket says how it stands.
func TestDoor(t *testing.T) {
	dir := t.TempDir()
	m := &Manager{Start: func(string) (bot.Bot, error) { return bot.NewFakeBot(), nil }}
	m.init()
	told := make(chan bool, 4)
	d := &Door{Dir: dir, Manager: m, Drain: func(on bool) { told <- on }, Log: m.Log}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	if err := os.WriteFile(filepath.Join(dir, DrainFile), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	go func() { done <- d.Run(ctx) }()
	if !<-told {
		t.Error("the file that was there is not followed")
	}
	if fi, err := os.Stat(filepath.Join(dir, SocketFile)); err != nil || runtime.GOOS != "windows" && fi.Mode().Perm() != 0o660 {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	if err := os.Remove(filepath.Join(dir, DrainFile)); err != nil {
		t.Fatal(err)
	}
	if <-told {
		t.Error("its removal is not followed")
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Bots are drained and undrained by name, and stay drained over a restart;
// promise B10.
func TestDoorHoldsBots(t *testing.T) {
	dir := t.TempDir()
	ask := func(m *Manager, request string, status int) string {
		t.Helper()
		d := &Door{Dir: dir, Manager: m, Log: slog.New(slog.DiscardHandler)}
		w := httptest.NewRecorder()
		d.handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, request, nil))
		if w.Code != status {
			t.Errorf("%s: %d %s", request, w.Code, w.Body)
		}
		return w.Body.String()
	}
	started := func() *Manager {
		m := &Manager{Start: func(string) (bot.Bot, error) { return bot.NewFakeBot(), nil }}
		if err := (&Door{Dir: dir, Manager: m}).Load(); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b", "c"} {
			m.Add(id)
		}
		return m
	}
	m := started()
	if said := ask(m, "/drain?bots=a&bots=nobody", http.StatusNotFound); !strings.Contains(said, `"not_found"`) || !strings.Contains(said, "nobody") || len(m.Held()) > 0 {
		t.Errorf("an unknown bot: %s, held %v", said, m.Held())
	}
	ask(m, "/drain?bots=c&bots=a", http.StatusOK)
	ask(m, "/drain?bots=b", http.StatusOK)
	ask(m, "/undrain?bots=c", http.StatusOK)
	ask(m, "/undrain?bots=c", http.StatusOK)
	for _, m := range []*Manager{m, started()} {
		if !slices.Equal(m.Held(), []string{"a", "b"}) {
			t.Errorf("held are %v", m.Held())
		}
	}
	if err := os.WriteFile(filepath.Join(dir, heldFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := (&Door{Dir: dir, Manager: m}).Load(); err == nil || !strings.Contains(err.Error(), heldFile) {
		t.Errorf("a broken file: %v", err)
	}
}
