package runner

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/api/botapi"
)

// fakeAPI records calls with the time since the test began.
type fakeAPI struct {
	mu     sync.Mutex
	began  time.Time
	sent   []sentUpdate
	out    []byte
	answer func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error)
	errs   []time.Duration
	refuse error // of TaskError
}

type sentUpdate struct {
	At    time.Duration
	Bytes int
	Wait  bool
	Final bool
}

func (f *fakeAPI) TaskUpdate(ctx context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
	f.mu.Lock()
	f.sent = append(f.sent, sentUpdate{time.Since(f.began), len(u.Output), u.Wait > 0, u.Final()})
	f.mu.Unlock()
	if f.answer != nil {
		res, err := f.answer(ctx, u)
		if err != nil {
			return nil, err
		}
		f.keep(u)
		return res, nil
	}
	f.keep(u)
	return &botapi.TaskUpdateResponse{OK: true}, nil
}

func (f *fakeAPI) keep(u *botapi.TaskUpdate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int(u.OutputChunkStart) <= len(f.out) && len(u.Output) > 0 {
		f.out = append(f.out[:u.OutputChunkStart], u.Output...)
	}
}

func (f *fakeAPI) TaskError(context.Context, *botapi.TaskErrorRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, time.Since(f.began))
	return f.refuse
}

func (f *fakeAPI) Session() string { return "s" }

func (f *fakeAPI) at(wait bool) (at []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sent {
		if s.Wait == wait {
			at = append(at, s.At.Round(time.Millisecond))
		}
	}
	return at
}

func newReporter(t *testing.T) (*reporter, *fakeAPI) {
	api := &fakeAPI{began: time.Now()}
	return &reporter{
		api: api, task: "11", spool: newSpool(filepath.Join(t.TempDir(), "output")), cost: func() *float64 { return nil },
		stop: func(string) {}, timing: defaultTiming, log: testLog(t), wake: make(chan struct{}, 1),
	}, api
}

func (r *reporter) write(b []byte) {
	r.spool.add(b, time.Now())
	r.poke()
}

// TestFlush holds the pauses of decisions.md 17.
func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, api := newReporter(t)
		ended, done := make(chan struct{}), make(chan struct{})
		go func() { defer close(done); r.run(t.Context(), ended) }()
		time.Sleep(time.Second)
		r.write([]byte("a")) // 1 s: goes after 2 s
		time.Sleep(500 * time.Millisecond)
		r.write([]byte("b"))
		time.Sleep(3500 * time.Millisecond) // 5 s
		r.write(bytes.Repeat([]byte("c"), 100_000))
		time.Sleep(time.Second) // 6 s
		r.write([]byte("d"))
		time.Sleep(100 * time.Millisecond)
		r.watched.Store(true) // a reader comes: at once
		r.poke()
		time.Sleep(time.Second) // 7.1 s
		for range 10 {
			r.write([]byte("e"))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		close(ended)
		<-done
		want := []time.Duration{3000, 5000, 6100, 7100, 7150, 7200}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if diff := cmp.Diff(want, api.at(false)); diff != "" {
			t.Errorf("updates at (-want +got):\n%s", diff)
		}
		if len(api.out) != 2+100_000+1+10 {
			t.Errorf("%d bytes arrived", len(api.out))
		}
	})
}

// TestAskPace: one question at a time, none to nobody.
func TestAskPace(t *testing.T) {
	transient := &botapi.Error{Status: 503, Transient: true}
	for _, tt := range []struct {
		name     string
		answer   func(ctx context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error)
		min, max int // questions in ten minutes
	}{
		{"a server that waits", func(ctx context.Context, u *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			sleepUnless(ctx, nil, time.Duration(u.Wait*1e9))
			return &botapi.TaskUpdateResponse{OK: true}, nil
		}, 12, 12},
		{"a server that does not", func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			return &botapi.TaskUpdateResponse{OK: true}, nil
		}, 60, 62},
		{"no server", func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) { return nil, transient }, 60, 140},
		{"a server that refuses", func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			return nil, &botapi.Error{Status: 401}
		}, 60, 140},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, api := newReporter(t)
				api.answer = tt.answer
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				r.ask(ctx)
				if n := len(api.at(true)); n < tt.min || n > tt.max {
					t.Errorf("%d questions, want %d to %d", n, tt.min, tt.max)
				}
			})
		})
	}
}

// TestAskStops passes the server's word on once, and goes on telling the
// server that the bot is there while the task takes its grace period.
func TestAskStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, api := newReporter(t)
		var reasons []string
		r.stop = func(s string) { reasons = append(reasons, s) }
		api.answer = func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			return &botapi.TaskUpdateResponse{MustStop: true, StopReason: "canceled"}, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r.ask(ctx)
		if diff := cmp.Diff([]string{"canceled"}, reasons); diff != "" {
			t.Error(diff)
		}
		if n := len(api.at(true)); n < 4 || n > 8 {
			t.Errorf("%d questions in a minute", n)
		}
	})
}

// TestFinalOutlastsAnOutage: hours without a server lose nothing.
func TestFinalOutlastsAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, api := newReporter(t)
		in := bytes.Repeat([]byte("0123456789"), 100_000)
		r.write(in)
		began := time.Now()
		api.answer = func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			if time.Since(began) < 5*time.Hour {
				return nil, &botapi.Error{Transient: true}
			}
			return &botapi.TaskUpdateResponse{OK: true}, nil
		}
		code := int64(0)
		if err := r.final(t.Context(), &botapi.TaskUpdate{ExitCode: &code}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(api.out, in) {
			t.Errorf("%d bytes arrived of %d", len(api.out), len(in))
		}
		if last := api.sent[len(api.sent)-1]; !last.Final || len(api.sent) > 5*3600/15+20 {
			t.Errorf("%d calls, the last %+v", len(api.sent), last)
		}
	})
}

// TestFinalGivesUp when it is refused, and when nobody answers for too long.
func TestFinalGivesUp(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  *botapi.Error
		max  time.Duration
	}{
		{"refused", &botapi.Error{Status: 403}, time.Minute},
		{"no server", &botapi.Error{Transient: true}, defaultTiming.finalFor + time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, api := newReporter(t)
				api.answer = func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) { return nil, tt.err }
				api.refuse = tt.err
				code, began := int64(0), time.Now()
				if err := r.final(t.Context(), &botapi.TaskUpdate{ExitCode: &code}); !errors.Is(err, tt.err) {
					t.Errorf("error %v", err)
				}
				if err := r.fail(t.Context(), &botapi.TaskErrorRequest{}); !errors.Is(err, tt.err) {
					t.Errorf("error %v", err)
				}
				if took := time.Since(began); took > 2*tt.max || took < tt.max/200 {
					t.Errorf("gave up after %v", took)
				}
			})
		})
	}
}

// TestRetryAfter is honoured.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, api := newReporter(t)
		r.write([]byte("x"))
		api.answer = func(context.Context, *botapi.TaskUpdate) (*botapi.TaskUpdateResponse, error) {
			if len(api.sent) == 1 {
				return nil, &botapi.Error{Status: 429, Transient: true, RetryAfter: 7 * time.Second}
			}
			return &botapi.TaskUpdateResponse{OK: true}, nil
		}
		if err := r.final(t.Context(), &botapi.TaskUpdate{}); err != nil {
			t.Fatal(err)
		}
		if at := api.at(false); len(at) != 2 || at[1] != 7*time.Second {
			t.Errorf("calls at %v", at)
		}
	})
}

// TestRelay: the end of a task goes to bot_main when nothing went to the server
// yet, once, and to the server whatever becomes of that.
func TestRelay(t *testing.T) {
	for _, tt := range []struct {
		name             string
		connected, takes bool
		relayed, sent    int
	}{
		{"taken", false, true, 1, 0},
		{"not delivered", false, false, 1, 1},
		{"connected already", true, true, 0, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, api := newReporter(t)
			relayed := 0
			r.relay = func(_ context.Context, u *botapi.TaskUpdate) bool {
				relayed++
				if string(u.Output) != "x" {
					t.Errorf("relayed output %q", u.Output)
				}
				return tt.takes
			}
			r.connected.Store(tt.connected)
			r.write([]byte("x"))
			if err := r.final(t.Context(), &botapi.TaskUpdate{ExitCode: new(int64)}); err != nil {
				t.Fatal(err)
			}
			if n, _ := r.spool.unsent(); relayed != tt.relayed || len(api.sent) != tt.sent || n != 0 {
				t.Errorf("relayed %d times, sent %d times, %d bytes unsent", relayed, len(api.sent), n)
			}
		})
	}
}
