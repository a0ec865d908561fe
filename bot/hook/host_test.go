package hook_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/bot/hook/script"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "hook_host" {
		os.Exit(script.Main())
	}
	os.Exit(m.Run())
}

func newHost(t testing.TB, base, injected string) *hook.Host {
	t.Helper()
	h := bareHost(t, base)
	if err := h.Load(t.Context(), asScript("group.star", injected)); err != nil {
		t.Fatal(err)
	}
	return h
}

func bareHost(t testing.TB, base string) *hook.Host { return limitedHost(t, base, 0) }

func limitedHost(t testing.TB, base string, limit time.Duration) *hook.Host {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := hook.NewHost(hook.Options{
		Exe: exe, Dir: t.TempDir(), Base: asScript("bot_config.star", base),
		Env: append(os.Environ(), "SKEP_BOT_TOKEN=sesame", "TELL=me"), Limit: limit,
	})
	t.Cleanup(func() { h.Close() })
	return h
}

func asScript(name, source string) *hook.Script {
	if source == "" {
		return nil
	}
	return &hook.Script{Name: name, Source: source}
}

var me = hook.Bot{
	ID: "b1", SessionID: "s/1", Server: "http://h", Version: "v", BaseDir: "/b",
	Dimensions:        map[string][]string{"id": {"b1"}, "pool": {"default"}},
	State:             []byte(`{"a":1}`),
	DefaultDimensions: map[string][]string{"id": {"b1"}, "os": {"Linux"}},
	DefaultState:      map[string]any{"running_time": 7},
	Idle:              2.5,
}

// TestContainment names each way in which a hook can misbehave, what becomes of
// it, and that the next call works. issue 4, "Must show" 3.
func TestContainment(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	const good = "\ndef get_settings(bot):\n  return {'ok': True}\n"
	for _, tc := range []struct {
		name, hook, source string
		cause              hook.Cause
		text               string // in the error
		linux              bool
	}{
		{name: "loops for ever", hook: "get_state", cause: hook.CauseSteps, text: "may loop for ever", source: `
def get_state(bot):
  for _ in range(1 << 40):
    pass
`},
		{name: "runs a command that waits", hook: "on_before_poll", cause: hook.CauseTime, text: "took longer than 1s", source: `
def on_before_poll(bot):
  run(["sleep", "1000"], timeout=2000)
  run(["sleep", "1000"], timeout=2000)
`},
		{name: "computes for long in one step", hook: "on_before_poll", cause: hook.CauseTime, text: "took longer than 1s", source: `
def on_before_poll(bot):
  re.search("(x+x+)+y", "x" * 1000)
  re.search("(a?){500}a{500}b", "a" * 20000000)
`},
		{name: "allocates piece by piece", hook: "get_state", cause: hook.CauseMemory, text: "used more than", source: `
def get_state(bot):
  l = []
  for i in range(1 << 40):
    l.append("x" * 100000)
`},
		{name: "allocates at once", hook: "get_state", cause: hook.CauseMemory, text: "used more than", linux: true, source: `
def get_state(bot):
  s = "x" * (1 << 29)
  return {"s": s + s}
`},
		{name: "doubles a list", hook: "get_state", cause: hook.CauseMemory, text: "used more than", source: `
def get_state(bot):
  l = ["x"]
  for i in range(60):
    l = l + l
  return {"s": l}
`},
		{name: "raises", hook: "get_state", cause: hook.CauseRaised, text: "fail: no disk\nTraceback", source: `
def get_state(bot):
  fail("no disk")
`},
		{name: "divides by zero", hook: "get_state", cause: hook.CauseRaised, text: "division by zero", source: `
def get_state(bot):
  return 1 // 0
`},
		{name: "reads what is not there", hook: "get_state", cause: hook.CauseRaised, text: "no such file", source: `
def get_state(bot):
  return read_file("/nowhere/at/all")
`},
		{name: "returns a list as state", hook: "get_state", cause: hook.CauseType, text: "returned a list, want a dict that JSON can hold", source: `
def get_state(bot):
  return []
`},
		{name: "returns a function in its state", hook: "get_state", cause: hook.CauseType, text: "JSON cannot hold a function", source: `
def get_state(bot):
  return {"f": get_state}
`},
		{name: "returns a state within itself", hook: "get_state", cause: hook.CauseType, text: "nested more than 32 levels", source: `
def get_state(bot):
  d = {}
  d["d"] = d
  return d
`},
		{name: "returns nothing", hook: "get_dimensions", cause: hook.CauseType, text: "returned None, want a dict of string to list of strings", source: `
def get_dimensions(bot):
  pass
`},
		{name: "returns a plain string as dimension", hook: "get_dimensions", cause: hook.CauseType, text: `returned a dict with "os": "Linux"`, source: `
def get_dimensions(bot):
  return {"os": "Linux"}
`},
		{name: "returns a number in a dimension", hook: "get_dimensions", cause: hook.CauseType, text: `a list with 4 in it`, source: `
def get_dimensions(bot):
  return {"cores": [4]}
`},
		{name: "changes its id", hook: "get_dimensions", cause: hook.CauseType, text: `returned a dict with id: ["other"] for the bot "b1"`, source: `
def get_dimensions(bot):
  return {"id": ["other"]}
`},
		{name: "returns headers without expiry", hook: "get_authentication_headers", cause: hook.CauseType, text: "returned a dict, want a tuple", source: `
def get_authentication_headers(bot):
  return {"Authorization": "Bearer secret"}
`},
		{name: "writes without end", hook: "on_bot_idle", cause: hook.CauseRaised, text: "more than 64 events", source: `
def on_bot_idle(bot, since):
  for i in range(1000):
    bot.post_event("bot_log", "again")
`},
		{name: "takes too few arguments", hook: "on_bot_idle", cause: hook.CauseRaised, text: "on_bot_idle", source: `
def on_bot_idle():
  pass
`},
		{name: "kills the hook host", hook: "on_bot_startup", cause: hook.CauseDied, text: "its process was killed", source: `
def on_bot_startup(bot):
  run(["sh", "-c", "kill -9 $PPID"])
  run(["sleep", "5"])
`},
		{name: "ends the hook host", hook: "on_bot_startup", cause: hook.CauseDied, text: "ended with code 0", source: `
def on_bot_startup(bot):
  run(["sh", "-c", "kill $PPID"])
  run(["sleep", "5"])
`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.linux && runtime.GOOS != "linux" {
				t.Skip("the kernel keeps this limit on Linux only")
			}
			var limit time.Duration // of the rule
			switch tc.cause {
			default:
			case hook.CauseTime:
				limit = time.Second
			case hook.CauseSteps:
				limit = 5 * time.Minute // a second's worth of steps takes long with the race detector and other tests beside it
			}
			h := limitedHost(t, tc.source+good, limit)
			var args []any
			if tc.hook == hook.OnBotIdle {
				args = []any{1.0}
			}
			start := time.Now()
			out, err := h.Call(t.Context(), hook.Call{Hook: tc.hook, Args: args, Bot: me})
			e, ok := errors.AsType[*hook.Error](err)
			if !ok {
				t.Fatalf("got %s, %v, want a contained error", out.Value, err)
			}
			t.Logf("%v after %v: %s", e.Cause, time.Since(start).Round(time.Millisecond), e.Text)
			if e.Cause != tc.cause || !strings.Contains(e.Text, tc.text) {
				t.Errorf("got %s: %s\nwant %s: …%s", e.Cause, e.Text, tc.cause, tc.text)
			}
			if strings.Contains(e.Text, "secret") {
				t.Error("the error tells a header's value")
			}
			out, err = h.Call(t.Context(), hook.Call{Hook: hook.GetSettings, Bot: me})
			if err != nil || string(out.Value) != `{"ok":true}` {
				t.Errorf("afterwards: %s, %v", out.Value, err)
			}
		})
	}
}

func TestMissingHook(t *testing.T) {
	h := newHost(t, "x = 'get_state'\n", "")
	out, err := h.Call(t.Context(), hook.Call{Hook: hook.GetState, Bot: me})
	if err != nil || out.Called {
		t.Errorf("got %+v, %v, want not called", out, err)
	}
	if h.Running() {
		t.Error("a host runs for scripts without hooks")
	}
	if _, err := h.Call(t.Context(), hook.Call{Hook: "no_such_hook", Bot: me}); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestNothingStartsWithoutHooks(t *testing.T) {
	h := hook.NewHost(hook.Options{Exe: "/nowhere"})
	if err := h.Load(t.Context(), nil); err != nil {
		t.Error(err)
	}
	for _, r := range hook.Rules {
		if h.Has(r.Name) {
			t.Errorf("has %s", r.Name)
		}
	}
}

func TestScriptsThatDoNotLoad(t *testing.T) {
	deep := "def get_state(bot):\n  return " + strings.Repeat("(", 400000) + strings.Repeat(")", 400000)
	for _, tc := range []struct{ name, source, want string }{
		{"syntax", "def get_state(bot:\n", "group.star:1:19: got ':'"},
		{"unknown name", "def get_state(bot):\n  return nonsense\n", "undefined: nonsense"},
		{"while", "def get_state(bot):\n  while True:\n    pass\n", "does not support while loops"},
		{"load", "load('x.star', 'get_state')\n", "load not implemented"},
		{"raises at top level", "fail('get_state')\n", "fail: get_state"},
		{"not a function", "get_state = 3\n", "get_state is a int, want a function"},
		{"loops at top level", "get_state = [x for x in range(1 << 40)]\n", ""},
		{"nested", deep, ""},
		{"long", "get_state\n" + strings.Repeat("#", hook.MaxScript), "at most 1048576 are allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := bareHost(t, "def get_settings(bot):\n  return {}\n")
			err := h.Load(t.Context(), &hook.Script{Name: "group.star", Source: tc.source})
			e, ok := errors.AsType[*hook.Error](err)
			if !ok || !strings.Contains(e.Text, tc.want) {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			t.Logf("%s: %.300s", e.Cause, e.Text)
			if err := h.Load(t.Context(), nil); err != nil {
				t.Errorf("without it: %v", err)
			}
		})
	}
}

func TestModes(t *testing.T) {
	const base = `
def get_state(bot):
  return {"from": "base"}
def get_settings(bot):
  return {"from": "base"}
def setup_bot(bot):
  return 0
def on_before_task(bot, bot_file, command, env):
  env["BASE"] = "1"
  env["BOTH"] = "base"
def on_bot_idle(bot, since):
  bot.post_event("bot_log", "base")
  fail("base breaks")
`
	const injected = `
def get_state(bot):
  return {"from": "injected", "seen": bot.state["a"]}
def setup_bot(bot):
  return True
def on_before_task(bot, bot_file, command, env):
  env["BOTH"] += ",injected"
  command.append("--more")
def on_bot_idle(bot, since):
  bot.post_event("bot_log", "injected after %s" % since)
  bot.bot_restart("enough")
`
	h := newHost(t, base, injected)
	call := func(name string, args ...any) (hook.Outcome, error) {
		t.Helper()
		out, err := h.Call(t.Context(), hook.Call{Hook: name, Args: args, Bot: me})
		return out, err
	}
	for _, tc := range []struct{ name, want string }{
		{hook.GetState, `{"from":"injected","seen":1}`},
		{hook.GetSettings, `{"from":"base"}`},
		{hook.SetupBot, `false`},
	} {
		out, err := call(tc.name)
		if err != nil || string(out.Value) != tc.want {
			t.Errorf("%s = %s, %v, want %s", tc.name, out.Value, err, tc.want)
		}
	}
	out, err := call(hook.OnBeforeTask, "/bf", []string{"task_runner"}, map[string]string{"A": "b"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`"/bf"`, `["task_runner","--more"]`, `{"A":"b","BASE":"1","BOTH":"base,injected"}`},
		[]string{string(out.Args[0]), string(out.Args[1]), string(out.Args[2])}); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	// A base that fails does not take the group's hook with it.
	out, err = call(hook.OnBotIdle, 3)
	if e, ok := errors.AsType[*hook.Error](err); !ok || !strings.Contains(e.Text, "base breaks") {
		t.Errorf("got %v, want the base's failure", err)
	}
	want := []hook.Action{
		{Kind: "event", Event: "bot_log", Text: "base"},
		{Kind: "event", Event: "bot_log", Text: "injected after 3"},
		{Kind: "bot_restart", Text: "enough"},
	}
	if diff := cmp.Diff(want, out.Actions); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
}

func TestBotAndLibrary(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	src := fmt.Sprintf(`
DIR = %q
def get_state(bot):
  s = bot.default_state()
  s.update({
    "id": bot.id, "session_id": bot.session_id, "server": bot.server, "version": bot.bot_version,
    "base_dir": bot.base_dir, "zip": bot.swarming_bot_zip, "idle": bot.idle_secs,
    "dims": bot.default_dimensions(), "attrs": bot.attributes, "secret": [bot.remote, bot.session_token, env("SKEP_BOT_TOKEN")],
    "told": env("TELL"), "default": env("NOT_SET", "d"), "rand": bot.get_pseudo_rand(0.2),
    "file": read_file(DIR + "/f"), "part": read_file(DIR + "/f", max_bytes=2), "list": list_dir(DIR),
    "exists": [exists(DIR), exists(DIR + "/g")],
    "found": re.search("h(.)l", "hello"), "none": re.search("x", "y"), "all": re.find_all("l", "hello"),
    "replaced": re.replace("l+", "L", "hello"), "json": json.decode('{"a": [1]}'), "dur": time.parse_duration("1m") // time.second,
    "platform": [type(platform.os), type(platform.cpus), platform.hostname != ""],
  })
  return s
def on_bot_startup(bot):
  r = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
  bot.post_event("bot_log", "%%d %%s %%s %%s" %% (r.code, r.stdout.strip(), r.stderr.strip(), r.timed_out))
  r = run(["sh", "-c", "sleep 100"], timeout=0.05)
  bot.post_event("bot_log", "%%s" %% r.timed_out)
  r = run(["sh", "-c", "yes | head -c 100000; sleep 100 & echo $V"], max_output=10, env={"V": "v"})
  bot.post_event("bot_log", "%%d %%s" %% (len(r.stdout), r.truncated))
  print("hi")
  bot.post_error("trouble")
`, dir)
	h := newHost(t, src, "")
	out, err := h.Call(t.Context(), hook.Call{Hook: hook.GetState, Bot: me})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"running_time":7,"id":"b1","session_id":"s/1","server":"http://h","version":"v","base_dir":"/b","zip":"/b/swarming_bot.zip",` +
		`"idle":2.5,"dims":{"id":["b1"],"os":["Linux"]},"attrs":{"dimensions":{"id":["b1"],"pool":["default"]},"state":{"a":1},"version":"v"},` +
		`"secret":[null,null,null],"told":"me","default":"d","rand":-0.1079,"file":"hello","part":"he","list":["f"],"exists":[true,false],` +
		`"found":["hel","e"],"none":null,"all":[["l"],["l"]],"replaced":"heLo","json":{"a":[1]},"dur":60,"platform":["string","int",true]}`
	if diff := cmp.Diff(want, string(out.Value)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	out, err = h.Call(t.Context(), hook.Call{Hook: hook.OnBotStartup, Bot: me})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range out.Actions {
		got = append(got, a.Kind+": "+a.Text)
	}
	if diff := cmp.Diff([]string{
		"event: 3 out err False", "event: True", "event: 10 True", "print: hi",
		"event: trouble\nCalling stack:\n  0  bot_config.star:25:on_bot_startup()",
	}, got); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
	if out.Took > 50*time.Second { // of its 100
		t.Errorf("took %v: a grandchild was waited for", out.Took)
	}
}

func TestScriptsKeepNothing(t *testing.T) {
	h := newHost(t, `
seen = []
def get_state(bot):
  seen.append(1)
  return {}
`, "")
	_, err := h.Call(t.Context(), hook.Call{Hook: hook.GetState, Bot: me})
	if err == nil || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("got %v, want that the list is frozen", err)
	}
}

func TestContextBreaksACallOff(t *testing.T) {
	h := newHost(t, "def on_bot_startup(bot):\n  run(['sleep', '50'])\n", "")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := h.Call(ctx, hook.Call{Hook: hook.OnBotStartup, Bot: me})
	if e, ok := errors.AsType[*hook.Error](err); !ok || e.Cause != hook.CauseTime || time.Since(start) > 30*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
}

// BenchmarkCall is one get_state of a typical size, the host running.
// A person's statements run beside the hooks, keep what they define, and stop
// at the same limits.
func TestEval(t *testing.T) {
	h := limitedHost(t, "def get_state(bot):\n  return {'base': bot.id}\n", 5*time.Minute) // as TestContainment's steps
	if err := h.Load(t.Context(), asScript("group.star", "def on_bot_idle(bot, since):\n  fail('x')\n")); err != nil {
		t.Fatal(err)
	}
	v := h.Visit()
	t.Cleanup(func() { v.Close() })
	for _, c := range []struct{ name, source, say, fault string }{
		{"a value", "1 + 1", "2\n", ""},
		{"nothing", "None", "", ""},
		{"a definition", "x = [1]\nkept = bot", "", ""},
		{"what was defined", "x.append(2)\nx", "[1, 2]\n", ""},
		{"the last value", "_", "[1, 2]\n", ""},
		{"the scripts' functions", "get_state(bot)", `{"base": "b1"}` + "\n", ""},
		{"an event of a bot in a variable", "kept.post_error('boo')", "event bot_error\n", ""},
		{"the bot", "drain('tired'); stop(); bundle(); stacks()", "drain tired\nstop asked to by skep-bot shell\nbundle\nstacks\n", ""},
		{"status", "status()['task']", `"t1"` + "\n", ""},
		{"a fault", "print('a')\nx.append(3)\nfail('no')\nprint('b')", "a\n", "fail: no"},
		{"what was done before it", "x", "[1, 2, 3]\n", ""},
		{"syntax", "def (", "", "<shell>:1:6: "},
		{"no such name", "fly", "", "undefined: fly"},
		{"no loading", "load('x', 'y')", "", "load not implemented"},
		{"a loop", "for i in range(1 << 60): pass", "", "steps"},
		{"many words", "for i in range(100):\n  print('x' * 100)", strings.Repeat(strings.Repeat("x", 100)+"\n", 100), ""},
		{"memory", "y = [list(range(1 << 20)) for i in range(1 << 20)]", "", "memory"},
		{"after its process ended", "x", "", "undefined: x"},
		{"and again", "x = 7\nx", "7\n", ""},
	} {
		var said strings.Builder
		err := v.Eval(t.Context(), c.source, me, []byte(`{"task":"t1"}`), func(a hook.Action) {
			switch a.Kind {
			case hook.ActionPrint:
				fmt.Fprintln(&said, a.Text)
			case hook.ActionEvent:
				fmt.Fprintln(&said, a.Kind, a.Event)
			default:
				fmt.Fprintln(&said, strings.TrimSpace(a.Kind+" "+a.Text))
			}
		})
		if said.String() != c.say || (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %v, want %q; said\n%s\nwant\n%s", c.name, err, c.fault, said.String(), c.say)
		}
	}
	if out, err := h.Call(t.Context(), hook.Call{Hook: hook.GetState, Bot: me}); err != nil || string(out.Value) != `{"base":"b1"}` {
		t.Errorf("the hooks: %s, %v", out.Value, err)
	}
}

// A prompt is what one looks for what is wrong with; it opens without the
// scripts that do not load.
func TestEvalWithoutBrokenScripts(t *testing.T) {
	h := bareHost(t, "def get_state(bot):\n  return {}\n")
	if err := h.Load(t.Context(), asScript("group.star", "def get_state(")); err == nil {
		t.Fatal("a broken script was loaded")
	}
	v := h.Visit()
	t.Cleanup(func() { v.Close() })
	var said strings.Builder
	if err := v.Eval(t.Context(), "get_state(bot)", me, nil, func(a hook.Action) { said.WriteString(a.Text + "\n") }); err != nil {
		t.Fatal(err)
	}
	if s := said.String(); !strings.Contains(s, "group.star") || !strings.HasSuffix(s, "\n{}\n") {
		t.Error(s)
	}
}

func BenchmarkCall(b *testing.B) {
	h := newHost(b, "def get_state(bot):\n  s = bot.default_state()\n  s['x'] = exists('/tmp')\n  return s\n", "")
	for b.Loop() {
		if _, err := h.Call(b.Context(), hook.Call{Hook: hook.GetState, Bot: me}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStart is the first call: starting the host, loading, one call.
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		h := bareHost(b, "def get_state(bot):\n  return {}\n")
		if _, err := h.Call(b.Context(), hook.Call{Hook: hook.GetState, Bot: me}); err != nil {
			b.Fatal(err)
		}
		h.Close()
	}
}
