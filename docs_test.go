package skep_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// files returns the files of the repository with the given ending, without
// those of directories that hold none of ours.
func files(t *testing.T, ending string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (slices.Contains([]string{"bin", "dist", "testdata", "node_modules"}, d.Name()) || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if !d.IsDir() && strings.HasSuffix(path, ending) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDependenciesAreExplained holds that docs/dependencies.md has an entry for
// each module that go.mod asks for by itself, and none for a module that is
// not in it at all.
func TestDependenciesAreExplained(t *testing.T) {
	module := regexp.MustCompile(`(?m)^(?:\t|require )([^\s()]+\.[^\s]+) v\S+( // indirect)?$`)
	direct := map[string]bool{}
	for _, m := range module.FindAllStringSubmatch(read(t, "go.mod"), -1) {
		direct[m[1]] = m[2] == ""
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(read(t, "docs/dependencies.md"), -1) {
		explained[m[1]] = true
		if _, ok := direct[m[1]]; !ok {
			t.Errorf("docs/dependencies.md explains %s, which is not in go.mod", m[1])
		}
	}
	for path, is := range direct {
		if is && !explained[path] {
			t.Errorf("docs/dependencies.md does not say why go.mod asks for %s", path)
		}
	}
	if len(explained) == 0 {
		t.Error("docs/dependencies.md has no entries of the form that this test reads")
	}
}

// TestWireReferences holds that the place exists that a comment names as the
// source of a rule, "wire: FILE#heading" with a FILE below docs.
func TestWireReferences(t *testing.T) {
	ref := regexp.MustCompile(`//.*\bwire: (docs/[\w/.-]+)(?:#([\w-]+))?`)
	for _, file := range files(t, ".go") {
		for _, m := range ref.FindAllStringSubmatch(read(t, file), -1) {
			checkTarget(t, file, m[1], m[2])
		}
	}
}

// TestLinksOfDocuments holds that links between our documents lead somewhere.
func TestLinksOfDocuments(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, file := range files(t, ".md") {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			if path == "" {
				path = file
			} else {
				path = filepath.Join(filepath.Dir(file), filepath.FromSlash(path))
			}
			checkTarget(t, file, path, anchor)
		}
	}
}

func checkTarget(t *testing.T, from, path, anchor string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s refers to %s: %v", from, path, err)
		return
	}
	if anchor == "" {
		return
	}
	for _, m := range regexp.MustCompile(`(?m)^#+ +(.*)$`).FindAllStringSubmatch(read(t, path), -1) {
		if headingAnchor(m[1]) == anchor {
			return
		}
	}
	t.Errorf("%s refers to %s#%s: there is no such heading", from, path, anchor)
}

// headingAnchor is how a heading is linked to.
func headingAnchor(heading string) string {
	heading = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(heading), "")
	return strings.ReplaceAll(heading, " ", "-")
}

// TestDecisionsAreListed holds that docs/adr/README.md lists every decision,
// in order, by its title.
func TestDecisionsAreListed(t *testing.T) {
	var want []string
	paths, err := filepath.Glob("docs/adr/[0-9]*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		title, _, _ := strings.Cut(strings.TrimPrefix(read(t, p), "# "), "\n")
		want = append(want, "- ["+title+"]("+filepath.Base(p)+")")
	}
	var got []string
	for line := range strings.Lines(read(t, "docs/adr/README.md")) {
		if strings.HasPrefix(line, "- [") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
