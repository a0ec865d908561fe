package script

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/hookscript"
)

// FuzzScript loads any text as a script and calls what it defines. Nothing but
// a value of the right type or an error may come of it.
func FuzzScript(f *testing.F) {
	for _, s := range []string{
		"def get_state(bot):\n  return {}\n",
		"def get_dimensions(bot):\n  return bot.default_dimensions()\n",
		"def get_settings(bot):\n  d = {}\n  d['d'] = d\n  return d\n",
		"get_state = lambda bot: {'a': (1, 2.5, True, None, set([1]))}\n",
		"def setup_bot(bot):\n  return struct(a=1)\n",
		"def get_authentication_headers(bot):\n  return ({'a': 'b'}, 3)\n",
		"get_state = [",
		"x = 1\ndef get_state(bot): return {1: 2}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		if bytes.Contains([]byte(source), []byte("run")) {
			return // commands are not for a fuzzer
		}
		h := &host{out: io.Discard, exit: func(int) {}}
		a := h.load(hook.Request{ID: 1, Load: &hook.LoadRequest{Base: &hook.Script{Name: "f.star", Source: source}}})
		if (a.Error == nil) == (a.Loaded == nil) {
			t.Fatalf("answer %+v", a)
		}
		for _, r := range hook.Rules {
			req := &hook.CallRequest{Hook: r.Name, Bot: hook.Bot{ID: "b"}, LimitMS: 1000}
			for range r.Args {
				req.Args = append(req.Args, []byte(`{"a":["b",1]}`))
			}
			a := h.call(hook.Request{ID: 2, Call: req})
			if err := hook.WriteFrame(io.Discard, a); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A run that nobody looked at until long after its end, on a machine that had
// no time, is said to have taken too long.
func TestLateWatch(t *testing.T) {
	var out bytes.Buffer
	ended := make(chan int, 1)
	h := &host{out: &out, exit: func(code int) { ended <- code }}
	defer h.newRun(7, "get_state", -time.Minute).close()
	if code := <-ended; code != 3 {
		t.Errorf("ended with %d", code)
	}
	var a hook.Answer
	if err := hook.ReadFrame(&out, &a); err != nil {
		t.Fatal(err)
	}
	if a.ID != 7 || !a.Last || a.Error == nil || a.Error.Cause != hook.CauseTime || !strings.Contains(a.Error.Text, "took longer than") {
		t.Errorf("answer %+v, %+v", a, a.Error)
	}
}

// What is checked without running a script knows the names that it finds.
func TestLibraryIsOfTheDialect(t *testing.T) {
	if diff := cmp.Diff(hookscript.Names, slices.Sorted(maps.Keys(library()))); diff != "" {
		t.Error(diff)
	}
}

// Scripts find every member of spec bot.md §6.3.
func TestMembersOfBot(t *testing.T) {
	b := newBot(nil, &hook.Bot{ID: "b", BaseDir: "/b", Server: "https://h"})
	for _, name := range []string{
		"base_dir", "config_dir", "dimensions", "state", "attributes", "id", "session_id", "session_token", "server", "bot_version", "remote",
		"rbe_worker_properties", "swarming_bot_zip", "get_pseudo_rand", "post_event", "post_error", "host_reboot", "restart", "bot_restart", "bot_restart_msg",
	} {
		if v, err := b.Attr(name); v == nil || err != nil {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	if got := configDir("linux") + configDir("windows"); got != `/etc/swarming_configC:\swarming_config` {
		t.Error(got)
	}
}

// A prompt reads what a person types as far as it is one statement.
func TestReadStatement(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"simple ones", "1 + 1\nx = 2; x\n", []string{"1 + 1\n", "x = 2; x\n"}},
		{"brackets", "f(\n  1,\n)\n2\n", []string{"f(\n  1,\n)\n", "2\n"}},
		{"a block ends with an empty line", "def f():\n  if True:\n    return 1\n\nf()\n", []string{"def f():\n  if True:\n    return 1\n\n", "f()\n"}},
		{"the input ends in a block", "for i in [1]:\n  print(i)\n", []string{"for i in [1]:\n  print(i)\n"}},
		{"empty lines", "\n\n1\n", []string{"\n", "\n", "1\n"}},
	} {
		lines := strings.SplitAfter(c.in, "\n")
		var got []string
		for len(lines) > 0 && lines[0] != "" {
			text, _ := ReadStatement(func() (string, error) {
				if len(lines) == 0 || lines[0] == "" {
					return "", io.EOF
				}
				l := lines[0]
				lines = lines[1:]
				return l, nil
			})
			got = append(got, text)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}
