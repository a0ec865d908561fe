package drone

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

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
				switch rapid.IntRange(0, 4).Draw(rt, "what") {
				case 0, 1:
					m.Add(id)
				case 2:
					m.Drain(id)
				case 3:
					m.Undrain(id)
				case 4:
					m.Terminate(id)
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
		a := &Agent{Queen: q, Manager: m, Capacity: 1, Grace: time.Minute}
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
