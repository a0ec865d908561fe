package hookscript

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name, source string
		want         []Fault
	}{
		{"a hook", "def get_state(bot):\n    s = bot.default_state()\n    s['x'] = platform.os\n    return s\n", nil},
		{"statements at top level, sets", "for x in [1]:\n    y = set([x])\nprint(y)\n", nil},
		{"empty", "", nil},
		{"runs only", "fail('not before it runs')\n", nil},
		{"syntax", "\ndef get_state(bot)\n    return 1\n", []Fault{{3, "got newline, want ':'"}}},
		{"unknown names", "def a(bot):\n    return botx\n\ndef b(bot):\n    import_me()\n", []Fault{{2, "undefined: botx (did you mean bot?)"}, {5, "undefined: import_me"}}},
		{"while", "def a(bot):\n    while True:\n        pass\n", []Fault{{2, "this Starlark dialect does not support while loops"}}},
		{"load", "load('x.star', 'y')\n", []Fault{{1, "there is no load: a script stands alone"}}},
		{"long", "if 1:\n    pass\n" + strings.Repeat("elif 1: pass\n", 1000), nil},
		{"deep", "x = " + strings.Repeat("(", 1<<20), []Fault{{1, "excessive nesting"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Check("x.star", tc.source)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzCheck(f *testing.F) {
	for _, s := range []string{"def f(bot):\n  return [x for x in {}]\n", "lambda: -1", "if 1:\n  pass\nelif 2: pass\n", "load('a', b='c')"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, source string) {
		lines := strings.Count(source, "\n") + strings.Count(source, "\r") + 2 // Starlark ends a line at either
		for _, fault := range Check("f.star", source) {
			if fault.Line < 0 || fault.Line > lines || fault.Text == "" {
				t.Fatalf("%+v", fault)
			}
		}
	})
}
