package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNormalizeArgs(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"nothing to do", "tasks --limit 3 -o json", "tasks --limit 3 -o json"},
		{"old long flags", "collect -json-output f -wait=false 10", "collect --json-output f --wait=false 10"},
		{"shorthands stay", "trigger -d os=a -S x -- echo", "trigger -d os=a -S x -- echo"},
		{"a name that the command does not know", "tasks -frob", "tasks -frob"},
		{"a value that looks like a flag", "tasks --tag -limit -limit 3", "tasks --tag -limit --limit 3"},
		{"a value of a shorthand", "tasks -o -limit", "tasks -o -limit"},
		{"a value in a cluster", "task log -fS -follow 10", "task log -fS -follow 10"},
		{"a value joined to a shorthand", "trigger -dos=a -task-name n", "trigger -dos=a --task-name n"},
		{"after the dashes", "trigger -env A=b -- prog -env", "trigger --env A=b -- prog -env"},
		{"after the command's first word", "run -task-name n prog -env -env", "run --task-name n prog -env -env"},
		{"after an id", "collect 10 -perf", "collect 10 --perf"},
		{"a subcommand's flag", "task show -json-output f 10", "task show --json-output f 10"},
		{"an id like a command", "cancel tasks -kill-running", "cancel tasks --kill-running"},
		{"help", "tasks -help", "tasks --help"},
		{"one dash", "tasks -", "tasks -"},
		{"no ASCII", "tasks -ä", "tasks -ä"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := strings.Join(normalizeArgs(newRootCommand(&Env{}), strings.Fields(test.in)), " ")
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzNormalizeArgs holds that normalising neither fails nor drops anything,
// and that a second time changes nothing.
func FuzzNormalizeArgs(f *testing.F) {
	f.Add("trigger -env A=b -- prog -env")
	f.Add("task log -fS x -follow")
	f.Fuzz(func(t *testing.T, line string) {
		in := strings.Fields(line)
		once := normalizeArgs(newRootCommand(&Env{}), in)
		if len(once) != len(in) {
			t.Fatalf("%q became %q", in, once)
		}
		if diff := cmp.Diff(once, normalizeArgs(newRootCommand(&Env{}), once)); diff != "" {
			t.Error(diff)
		}
	})
}
