package bot

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/runner"
)

// The traces of spec bot.md Appendix A, and what surrounds them.
func TestTraces(t *testing.T) {
	const sleep1 = `{"cmd":"sleep","duration":1}`
	tests := []struct {
		name  string
		polls []string
		end   func(*fixture) // after 5 minutes; nil = the server ends it
		want  string
	}{
		{
			"A.1 one task",
			[]string{sleep1, runAnswer, sleep1},
			func(f *fixture) { f.Drain("test") },
			"handshake poll bot_shutdown",
		},
		{
			"A.2 termination",
			[]string{`{"cmd":"terminate","task_id":"5a00000000000111"}`},
			nil,
			"handshake poll task_update bot_shutdown",
		},
		{
			"stopped while idle",
			[]string{sleep1},
			func(f *fixture) { f.Stop("test") },
			"handshake poll bot_shutdown",
		},
		{
			"an unknown command is told once and survived",
			[]string{`{"cmd":"dance"}`, sleep1},
			func(f *fixture) { f.Drain("test") },
			"handshake poll bot_error poll bot_shutdown",
		},
		{
			"update is told once and survived",
			[]string{`{"cmd":"update","version":"abc"}`},
			func(f *fixture) { f.Drain("test") },
			"handshake poll bot_error poll bot_shutdown",
		},
		{
			"a reboot that is not allowed",
			[]string{`{"cmd":"host_reboot","message":"old"}`, sleep1},
			func(f *fixture) { f.Drain("test") },
			"handshake poll bot_error poll bot_shutdown",
		},
		{
			"a malformed manifest is a task error",
			[]string{`{"cmd":"run","manifest":{"task_id":"5a1","command":7}}`, sleep1},
			func(f *fixture) { f.Drain("test") },
			"handshake poll task_error bot_error poll bot_shutdown",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				f.server.answer = script(tt.polls...)
				wait := f.start(t)
				if tt.end != nil {
					time.Sleep(5 * time.Minute)
					tt.end(f)
				}
				wait()
				if d := cmp.Diff(tt.want, f.server.trace()); d != "" {
					t.Errorf("calls (-want +got):\n%s", d)
				}
			})
		})
	}
}

func TestTerminationMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = script(`{"cmd":"terminate","task_id":"5a00000000000111"}`)
		f.start(t)()
		want := map[string]any{
			"id": "b1", "task_id": "5a00000000000111", "session": "s1", "duration": 0.0, "exit_code": 0.0,
		}
		if d := cmp.Diff(want, f.server.of("task_update")[0].body); d != "" {
			t.Errorf("task_update (-want +got):\n%s", d)
		}
	})
}

func TestTaskIsHandedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config, _ *fixture) {
			c.Headers = func() map[string]string { return map[string]string{"Authorization": "Bearer x"} }
		})
		f.server.answer = script(`{"cmd":"sleep","duration":2}`, runAnswer, `{"cmd":"sleep","duration":60}`)
		wait := f.start(t)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(f.runner.jobs) != 1 {
			t.Fatalf("%d jobs, want 1", len(f.runner.jobs))
		}
		j := f.runner.jobs[0]
		if !strings.Contains(string(j.Manifest), `"task_id":"5a00000000000111"`) || j.Session != "s2" ||
			j.Headers["Authorization"] != "Bearer x" || j.CostUSDHour != 0.5 || j.Server != "http://127.0.0.1:1" {
			t.Errorf("job = %+v", j)
		}
		polls := f.server.of("poll")
		if got := polls[2].at.Sub(polls[1].at); got != 0 {
			t.Errorf("next poll %v after the task ended, want at once", got)
		}
		if got := polls[2].str("session"); got != "after-task" {
			t.Errorf("session = %q, want the runner's freshest", got)
		}
		if got := []any{polls[0].state()["sleep_streak"], polls[1].state()["sleep_streak"], polls[2].state()["sleep_streak"]}; !cmp.Equal(got, []any{0.0, 1.0, 0.0}) {
			t.Errorf("sleep streaks = %v, want 0 1 0", got)
		}
		if len(f.server.of("task_error")) != 0 {
			t.Error("a task that ended well got a task_error")
		}
		f.Drain("test")
		wait()
	})
}

func TestInternalFailures(t *testing.T) {
	tests := []struct {
		name string
		run  func(context.Context, runner.Job) (runner.Summary, error)
		want string // text of the task_error, "" = none
	}{
		{"reported by the runner", func(context.Context, runner.Job) (runner.Summary, error) {
			return runner.Summary{InternalError: "disk broke", InternalErrorReported: true}, nil
		}, ""},
		{"left to the bot", func(context.Context, runner.Job) (runner.Summary, error) {
			return runner.Summary{InternalError: "disk broke"}, nil
		}, "disk broke"},
		{"the runner cannot start", func(context.Context, runner.Job) (runner.Summary, error) {
			return runner.Summary{}, errors.New("no fork for you")
		}, "no fork for you"},
		{"this process panics", func(context.Context, runner.Job) (runner.Summary, error) {
			panic("at the disco")
		}, "panic: at the disco"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				f.runner.run = tt.run
				failures := 2 // the server is away at first
				f.server.answer = func(s *fakeServer, c call) (int, string) {
					if c.path == "task_error" && failures > 0 {
						failures--
						return 503, ""
					}
					return script(runAnswer, `{"cmd":"sleep","duration":60}`)(s, c)
				}
				wait := f.start(t)
				time.Sleep(2 * time.Hour)
				f.Drain("test")
				wait()
				errs := f.server.of("task_error")
				switch {
				case tt.want == "" && len(errs) > 0:
					t.Errorf("task_error %v, want none", errs[0].body)
				case tt.want != "" && (len(errs) != 3 || !strings.Contains(errs[2].str("message"), tt.want)):
					t.Errorf("task_errors = %+v, want the third to say %q", errs, tt.want)
				}
				if got := f.server.of("event")[0]; got.str("event") != "bot_error" {
					t.Errorf("first event = %v, want bot_error", got.body)
				}
			})
		})
	}
}

func TestDrainFinishesTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.runner.run = func(ctx context.Context, _ runner.Job) (runner.Summary, error) {
			select {
			case <-ctx.Done():
				return runner.Summary{}, ctx.Err()
			case <-time.After(30 * time.Second):
				return runner.Summary{ExitCode: new(int64)}, nil
			}
		}
		f.server.answer = script(runAnswer)
		wait := f.start(t)
		time.Sleep(time.Second)
		start := time.Now()
		f.Drain("test")
		wait()
		if got := time.Since(start); got != 29*time.Second {
			t.Errorf("drained in %v, want the 29 s that the task still took", got)
		}
		if got := f.server.trace(); got != "handshake poll bot_shutdown" {
			t.Errorf("calls = %s", got)
		}
	})
}

func TestStopEndsTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.runner.run = func(ctx context.Context, _ runner.Job) (runner.Summary, error) {
			<-ctx.Done()
			return runner.Summary{}, ctx.Err()
		}
		f.server.answer = script(runAnswer)
		wait := f.start(t)
		time.Sleep(time.Second)
		f.Stop("SIGINT was received")
		wait()
		errs := f.server.of("task_error")
		if len(errs) != 1 || !strings.Contains(errs[0].str("message"), "SIGINT was received") {
			t.Errorf("task_errors = %+v", errs)
		}
		if got := f.server.trace(); got != "handshake poll task_error bot_shutdown" {
			t.Errorf("calls = %s", got)
		}
	})
}

func TestDrainWhileWaitingEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "poll" {
				return hold(c)
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(10 * time.Second)
		start := time.Now()
		f.Drain("test")
		wait()
		if got := time.Since(start); got != 0 {
			t.Errorf("drained in %v, want at once", got)
		}
		polls := f.server.of("poll")
		last, before := polls[len(polls)-1], polls[len(polls)-2]
		if last.str("request_uuid") != before.str("request_uuid") || last.body["wait"] != nil || last.state()["maintenance"] == nil {
			t.Errorf("last poll = %v, want the broken one's key, no wait and maintenance", last.body)
		}
	})
}

// A task given to the poll that a drain broke off is ours to finish.
func TestDrainTakesTheTaskOfABrokenPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			switch {
			case c.path != "poll":
				return 0, ""
			case c.state()["maintenance"] != nil:
				return 200, runAnswer
			}
			return hold(c)
		}
		wait := f.start(t)
		time.Sleep(10 * time.Second)
		f.Drain("test")
		wait()
		if len(f.runner.jobs) != 1 {
			t.Errorf("%d jobs, want 1", len(f.runner.jobs))
		}
	})
}

func TestHandshakeRepeatsUntilTheServerIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		up := time.Now().Add(10 * time.Minute)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if time.Now().Before(up) {
				return -1, ""
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(11 * time.Minute)
		f.Drain("test")
		wait()
		hs := f.server.of("handshake")
		if n := len(hs); n < 20 || n > 100 {
			t.Errorf("%d handshakes in 10 minutes, want 20 to 100", n)
		}
		if late := hs[len(hs)-1].at.Sub(up); late > 20*time.Second {
			t.Errorf("back %v after the server, want at most 20 s", late)
		}
		if first, last := hs[0].str("session_id"), hs[len(hs)-1].str("session_id"); first != last {
			t.Errorf("session id changed from %s to %s", first, last)
		}
	})
}

func TestEndedBeforeTheHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(*fakeServer, call) (int, string) { return 503, "" }
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		if got := f.server.trace(); got != "handshake" {
			t.Errorf("calls = %s, want no event without a session", got)
		}
	})
}

func TestPollKeyLivesUntilAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		n := 0
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path != "poll" {
				return 0, ""
			}
			n++
			switch n {
			case 1:
				return -1, ""
			case 2:
				return 200, `{"error":"busy"}`
			case 3:
				return 200, `{"cmd":"sleep"}` // an answer, and no command
			case 4:
				return 429, ""
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Hour)
		f.Drain("test")
		wait()
		p := f.server.of("poll")
		key := func(i int) string { return p[i].str("request_uuid") }
		if key(0) != key(1) || key(1) != key(2) || key(2) == key(3) || key(3) != key(4) || key(4) == key(5) {
			t.Errorf("keys = %v %v %v | %v %v | %v", key(0), key(1), key(2), key(3), key(4), key(5))
		}
	})
}

func TestRefusedSessionIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(s *fakeServer, c call) (int, string) {
			if c.path == "poll" && len(s.of("handshake")) < 2 {
				return 401, `{"error":"session expired","reason":"unauthenticated"}`
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		if got := f.server.trace(); got != "handshake poll handshake poll bot_shutdown" {
			t.Errorf("calls = %s", got)
		}
	})
}

func TestAServerThatNeverWaitsIsNotRushed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = script(`{"cmd":"sleep","duration":0}`)
		wait := f.start(t)
		time.Sleep(10 * time.Minute)
		f.Drain("test")
		wait()
		if n := len(f.server.of("poll")); n < 100 || n > 300 {
			t.Errorf("%d polls in 10 minutes, want 100 to 300", n)
		}
	})
}

func TestCompleteDimensionsArePolledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.machine.ready = make(chan struct{})
		f.machine.dims = func() map[string][]string {
			d := map[string][]string{"pool": {"default"}}
			select {
			case <-f.machine.ready:
				d["python"] = []string{"3"}
			default:
			}
			return d
		}
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "poll" {
				return hold(c)
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(3 * time.Second)
		close(f.machine.ready)
		synctest.Wait()
		polls := f.server.of("poll")
		if len(polls) != 2 {
			t.Fatalf("%d polls, want 2", len(polls))
		}
		if polls[0].str("request_uuid") != polls[1].str("request_uuid") {
			t.Error("the second poll has another key")
		}
		dims, _ := polls[1].body["dimensions"].(map[string]any)
		if dims["python"] == nil {
			t.Errorf("dimensions = %v, want python among them", dims)
		}
		f.Drain("test")
		wait()
	})
}

func TestAssignedDimensionsReplaceOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path == "handshake" {
				return 200, `{"session":"s","bot_config_name":"x.star","bot_config_rev":"7","bot_group_cfg":{"dimensions":{"pool":["lab"]}},"rbe":{"sleep":1}}`
			}
			return 0, ""
		}
		wait := f.start(t)
		time.Sleep(time.Minute)
		f.Drain("test")
		wait()
		want := map[string]any{"id": []any{"b1"}, "pool": []any{"lab"}, "bot_config": []any{"x.star"}}
		got := f.server.of("poll")[0]
		if d := cmp.Diff(want, got.body["dimensions"]); d != "" {
			t.Errorf("dimensions (-want +got):\n%s", d)
		}
		if d := cmp.Diff(map[string]any{"name": "x.star", "revision": "7"}, got.state()["bot_config"]); d != "" {
			t.Errorf("state bot_config (-want +got):\n%s", d)
		}
	})
}

func TestBadDimensionsQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		bad := false
		f.machine.dims = func() map[string][]string {
			if bad {
				return map[string][]string{"pool": {}}
			}
			return map[string][]string{"pool": {"p"}}
		}
		good := f.attributes()
		bad = true
		got := f.attributes()
		if d := cmp.Diff(good.Dimensions, got.Dimensions); d != "" {
			t.Errorf("dimensions are not the last good ones (-want +got):\n%s", d)
		}
		if !strings.Contains(string(got.State), `"quarantined":"dimensions: `) {
			t.Errorf("state = %s, want a quarantine", got.State)
		}
	})
}

func TestStartAhead(t *testing.T) {
	for _, on := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, func(c *Config, _ *fixture) { c.StartAhead = on })
			f.server.answer = func(_ *fakeServer, c call) (int, string) {
				if c.path == "poll" {
					return hold(c)
				}
				return 0, ""
			}
			wait := f.start(t)
			time.Sleep(time.Second)
			synctest.Wait()
			if got := f.runner.prepared == 1; got != on {
				t.Errorf("start-ahead %v: prepared %d times", on, f.runner.prepared)
			}
			f.Drain("test")
			wait()
			if f.runner.closed == 0 {
				t.Error("the prepared runner was not closed")
			}
		})
	}
}
