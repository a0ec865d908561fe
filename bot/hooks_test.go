package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/runner"
)

// fakeHooks answers calls without a process, so that a bot with hooks runs in a
// synctest bubble.
type fakeHooks struct {
	mu       sync.Mutex
	fn       map[string]func(hook.Call) (string, error) // value as JSON
	act      map[string][]hook.Action
	args     func(hook.Call) []json.RawMessage
	loadErr  func(*hook.Script) error
	injected []*hook.Script
	calls    []string
	closed   bool
}

func (h *fakeHooks) Load(_ context.Context, s *hook.Script) error {
	h.injected = append(h.injected, s)
	if h.loadErr != nil {
		return h.loadErr(s)
	}
	return nil
}

func (h *fakeHooks) Has(name string) bool { return h.fn[name] != nil }

func (h *fakeHooks) Call(_ context.Context, c hook.Call) (hook.Outcome, error) {
	h.mu.Lock()
	h.calls = append(h.calls, c.Hook)
	h.mu.Unlock()
	v, err := h.fn[c.Hook](c)
	out := hook.Outcome{Called: true, Value: json.RawMessage(v), Actions: h.act[c.Hook]}
	if h.args != nil && c.Hook == hook.OnBeforeTask {
		out.Args = h.args(c)
	}
	if err != nil {
		return out, err
	}
	return out, nil
}

func (h *fakeHooks) Close() error { h.closed = true; return nil }

// trace is the order of calls, repeated ones in a row once.
func (h *fakeHooks) trace() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, c := range h.calls {
		if len(out) == 0 || out[len(out)-1] != c {
			out = append(out, c)
		}
	}
	return strings.Join(out, " ")
}

func says(v string) func(hook.Call) (string, error) {
	return func(hook.Call) (string, error) { return v, nil }
}

func breaks(name string, cause hook.Cause) func(hook.Call) (string, error) {
	return func(hook.Call) (string, error) {
		return "", &hook.Error{Hook: name, Cause: cause, Text: "broke by " + string(cause)}
	}
}

func withHooks(t *testing.T, h *fakeHooks, change func(*Config, *fixture)) *fixture {
	return newFixture(t, func(c *Config, f *fixture) {
		c.Hooks = h
		if change != nil {
			change(c, f)
		}
	})
}

// runFor runs a bot for some virtual time.
func (f *fixture) runFor(t *testing.T, d time.Duration) {
	t.Helper()
	wait := f.start(t)
	time.Sleep(d)
	f.Stop("enough")
	wait()
}

func errorEvents(s *fakeServer) []string {
	var out []string
	for _, c := range s.of("event") {
		if c.str("event") == "bot_error" {
			out = append(out, c.str("message"))
		}
	}
	return out
}

// TestQuarantine names every cause of spec bot.md §8.6 that lies in the bot,
// what each hook failure becomes, and which cause wins. issue 4, "Must show" 3.
func TestQuarantine(t *testing.T) {
	good := map[string]func(hook.Call) (string, error){}
	for _, r := range hook.Rules {
		good[r.Name] = says("null")
	}
	delete(good, hook.SetupBot)
	delete(good, hook.GetAuthenticationHeaders)
	good[hook.GetDimensions] = says(`{"id":["b1"],"os":["Hooked"]}`)
	good[hook.GetState] = says(`{"a":1}`)
	good[hook.GetSettings] = says(`{}`)
	with := func(name string, f func(hook.Call) (string, error)) map[string]func(hook.Call) (string, error) {
		m := map[string]func(hook.Call) (string, error){}
		for k, v := range good {
			m[k] = v
		}
		m[name] = f
		return m
	}
	type test struct {
		name    string
		fn      map[string]func(hook.Call) (string, error)
		machine string // why the machine quarantines itself
		load    func(*hook.Script) error
		dir     func(*Config)
		want    string // in the state's "quarantined"; "" = healthy
		event   string // in an error event; "" = want
		dims    string // the dimension "os"
		wantKey string // in the state
	}
	tests := []test{
		{name: "all is well", fn: good, dims: "Hooked", wantKey: "a"},
		{name: "no hooks", dims: "Fake"},
		{name: "a hook quarantines", fn: with(hook.GetState, says(`{"quarantined":"cable loose"}`)), want: "cable loose", event: "-", dims: "Hooked"},
		{name: "a hook quarantines with a list", fn: with(hook.GetState, says(`{"quarantined":["x"]}`)), want: "x", event: "-", dims: "Hooked"},
		{name: "a hook says it is not", fn: with(hook.GetState, says(`{"quarantined":false}`)), dims: "Hooked"},
		{name: "too many temp files, too full a disk", machine: "/tmp has 1025 entries", want: "/tmp has 1025 entries", event: "-", dims: "Fake"},
		{name: "the hook passes the machine's reason on", fn: with(hook.GetState, says(`{"quarantined":"full"}`)), machine: "full", want: "full", event: "-", dims: "Hooked"},
		{name: "the hook drops the machine's reason", fn: good, machine: "full", want: "full", event: "-", dims: "Hooked"},
		{name: "the hook's own wins over the machine", fn: with(hook.GetState, says(`{"quarantined":"mine"}`)), machine: "full", want: "mine", event: "-", dims: "Hooked"},
		{name: "get_state returns no dict", fn: with(hook.GetState, says(`[1]`)), want: "get_state", dims: "Hooked"},
		{name: "get_dimensions returns no lists", fn: with(hook.GetDimensions, says(`{"os":"x"}`)), want: "get_dimensions", dims: "Fake"},
		{name: "get_dimensions invalid", fn: with(hook.GetDimensions, says(`{"os":["a"],"Bad Key":["b"]}`)), want: "dimensions: ", event: "-"},
		{
			name: "injected hooks do not load", fn: good,
			load: func(s *hook.Script) error {
				if s != nil {
					return &hook.Error{Hook: "scripts", Cause: hook.CauseLoad, Text: "group.star:1:1: got ':'"}
				}
				return nil
			},
			want: "the hooks of this bot's group (group.star) do not load", dims: "Hooked",
		},
		{
			name: "base hooks do not load", fn: map[string]func(hook.Call) (string, error){},
			load: func(*hook.Script) error {
				return &hook.Error{Hook: "scripts", Cause: hook.CauseLoad, Text: "bot_config.star:1:1: got ':'"}
			},
			want: "do not load", dims: "Fake",
		},
		{name: "the bot lives in a home directory", dir: func(c *Config) { t.Setenv("HOME", c.Dir) }, want: "is a home directory", dims: "Fake"},
		{
			name: "until restart wins over dimensions and disks", fn: with(hook.GetDimensions, breaks(hook.GetDimensions, hook.CauseRaised)), machine: "full",
			dir: func(c *Config) { t.Setenv("HOME", c.Dir) }, want: "is a home directory", dims: "Fake",
		},
		{name: "dimensions win over disks", fn: with(hook.GetDimensions, breaks(hook.GetDimensions, hook.CauseRaised)), machine: "full", want: "get_dimensions", dims: "Fake"},
		{
			name: "the hook's own wins over until restart", fn: with(hook.GetState, says(`{"quarantined":"mine"}`)),
			dir: func(c *Config) { t.Setenv("HOME", c.Dir) }, want: "mine", event: "is a home directory", dims: "Hooked",
		},
	}
	for _, cause := range []hook.Cause{hook.CauseRaised, hook.CauseType, hook.CauseSteps, hook.CauseTime, hook.CauseMemory, hook.CauseDied} {
		tests = append(tests,
			test{name: "get_state: " + string(cause), fn: with(hook.GetState, breaks(hook.GetState, cause)), want: "hook get_state: broke by " + string(cause), dims: "Hooked"},
			test{name: "get_dimensions: " + string(cause), fn: with(hook.GetDimensions, breaks(hook.GetDimensions, cause)), want: "hook get_dimensions: broke by " + string(cause), dims: "Fake"},
		)
		for _, name := range []string{hook.GetSettings, hook.OnBotStartup, hook.OnHandshake, hook.OnBeforePoll, hook.OnAfterPoll, hook.OnBotIdle} {
			tests = append(tests, test{name: name + ": " + string(cause), fn: with(name, breaks(name, cause)), event: "hook " + name + ": broke by " + string(cause), dims: "Hooked"})
		}
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			var f *fixture
			synctest.Test(t, func(t *testing.T) {
				f = newFixture(t, func(c *Config, f *fixture) {
					if tc.fn != nil || tc.load != nil {
						c.Hooks = &fakeHooks{fn: tc.fn, loadErr: tc.load}
					}
					f.machine.dims = func() map[string][]string {
						return map[string][]string{"id": {"b1"}, "pool": {"default"}, "os": {"Fake"}}
					}
					f.machine.ill = tc.machine
					if tc.dir != nil {
						tc.dir(c)
					}
				})
				f.server.answer = script(`{"cmd":"sleep","duration":1}`)
				if tc.load != nil {
					f.server.answer = func(s *fakeServer, c call) (int, string) {
						if c.path == "handshake" {
							return 200, `{"session":"s1","bot_config":"x","bot_config_name":"group.star","bot_config_rev":"1"}`
						}
						return 0, ""
					}
				}
				f.runFor(t, 5*time.Second)
			})
			polls := f.server.of("poll")
			if len(polls) < 3 {
				t.Fatalf("%d polls: a quarantined bot must go on polling", len(polls))
			}
			last := polls[len(polls)-1]
			q, set := last.state()["quarantined"]
			if got := fmt.Sprint(q); set != (tc.want != "") || set && !strings.Contains(got, tc.want) {
				t.Errorf("quarantined %q (%v), want %q", got, set, tc.want)
			}
			if last.state()["running_time"] == nil || last.state()["sleep_streak"] == nil {
				t.Errorf("the state lacks what servers need: %v", last.state())
			}
			if tc.wantKey != "" && last.state()[tc.wantKey] == nil {
				t.Errorf("the state lacks %s: %v", tc.wantKey, last.state())
			}
			dims, _ := last.body["dimensions"].(map[string]any)
			if tc.dims != "" && fmt.Sprint(dims["os"]) != "["+tc.dims+"]" {
				t.Errorf("dimension os is %v, want %s", dims["os"], tc.dims)
			}
			if fmt.Sprint(dims["id"]) != "[b1]" {
				t.Errorf("dimension id is %v", dims["id"])
			}
			event := tc.event
			if event == "" {
				event = tc.want
			}
			got := strings.Join(errorEvents(f.server), "\n")
			if event != "" && event != "-" && !strings.Contains(got, event) {
				t.Errorf("error events %q, want %q", got, event)
			}
			if (event == "" || event == "-") && got != "" {
				t.Errorf("error events %q, want none", got)
			}
		})
	}
}

// cachingRunner is a runner with a cache of inputs.
type cachingRunner struct {
	*fakeRunner
	mu   sync.Mutex
	set  []string
	fail func(dir string) error
}

func (r *cachingRunner) SetCache(bytes int64, items int, dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set = append(r.set, strings.TrimSpace(fmt.Sprintf("%d %d %s", bytes, items, dir)))
	if r.fail != nil {
		return r.fail(dir)
	}
	return nil
}

// TestCacheSettings follows caches.isolated from get_settings to the runner, and
// what the runner says of it to the server.
func TestCacheSettings(t *testing.T) {
	for _, tt := range []struct {
		name     string
		settings string
		want     string // what the runner is told; bytes, items, directory
		ill      string // in the state's quarantine
	}{
		{"no settings", `{}`, "53687091200 51200", ""},
		{"items", `{"caches":{"isolated":{"items":7}}}`, "53687091200 7", ""},
		{"any number of items", `{"caches":{"isolated":{"items":0}}}`, "53687091200 0", ""},
		{"more items than an int has everywhere", `{"caches":{"isolated":{"size":9007199254740992,"items":9007199254740992}}}`, "9007199254740992 2147483647", ""},
		{"all", `{"caches":{"isolated":{"size":1000,"items":9,"dir":"/shared"}}}`, "1000 9 /shared", ""},
		{"a directory that is none", `{"caches":{"isolated":{"dir":"up/.."}}}`, "53687091200 51200", ""},
		{"an impossible one", `{"caches":{"isolated":{"dir":"/thesis"}}}`, "53687091200 51200 /thesis", "the cache of inputs cannot be used as it is set up: there is a thesis"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &cachingRunner{fail: func(dir string) error {
				if dir == "/thesis" {
					return skep.Errorf(skep.Precondition, "there is a thesis")
				}
				return nil
			}}
			var f *fixture
			synctest.Test(t, func(t *testing.T) {
				f = withHooks(t, &fakeHooks{fn: map[string]func(hook.Call) (string, error){hook.GetSettings: says(tt.settings)}}, func(c *Config, f *fixture) {
					r.fakeRunner = f.runner
					c.Runner = r
				})
				f.server.answer = script(`{"cmd":"sleep","duration":1}`)
				f.runFor(t, time.Minute)
			})
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.set) == 0 || slices.ContainsFunc(r.set, func(s string) bool { return s != tt.want }) {
				t.Errorf("the runner was told %q, want %q", r.set, tt.want)
			}
			polls := f.server.of("poll")
			if len(polls) == 0 {
				t.Fatal("no poll")
			}
			got, _ := polls[len(polls)-1].state()["quarantined"].(string)
			if got != tt.ill && !(tt.ill != "" && strings.Contains(got, tt.ill)) {
				t.Errorf("quarantined: %q, want %q", got, tt.ill)
			}
			told := 0
			for _, e := range errorEvents(f.server) {
				if tt.ill != "" && strings.Contains(e, tt.ill) {
					told++
				}
			}
			if want := min(len(tt.ill), 1); told != want { // once, however often it is looked
				t.Errorf("%d events tell of it, want %d: %q", told, want, errorEvents(f.server))
			}
		})
	}
}

func TestHooksInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHooks{fn: map[string]func(hook.Call) (string, error){}}
		for _, r := range hook.Rules {
			h.fn[r.Name] = says("null")
		}
		h.fn[hook.SetupBot] = says("true")
		h.fn[hook.GetDimensions] = func(c hook.Call) (string, error) {
			d, err := json.Marshal(c.Bot.DefaultDimensions)
			return string(d), err
		}
		h.fn[hook.GetState] = says("{}")
		h.fn[hook.GetSettings] = says("{}")
		delete(h.fn, hook.GetAuthenticationHeaders)
		f := withHooks(t, h, func(c *Config, f *fixture) {
			c.SetUp = true
			f.runner.run = func(_ context.Context, j runner.Job) (runner.Summary, error) {
				sum := runner.Summary{ExitCode: new(int64), Session: "s"}
				j.After(sum)
				return sum, nil
			}
		})
		f.server.answer = script(`{"cmd":"sleep","duration":1}`, runAnswer, `{"cmd":"terminate","task_id":"5a00000000000211"}`)
		f.start(t)()
		const look = "on_before_poll get_settings get_dimensions get_state"
		want := strings.Join([]string{
			"setup_bot", look, "on_bot_startup", look, "on_handshake",
			look, "on_after_poll on_bot_idle",
			look, "on_after_poll on_before_task on_after_task",
			look, "on_after_poll", "on_bot_shutdown",
		}, " ")
		if diff := cmp.Diff(want, h.trace()); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		if !h.closed {
			t.Error("the hook host is left behind")
		}
	})
}

// A hook that fails at every turn is told now and then; one that posts an error
// means it. spec bot.md §8.7.
func TestErrorsOfHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHooks{
			fn: map[string]func(hook.Call) (string, error){
				hook.OnBotIdle: says("null"),
				hook.OnBeforePoll: func(hook.Call) (string, error) {
					return "", &hook.Error{Hook: hook.OnBeforePoll, Cause: hook.CauseRaised, Text: "broken"}
				},
			},
			act: map[string][]hook.Action{hook.OnBotIdle: {{Kind: hook.ActionEvent, Event: "bot_error", Text: "no cable\nCalling stack:"}}},
		}
		f := withHooks(t, h, nil)
		wait := f.start(t)
		time.Sleep(9 * time.Minute)
		f.Drain("test")
		wait()
		told := map[string]int{}
		for _, c := range f.server.of("event") {
			line, _, _ := strings.Cut(c.str("message"), "\n")
			told[line]++
		}
		if told["hook on_before_poll: broken"] != 1 || told["no cable"] < 5 {
			t.Errorf("told %v", told)
		}
	})
}

func TestHookAsksForRestartAndReboot(t *testing.T) {
	for _, kind := range []string{hook.ActionRestart, hook.ActionReboot} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &fakeHooks{
					fn:  map[string]func(hook.Call) (string, error){hook.OnBotIdle: says("null"), hook.OnBotShutdown: says("null")},
					act: map[string][]hook.Action{hook.OnBotIdle: {{Kind: kind, Text: "one"}, {Kind: kind, Text: "two"}, {Kind: hook.ActionEvent, Event: "bot_log", Text: "hi"}}},
				}
				var got string
				f := withHooks(t, h, func(c *Config, f *fixture) {
					c.Restart = func(reason string) error { got = "restart " + reason; return nil }
					c.Reboot = func(_ context.Context, reason string) error {
						got = "reboot " + reason
						f.Stop("rebooting")
						return nil
					}
				})
				f.start(t)()
				want := map[string]string{hook.ActionRestart: "restart one\ntwo", hook.ActionReboot: "reboot one\ntwo"}[kind]
				if got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if !strings.Contains(h.trace(), hook.OnBotShutdown) {
					t.Error("on_bot_shutdown was not called")
				}
				if n := len(f.server.of("event")); n < 2 {
					t.Errorf("%d events: bot_log is lost", n)
				}
			})
		})
	}
}

func TestBeforeTaskTravelsWithTheJob(t *testing.T) {
	t.Setenv("CI_A", "1")
	t.Setenv("CI_B", "2")
	t.Setenv("OTHER", "3")
	t.Setenv("SKEP_BOT_TOKEN", "sesame")
	synctest.Test(t, func(t *testing.T) {
		var told map[string]string
		h := &fakeHooks{
			fn: map[string]func(hook.Call) (string, error){
				hook.OnBeforeTask: func(c hook.Call) (string, error) {
					told, _ = c.Args[2].(map[string]string)
					file, _ := c.Args[0].(string)
					return "null", os.WriteFile(file, []byte(`{"mine":1}`), 0o600)
				},
				hook.GetSettings: says(`{"task":{"env_pass":["CI_*","SKEP_*"]}}`),
			},
			args: func(hook.Call) []json.RawMessage {
				return []json.RawMessage{[]byte(`"f"`), []byte(`["task_runner"]`), []byte(`{"CI_A":"1","NEW":"x","OTHER":"4"}`)}
			},
		}
		f := withHooks(t, h, nil)
		f.server.answer = script(runAnswer, `{"cmd":"terminate","task_id":"5a00000000000211"}`)
		f.start(t)()
		if told["SKEP_BOT_TOKEN"] != "" {
			t.Error("the hook is told the credential")
		}
		if len(f.runner.jobs) != 1 {
			t.Fatalf("%d jobs", len(f.runner.jobs))
		}
		job := f.runner.jobs[0]
		got := map[string]string{}
		for _, k := range []string{"CI_A", "CI_B", "NEW", "OTHER", "SKEP_BOT_TOKEN"} {
			if v, ok := job.Env[k]; ok {
				got[k] = v
			}
		}
		if diff := cmp.Diff(map[string]string{"CI_A": "1", "CI_B": "", "NEW": "x", "OTHER": "4"}, got); diff != "" {
			t.Errorf("job.Env (-want +got):\n%s", diff)
		}
		if string(job.BotFile) != `{"mine":1}` {
			t.Errorf("bot file %s", job.BotFile)
		}
	})
}

// Who names the warm pool of a task: on_before_task, else pools.cfg, else the
// settings.
func TestWarmPool(t *testing.T) {
	for _, tt := range []struct {
		name, settings, manifest, hook string
		want                           string
		told                           bool
	}{
		{"nobody", `{}`, "", "null", "", false},
		{"the settings", `{"task":{"pool":"/s"}}`, "", "null", "/s", false},
		{"pools.cfg", `{"task":{"pool":"/s"}}`, "/p", "null", "/p", false},
		{"the hook", `{"task":{"pool":"/s"}}`, "/p", `{"pool":"/h"}`, "/h", false},
		{"the hook wants none", `{"task":{"pool":"/s"}}`, "/p", `{"pool":""}`, "", false},
		{"the hook has no opinion", `{}`, "/p", `{"other":1}`, "/p", false},
		{"the hook returns nonsense", `{}`, "/p", `{"pool":7}`, "/p", true},
		{"the hook returns a text", `{}`, "/p", `"/h"`, "/p", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := withHooks(t, &fakeHooks{
					fn: map[string]func(hook.Call) (string, error){hook.OnBeforeTask: says(tt.hook), hook.GetSettings: says(tt.settings)},
					args: func(hook.Call) []json.RawMessage {
						return []json.RawMessage{[]byte(`"f"`), []byte(`["task_runner"]`), []byte(`{}`)}
					},
				}, nil)
				run := strings.Replace(runAnswer, `"bot_id"`, `"skep":{"pool":"`+tt.manifest+`"},"bot_id"`, 1)
				f.server.answer = script(run, `{"cmd":"terminate","task_id":"5a00000000000211"}`)
				f.start(t)()
				if len(f.runner.jobs) != 1 || f.runner.jobs[0].Pool != tt.want {
					t.Errorf("%d jobs, %+v", len(f.runner.jobs), f.runner.jobs)
				}
				told := slices.ContainsFunc(errorEvents(f.server), func(e string) bool { return strings.Contains(e, "on_before_task returned") })
				if told != tt.told {
					t.Errorf("told %q", errorEvents(f.server))
				}
			})
		})
	}
}

func TestRecoveryLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHooks{fn: map[string]func(hook.Call) (string, error){
			hook.GetState: says(`{"quarantined":"disk full"}`),
			hook.GetSettings: says(`{"recovery":[{"do":"run","command":["clean","-a"],"times":2,"wait_secs":10},
				{"do":"bot_restart","times":1,"wait_secs":10},{"do":"host_reboot","times":1,"wait_secs":10},{"do":"quarantine"}]}`),
		}}
		var got []string
		start := time.Now()
		note := func(s string) { got = append(got, fmt.Sprintf("%v %s", time.Since(start).Round(time.Second), s)) }
		f := withHooks(t, h, func(c *Config, _ *fixture) {
			c.Output = func(_ context.Context, name string, args ...string) ([]byte, error) {
				note(name + " " + strings.Join(args, " "))
				return []byte("cleaned"), nil
			}
			c.Restart = func(reason string) error { note("restart"); return errors.New("a test") }
			c.Reboot = func(context.Context, string) error { note("reboot"); return errors.New("a test") }
		})
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path != "poll" {
				return 0, ""
			}
			return 200, `{"cmd":"sleep","duration":1,"quarantined":true}`
		}
		f.runFor(t, 5*time.Minute)
		if diff := cmp.Diff([]string{"0s clean -a", "10s clean -a", "20s restart", "31s reboot"}, got); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
		if n := len(readSteps(filepath.Join(f.cfg.Dir, RecoveryFile))); n != 4 {
			t.Errorf("%d steps are remembered", n)
		}
	})
}

// While the fleet's circuit breaker holds the quarantine, a bot leaves itself and
// its host alone: a wrong check would restart the whole fleet otherwise.
func TestRecoveryLadderWaitsForTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHooks{fn: map[string]func(hook.Call) (string, error){
			hook.GetState:    says(`{"quarantined":"the new check says no"}`),
			hook.GetSettings: says(`{"recovery":[{"do":"host_reboot","times":1}]}`),
		}}
		start, closed := time.Now(), 3*time.Minute
		var rebooted time.Duration
		f := withHooks(t, h, func(c *Config, _ *fixture) {
			c.Reboot = func(context.Context, string) error { rebooted = time.Since(start); return errors.New("a test") }
		})
		f.server.answer = func(_ *fakeServer, c call) (int, string) {
			if c.path != "poll" {
				return 0, ""
			}
			return 200, fmt.Sprintf(`{"cmd":"sleep","duration":1,"quarantined":%v}`, time.Since(start) >= closed)
		}
		f.runFor(t, 5*time.Minute)
		if rebooted < closed || rebooted > closed+2*time.Second {
			t.Errorf("rebooted after %v, want %v", rebooted, closed)
		}
	})
}

func TestUptime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHooks{fn: map[string]func(hook.Call) (string, error){hook.GetSettings: says(`{"uptime":{"bot_secs":100}}`)}}
		start := time.Now()
		var after time.Duration
		f := withHooks(t, h, func(c *Config, f *fixture) {
			f.machine.started = start
			c.Restart = func(string) error { after = time.Since(start); return nil }
		})
		f.start(t)()
		want := 100 * (1 + hook.PseudoRand("b1", 0.2))
		if d := after.Seconds() - want; d < 0 || d > 3 {
			t.Errorf("restarted after %v, want %.1f s", after, want)
		}
	})
}

func TestAuthHeaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		answer := ""
		h := &fakeHooks{}
		f := withHooks(t, h, func(c *Config, _ *fixture) { c.Auth = NewAuth(h, func() string { return "token" }) })
		a := f.cfg.Auth
		get := func() string { return a.Headers()["Authorization"] }
		if got := get(); got != "Bearer token" {
			t.Errorf("without a hook: %q", got)
		}
		h.fn = map[string]func(hook.Call) (string, error){hook.GetAuthenticationHeaders: func(hook.Call) (string, error) {
			if n++; answer == "" {
				return "", &hook.Error{Hook: hook.GetAuthenticationHeaders, Cause: hook.CauseRaised, Text: "no"}
			}
			return fmt.Sprintf(answer, n), nil
		}}
		answer = fmt.Sprintf(`[{"Authorization":"h%%d"}, %d]`, time.Now().Unix()+1570)
		if got := get(); got != "h1" {
			t.Errorf("got %q", got)
		}
		time.Sleep(999 * time.Second)
		if got := get(); got != "h1" {
			t.Errorf("before 570 s are left: %q", got)
		}
		time.Sleep(2 * time.Second)
		answer = ""
		if got := get(); got != "h1" {
			t.Errorf("a failing hook: %q, want the old headers", got)
		}
		time.Sleep(11 * time.Second)
		answer = `[{"Authorization":"h%d"}, 0]`
		if got := get() + get(); got != "h3h4" {
			t.Errorf("expiry 0: %q, want new ones at every call", got)
		}
		answer = `[{"Authorization":"h%d"}, null]`
		if get(); a.off != true {
			t.Error("expiry None does not switch the hook off")
		}
	})
}
