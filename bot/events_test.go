package bot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestEventsSurviveAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		up := time.Now().Add(10 * time.Minute)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "event" && time.Now().Before(up) {
				return 503, ""
			}
			return 0, ""
		}
		wait := f.start(t)
		f.Error("one")
		f.Error("two")
		f.Error("one")
		time.Sleep(11 * time.Minute)
		f.Error("one")
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		var got []string
		keys := map[string]string{}
		for _, c := range f.server.of("event") {
			if key := c.str("request_uuid"); keys[key] == "" {
				keys[key] = c.str("message")
			} else if keys[key] != c.str("message") {
				t.Errorf("one key for %q and %q", keys[key], c.str("message"))
			}
			if !c.at.Before(up) {
				got = append(got, c.str("message"))
			}
		}
		if want := "one two one test"; strings.Join(got, " ") != want {
			t.Errorf("delivered %q, want %q", got, want)
		}
	})
}

func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		for i := range maxEvents + 10 {
			f.Error(fmt.Sprint("error ", i))
		}
		if got := f.out.len(); got != maxEvents {
			t.Errorf("%d events wait, want %d", got, maxEvents)
		}
		if e, _ := f.out.first(); e.Text != "error 10" {
			t.Errorf("oldest = %q, want error 10", e.Text)
		}
	})
}

func TestRefusedEventsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.str("message") == "bad" {
				return 400, `{"error":"no"}`
			}
			return 0, ""
		}
		wait := f.start(t)
		f.Error("bad")
		f.Error("good")
		time.Sleep(time.Minute)
		if got := f.out.len(); got != 0 {
			t.Errorf("%d events wait, want none", got)
		}
		f.Drain("test")
		wait()
	})
}

// An error of a bot that ends before its next poll still arrives.
func TestEventsAreFlushedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(s *fakeServer, c call) (int, string) {
			if c.path == "event" && len(s.of("event")) < 3 {
				return -1, ""
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Error("last words")
		f.Drain("test")
		wait()
		events := f.server.of("event")
		if got := events[len(events)-2].str("message"); got != "last words" {
			t.Errorf("last event but one = %q, want the error", got)
		}
	})
}

func TestEndWithoutServerIsQuick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		var down atomic.Bool
		f.server.answer = func(*fakeServer, call) (int, string) {
			if down.Load() {
				return -1, ""
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Minute)
		down.Store(true)
		time.Sleep(time.Minute)
		f.Error("unheard")
		start := time.Now()
		f.Stop("test")
		wait()
		if got := time.Since(start); got > 10*time.Second {
			t.Errorf("ended in %v, want at most 10 s", got)
		}
	})
}

func TestPanicIsReportedAndSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		var n atomic.Int32
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "poll" && n.Add(1) == 3 {
				panic("broken code")
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		if e := f.server.of("event")[0]; !strings.HasPrefix(e.str("message"), "panic: broken code") {
			t.Errorf("event = %q", e.str("message"))
		}
		if len(f.server.of("poll")) < 10 {
			t.Error("the bot did not go on polling")
		}
	})
}

// What runs beside the loop does not end the bot either.
func TestPanicBesideTheLoopIsSurvived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config, _ *fixture) { c.StartAhead = true })
		f.runner.prepare = func() { panic("broken preparation") }
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		if e := f.server.of("event")[0]; !strings.HasPrefix(e.str("message"), "panic: broken preparation") {
			t.Errorf("event = %q", e.str("message"))
		}
		if len(f.server.of("poll")) < 10 {
			t.Error("the bot did not go on polling")
		}
	})
}

func TestBrokenMachineIsQuarantined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.machine.dims = func() map[string][]string { panic("broken hook") }
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		polls := f.server.of("poll")
		if len(polls) < 10 {
			t.Fatal("the bot did not go on polling")
		}
		if q, _ := polls[5].state()["quarantined"].(string); !strings.HasPrefix(q, "panic: broken hook") {
			t.Errorf("state = %v, want a quarantine", polls[5].state())
		}
		if n := len(f.server.of("event")); n != 2 {
			t.Errorf("%d events, want the error once and bot_shutdown", n)
		}
	})
}

func TestRestartAndReboot(t *testing.T) {
	const restart, reboot, sleep = `{"cmd":"bot_restart","message":"why"}`, `{"cmd":"restart","message":"why"}`, `{"cmd":"sleep","duration":1}`
	var did []string
	tests := []struct {
		name   string
		answer string
		change func(*Config)
		want   string
		ill    bool // quarantined afterwards
	}{
		{
			"restart", restart, func(c *Config) { c.Restart = func(r string) error { did = append(did, r); return nil } },
			"handshake poll bot_shutdown", false,
		},
		{"restart that returns", restart, func(c *Config) {
			c.Restart = func(r string) error { did = append(did, r); return errors.New("no exec") }
		}, "handshake poll bot_shutdown bot_error poll bot_shutdown", true},
		{"reboot", reboot, func(c *Config) {
			c.Reboot = func(ctx context.Context, r string) error { did = append(did, r); <-ctx.Done(); return ctx.Err() }
		}, "handshake poll bot_rebooting bot_shutdown", false},
		{"reboot that does not happen", reboot, func(c *Config) {
			c.Reboot = func(_ context.Context, r string) error { did = append(did, r); return errors.New("no sudo") }
		}, "handshake poll bot_rebooting bot_error poll bot_shutdown", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				did = nil
				f := newFixture(t, func(c *Config, _ *fixture) { tt.change(c) })
				f.server.answer = script(tt.answer, sleep)
				wait := f.start(t)
				time.Sleep(time.Hour)
				f.Drain("test")
				wait()
				if got := f.server.trace(); !traceMatches(got, tt.want) {
					t.Errorf("calls = %s, want %s", got, tt.want)
				}
				if len(did) != 1 || did[0] != "why" {
					t.Errorf("done %v, want once", did)
				}
				polls := f.server.of("poll")
				if got := polls[len(polls)-1].state()["quarantined"] != nil; got != tt.ill {
					t.Errorf("quarantined = %v, want %v", got, tt.ill)
				}
			})
		})
	}
}

// traceMatches ignores which of an event and a poll sent side by side came
// first.
func traceMatches(got, want string) bool {
	return got == want || got == strings.Replace(want, "bot_error poll", "poll bot_error poll", 1)
}

// What a bot could not say before it was killed, the next process says, once.
func TestEventsSurviveTheBot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		first := newFixture(t, func(c *Config, _ *fixture) { c.Dir = dir })
		first.Error("one")
		first.Error("two") // and it is killed: it never ran
		f := newFixture(t, func(c *Config, _ *fixture) { c.Dir = dir })
		wait := f.start(t)
		time.Sleep(time.Minute)
		var got []string
		for _, c := range f.server.of("event") {
			got = append(got, c.str("message"))
		}
		if want := "one two"; strings.Join(got, " ") != want {
			t.Errorf("delivered %q, want %q", got, want)
		}
		if _, err := os.Stat(filepath.Join(dir, OutboxFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the file is still there: %v", err)
		}
		f.Drain("test")
		wait()
	})
}

func FuzzOutboxFile(f *testing.F) {
	f.Add([]byte(`[{"kind":"bot_error","text":"x","uuid":"a-b"}]`))
	f.Add([]byte(`{"kind":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range parseOutbox(data) {
			if e.UUID == "" || len(e.UUID) > 50 || len(e.Text) > maxEventText+3 {
				t.Errorf("%+v", e)
			}
		}
	})
}
