package botcli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/bot/code"
)

const baseHooks = `
def setup_bot(bot):
    return True

def get_dimensions(bot):
    d = bot.default_dimensions()
    d["hooked"] = ["yes"]
    d["seen"] = [str(env("SKEP_BOT_TOKEN")), str(bot.session_token)]
    return d

def get_state(bot):
    s = bot.default_state()
    s["host"] = read_file("/proc/self/environ").find("secret-of-b1")
    return s

def on_before_task(bot, bot_file, command, env):
    env["FROM_HOOK"] = "hello"

def on_after_task(bot, failure, internal_failure, dimensions, summary):
    bot.post_event("bot_log", "task ended: %s %s %s w:%s" % (failure, internal_failure, summary["exit_code"], exists("w")))

def on_bot_idle(bot, since):
    for _ in range(1 << 40):
        pass
`

func hooksFile(text string) code.File { return code.File{Name: code.HooksName, Data: []byte(text)} }

// hookHostOf returns the pid of a bot's hook host, 0 if there is none.
func hookHostOf(pid int) int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		kids, _ := os.ReadFile(f)
		for _, k := range strings.Fields(string(kids)) {
			args, _ := os.ReadFile("/proc/" + k + "/cmdline")
			if slices.Contains(strings.Split(string(args), "\x00"), "hook_host") {
				n, _ := strconv.Atoi(k)
				return n
			}
		}
	}
	return 0
}

// TestHooks runs the real processes: hooks shape what the bot says and what a
// task gets, a hook that loops for ever harms neither, the hook host knows no
// credential, and ends with its bot.
func TestHooks(t *testing.T) {
	s := newFakeServer(t)
	p := startProcess(t, install(t, s.URL, hooksFile(baseHooks)), "start_slave")
	c := s.next(t, "poll", nil)
	dims, _ := c.body["dimensions"].(map[string]any)
	if got := fmt.Sprint(dims["hooked"], dims["seen"]); got != "[yes] [None None]" {
		t.Errorf("dimensions hooked, seen: %s", got)
	}
	state, _ := c.body["state"].(map[string]any)
	if state["host"] != -1.0 {
		t.Errorf("the hook host's environment holds the credential (at %v)", state["host"])
	}
	host := hookHostOf(p.Process.Pid)
	if host == 0 {
		t.Fatal("no hook host runs")
	}
	s.polls <- `{"cmd":"sleep","duration":0.1}`
	e := s.next(t, "event", event("bot_error"))
	if text := fmt.Sprint(e.body["message"]); !strings.Contains(text, "hook on_bot_idle: did more than") && !strings.Contains(text, "hook on_bot_idle: took longer than") {
		t.Errorf("event: %s", text)
	}
	s.polls <- runManifest("5a00000000000111", `echo "$FROM_HOOK, $SWARMING_BOT_ID, $SKEP_BOT_TOKEN"`)
	s.next(t, "task_update", func(c apiCall) bool { return c.body["exit_code"] != nil })
	e = s.next(t, "event", event("bot_log"))
	if got := e.body["message"]; got != "task ended: False False 0 w:True" {
		t.Errorf("on_after_task: %v", got)
	}
	s.mu.Lock()
	out := s.out.String()
	s.mu.Unlock()
	if out != "hello, b1, \n" {
		t.Errorf("the task got %q", out)
	}
	s.next(t, "poll", nil)
	host = hookHostOf(p.Process.Pid)
	_ = p.Process.Kill()
	start := time.Now()
	waitFor(t, func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", host))
		return err != nil || strings.Contains(string(data), ") Z ") // whoever inherited it may be slow
	})
	t.Logf("the hook host went %v after its bot", time.Since(start))
}

// TestNoHookHostWithoutHooks holds that a bot without hooks has no process for
// them, and that a script that defines none costs none either.
func TestNoHookHostWithoutHooks(t *testing.T) {
	for _, files := range [][]code.File{nil, {hooksFile("# get_state is not defined here\n")}} {
		s := newFakeServer(t)
		p := startProcess(t, install(t, s.URL, files...), "start_bot")
		s.next(t, "poll", nil)
		if pid := hookHostOf(p.Process.Pid); pid != 0 {
			t.Errorf("process %d runs hooks that there are not", pid)
		}
	}
}

// TestIdleMemoryWithHooks is TestIdleMemoryAndFirstPoll with hooks.
func TestIdleMemoryWithHooks(t *testing.T) {
	s := newFakeServer(t)
	path := buildBot(t, s.URL, hooksFile(strings.Replace(baseHooks, "1 << 40", "1", 1)))
	start := time.Now()
	p := startProcess(t, path, "start_slave")
	s.next(t, "poll", nil)
	t.Logf("first poll %v after the start", time.Since(start))
	var total int
	var tree []string
	waitFor(t, func() bool {
		total, tree = pss(p.Process.Pid)
		return total <= maxPSS && len(tree) >= 4
	})
	t.Logf("idle: %.1f MiB PSS: %s", float64(total)/(1<<20), strings.Join(tree, ", "))
}

// TestSetup runs the hook alone.
func TestSetup(t *testing.T) {
	for _, tc := range []struct {
		script string
		code   int
	}{
		{"def setup_bot(bot):\n  return True\n", 0},
		{"def setup_bot(bot):\n  return False\n", 1},
		{"def setup_bot(bot):\n  fail('no')\n", 1},
		{"def get_state(bot):\n  return {}\n", 0},
	} {
		p := startProcess(t, install(t, "http://127.0.0.1:1", hooksFile(tc.script)), "setup")
		if got := p.exit(t); got != tc.code {
			t.Errorf("%s: code %d, want %d: %s", tc.script, got, tc.code, p.stderr.String())
		}
	}
}
