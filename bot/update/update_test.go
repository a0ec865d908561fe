package update

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/bot/code"
)

// build returns a bot that differs with name, and its digest.
func build(t testing.TB, name string) ([]byte, string) {
	t.Helper()
	var b bytes.Buffer
	exe := []byte("#!/bin/sh\n# " + name + strings.Repeat("x", 5000) + "\nexit 0\n")
	if err := code.Compose(&b, exe, code.Config{Server: "http://127.0.0.1:8900", ServerVersion: name}); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(sum[:])
}

// origin serves code; cut is how many bytes each answer brings, 0 = all.
type origin struct {
	code  map[string][]byte
	cut   int
	asked int
	fail  error
}

func (o *origin) BotCode(_ context.Context, digest string, offset int64) (io.ReadCloser, error) {
	o.asked++
	if o.fail != nil {
		return nil, o.fail
	}
	data, ok := o.code[digest]
	if !ok || offset > int64(len(data)) {
		return nil, errors.New("no such code")
	}
	data = data[offset:]
	if o.cut > 0 && len(data) > o.cut {
		return io.NopCloser(io.MultiReader(bytes.NewReader(data[:o.cut]), brokenReader{})), nil
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func updater(t testing.TB, from Code) *Updater {
	t.Helper()
	dir := t.TempDir()
	old, digest := build(t, "old")
	self := filepath.Join(dir, "swarming_bot.1")
	for _, path := range []string{self, filepath.Join(dir, "swarming_bot")} {
		if err := os.WriteFile(path, old, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &Updater{
		Dir: dir, Self: self, Version: digest, From: from, Now: time.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Check: func(context.Context, string) error { return nil },
	}
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, digest := build(t, "new")
		o := &origin{code: map[string][]byte{digest: data}, cut: 1000}
		u := updater(t, o)
		exe, err := u.Ready(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(u.Dir, "swarming_bot.2"); exe != want {
			t.Errorf("got %s, want %s", exe, want)
		}
		if got, err := os.ReadFile(exe); err != nil || !bytes.Equal(got, data) {
			t.Errorf("the slot does not hold the new code: %v", err)
		}
		if want := len(data)/1000 + 1; o.asked != want {
			t.Errorf("asked %d times, want %d: what came is not asked for again", o.asked, want)
		}
		if tr := u.Trial(); tr == nil || tr.Version != digest || tr.From != u.Version || tr.Slot != "swarming_bot.2" {
			t.Errorf("trial %+v", tr)
		}
		if diff := cmp.Diff([]string{"swarming_bot", "swarming_bot.1", "swarming_bot.2", StateFile}, names(t, u.Dir)); diff != "" {
			t.Error(diff)
		}
	})
}

// Truncated, swapped or foreign code is not run.
func TestCodeThatIsRefused(t *testing.T) {
	good, digest := build(t, "new")
	for _, tc := range []struct {
		name, digest string
		origin       origin
		check        func(u *Updater) func(context.Context, string) error
		want         string
	}{
		{"truncated", digest, origin{code: map[string][]byte{digest: good[:len(good)-1]}}, nil, "it is not run"},
		{"swapped", digest, origin{code: map[string][]byte{digest: []byte("something else")}}, nil, "it is not run"},
		{"empty", digest, origin{code: map[string][]byte{digest: nil}}, nil, "it is not run"},
		{"unknown", digest, origin{}, nil, "no such code"},
		{"no digest", "../../etc/passwd", origin{}, nil, "no digest of bot code"},
		{"not fine", digest, origin{code: map[string][]byte{digest: good}}, func(*Updater) func(context.Context, string) error {
			return func(context.Context, string) error { return errors.New("exit status 1: broken") }
		}, "broken"},
		{"never fine", digest, origin{code: map[string][]byte{digest: good}}, func(*Updater) func(context.Context, string) error {
			return func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		}, "longer than 1m0s"},
		{"changed while tried", digest, origin{code: map[string][]byte{digest: good}}, func(u *Updater) func(context.Context, string) error {
			return func(_ context.Context, exe string) error {
				return os.WriteFile(exe, []byte("#!/bin/sh\nrm -rf /\n"), 0o755)
			}
		}, "changed on the disk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := updater(t, &tc.origin)
				if tc.check != nil {
					u.Check = tc.check(u)
				}
				before, _ := os.ReadFile(u.Good())
				_, err := u.Ready(t.Context(), tc.digest)
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %v, want an error with %q", err, tc.want)
				}
				if u.Trial() != nil {
					t.Error("a trial began")
				}
				after, _ := os.ReadFile(u.Good())
				if !bytes.Equal(before, after) {
					t.Error("the last known good code changed")
				}
			})
		})
	}
}

func TestTrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data, digest := build(t, "new")
		old := updater(t, &origin{code: map[string][]byte{digest: data}})
		if _, err := old.Ready(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
		fresh := &Updater{Dir: old.Dir, Self: filepath.Join(old.Dir, "swarming_bot.2"), Version: digest, Now: time.Now, Log: old.Log}
		if onTrial, failed, err := fresh.Start(); !onTrial || failed != "" || err != nil {
			t.Fatalf("new code: on trial %v, failed %q, %v", onTrial, failed, err)
		}
		for over := false; !over; {
			time.Sleep(time.Minute)
			var err error
			if over, err = fresh.Alive(); err != nil {
				t.Fatal(err)
			}
		}
		if tr := fresh.Trial(); tr.Alive.Sub(tr.Began) <= MaxTrial {
			t.Errorf("the trial ended after %v", tr.Alive.Sub(tr.Began))
		}

		// The old code comes back, tells of it, and leaves that code alone for longer
		// and longer.
		onTrial, failed, err := old.Start()
		if onTrial || !strings.Contains(failed, digest) || err != nil {
			t.Fatalf("old code: on trial %v, failed %q, %v", onTrial, failed, err)
		}
		for i, want := range []time.Duration{1, 2, 4, 8} {
			want *= time.Minute
			if got := old.Pause(digest); got != want {
				t.Errorf("pause %d is %v, want %v", i, got, want)
			}
			time.Sleep(want)
			if got := old.Pause(digest); got != 0 {
				t.Errorf("after the pause %v is left", got)
			}
			if err := old.Failed(digest); err != nil {
				t.Fatal(err)
			}
		}
		if _, failed, _ := old.Start(); failed != "" {
			t.Errorf("told twice: %s", failed)
		}

		// Once it works, nothing is held against it.
		if _, err := old.Ready(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
		if err := fresh.Passed(); err != nil {
			t.Fatal(err)
		}
		if got := old.Pause(digest); got != 0 || old.Trial() != nil {
			t.Errorf("pause %v, trial %v", got, old.Trial())
		}
		if diff := cmp.Diff([]string{"swarming_bot", "swarming_bot.1", "swarming_bot.2"}, names(t, old.Dir)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestKeepGood(t *testing.T) {
	for _, tc := range []struct {
		name      string
		good      string // "" = missing
		age       time.Duration
		succeeded bool
		want      bool // refreshed
	}{
		{"missing", "", 0, false, true},
		{"the same", "old", time.Hour, true, false},
		{"another, idle", "other", time.Hour, false, false},
		{"another, a task succeeded", "other", time.Hour, true, true},
		{"another, a week old", "other", 8 * 24 * time.Hour, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := updater(t, nil)
			if tc.good == "" {
				os.Remove(u.Good())
			} else {
				data, _ := build(t, tc.good)
				if err := os.WriteFile(u.Good(), data, 0o755); err != nil {
					t.Fatal(err)
				}
				at := time.Now().Add(-tc.age)
				if err := os.Chtimes(u.Good(), at, at); err != nil {
					t.Fatal(err)
				}
			}
			before, _ := os.Stat(u.Good())
			if err := u.KeepGood(tc.succeeded); err != nil {
				t.Fatal(err)
			}
			after, err := os.Stat(u.Good())
			if err != nil {
				t.Fatal(err)
			}
			if got := before == nil || !os.SameFile(before, after); got != tc.want {
				t.Errorf("refreshed %v, want %v", got, tc.want)
			}
			if have, _ := code.Version(u.Good()); tc.want && have != u.Version {
				t.Errorf("it holds %s", have)
			}
		})
	}
}

func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		name       string
		script     func(u *Updater, running *atomic.Bool) // what happens meanwhile
		kill       bool
		start      bool
		wantWithin time.Duration
	}{
		{"the code passes", func(u *Updater, _ *atomic.Bool) { time.Sleep(5 * time.Second); _ = u.Passed() }, false, false, 7 * time.Second},
		{"it hangs", func(*Updater, *atomic.Bool) {}, true, true, 90 * time.Second},
		{"it dies and nobody starts it", func(_ *Updater, running *atomic.Bool) { time.Sleep(time.Second); running.Store(false) }, false, true, 30 * time.Second},
		{"it waits for a server that is away", func(u *Updater, _ *atomic.Bool) {
			for range 20 {
				time.Sleep(10 * time.Second)
				_, _ = u.Alive()
			}
			_ = u.Passed()
		}, false, false, 5 * time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data, digest := build(t, "new")
				u := updater(t, &origin{code: map[string][]byte{digest: data}})
				if _, err := u.Ready(t.Context(), digest); err != nil {
					t.Fatal(err)
				}
				var running atomic.Bool
				running.Store(true)
				killed, started := false, false
				go tc.script(u, &running)
				begin := time.Now()
				if err := u.Guard(t.Context(), digest, func() { killed = true; running.Store(false) }, running.Load,
					func() error { started = true; return nil }); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took > tc.wantWithin {
					t.Errorf("took %v, want %v at most", took, tc.wantWithin)
				}
				if killed != tc.kill || started != tc.start {
					t.Errorf("killed %v, started %v; want %v, %v", killed, started, tc.kill, tc.start)
				}
			})
		})
	}
}

func FuzzState(f *testing.F) {
	f.Add([]byte(`{"trial":{"version":"00","slot":"../x"},"failed":[{"version":"x","count":-1}]}`))
	f.Add([]byte(`{"trial":{"version":"` + strings.Repeat("a", 64) + `","slot":"swarming_bot.2"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		u := updater(t, nil)
		if err := os.WriteFile(filepath.Join(u.Dir, StateFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if tr := u.Trial(); tr != nil && (!isDigest(tr.Version) || strings.ContainsRune(tr.Slot, filepath.Separator)) {
			t.Errorf("trial %+v", tr)
		}
		if _, _, err := u.Start(); err != nil {
			t.Error(err)
		}
		if p := u.Pause(strings.Repeat("a", 64)); p < 0 {
			t.Errorf("pause %v", p)
		}
	})
}

// endless serves zeros for ever.
type endless struct{}

func (endless) BotCode(context.Context, string, int64) (io.ReadCloser, error) {
	return io.NopCloser(zeros{}), nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestCodeWithoutEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 256 MiB")
	}
	u := updater(t, endless{})
	_, err := u.Ready(t.Context(), strings.Repeat("a", 64))
	if err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff([]string{"swarming_bot", "swarming_bot.1"}, names(t, u.Dir)); diff != "" {
		t.Error(diff)
	}
}
