package skep

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//go:generate go test -run ^TestStatesAreDrawn$ -update .

var update = flag.Bool("update", false, "write docs/states.md instead of comparing it")

const statesFile = "docs/states.md"

// TestStatesAreDrawn holds docs/states.md together with the tables of moves.
func TestStatesAreDrawn(t *testing.T) {
	want := drawStates(t)
	if *update {
		if err := os.WriteFile(statesFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(statesFile)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what the tables say (go generate . writes it):\n%s", statesFile, diff)
	}
}

// TestEveryMoveLeadsSomewhere holds that final states are final, and that
// every state can be reached and named.
func TestEveryMoveLeadsSomewhere(t *testing.T) {
	reached := map[TaskState]bool{Pending: true}
	for from, to := range taskMoves {
		if from.Final() {
			t.Errorf("%s is final and has moves", from)
		}
		for _, s := range to {
			reached[s] = true
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(taskStateNames)), slices.Sorted(maps.Keys(reached))); diff != "" {
		t.Errorf("states that are named, and those that are reached:\n%s", diff)
	}
}

func drawStates(t *testing.T) []byte {
	comments := constComments(t, "task.go")
	var b bytes.Buffer
	b.WriteString("<!-- Written by go generate from the tables in task.go. Do not edit. -->\n# States\n\n" +
		"A move that is not drawn here is a bug, and is refused.\n\n## Task\n\n```mermaid\nstateDiagram-v2\n    [*] --> PENDING\n")
	states := slices.Sorted(maps.Keys(taskStateNames))
	slices.SortStableFunc(states, func(a, b TaskState) int { return rank(a) - rank(b) })
	for _, from := range states {
		for _, to := range taskMoves[from] {
			fmt.Fprintf(&b, "    %s --> %s\n", from, to)
		}
		if from.Final() {
			fmt.Fprintf(&b, "    %s --> [*]\n", from)
		}
	}
	b.WriteString("```\n\n| state | number on the wire | meaning, and what ends it | moves to |\n|---|---|---|---|\n")
	for _, s := range states {
		next := []string{"–"}
		for i, to := range taskMoves[s] {
			next = append(next[:i], to.String())
		}
		comment := comments[goName(s)]
		if comment == "" {
			t.Errorf("%s has no comment in task.go", goName(s))
		}
		fmt.Fprintf(&b, "| %s | %#x | %s | %s |\n", s, int32(s), comment, strings.Join(next, ", "))
	}
	return b.Bytes()
}

// rank puts the states in the order of a task's life.
func rank(s TaskState) int {
	if s.Final() {
		return 2
	}
	return slices.Index([]TaskState{Pending, Running}, s)
}

// goName is NO_RESOURCE as NoResource.
func goName(s TaskState) string {
	var b strings.Builder
	for word := range strings.SplitSeq(s.String(), "_") {
		b.WriteString(word[:1] + strings.ToLower(word[1:]))
	}
	return b.String()
}

// constComments returns the line comments of the constants in a file.
func constComments(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Comment != nil {
			out[v.Names[0].Name] = strings.TrimSpace(v.Comment.Text())
		}
		return true
	})
	return out
}
