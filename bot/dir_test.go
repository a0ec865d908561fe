package bot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

// tree makes files (and directories, with a trailing slash) below a new
// directory.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		path := filepath.Join(dir, n)
		if strings.HasSuffix(n, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCheckDir(t *testing.T) {
	tests := []struct {
		name  string
		files []string
		want  string // part of the refusal, "" = accepted
	}{
		{"empty", nil, ""},
		{"a fresh bot", []string{"swarming_bot"}, ""},
		{"an existing bot's", []string{"swarming_bot.zip", "swarming_bot.1.zip", "swarming.lck", "logs/x", "c/state.json", "cas_cache/a", "ab-cacert.pem", "README.md"}, ""},
		{"marked, with leftovers", []string{MarkerFile, "w/ir/x", "junk"}, ""},
		{"a document", []string{"swarming_bot", "thesis.tex"}, `"thesis.tex"`},
		{"a hidden file", []string{".bashrc"}, `".bashrc"`},
		{"a project", []string{"go.mod", "main.go"}, `"go.mod"`},
		{"a name that only starts well", []string{"swarming_bot.3"}, `"swarming_bot.3"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := CheckDir(tree(t, tt.files...))
			if tt.want == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || skep.KindOf(err) != skep.Precondition) {
				t.Errorf("err = %v, want a Precondition error with %s", err, tt.want)
			}
		})
	}
}

func TestHomeIsRefused(t *testing.T) {
	home := tree(t, MarkerFile)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(home, link); err != nil {
		t.Skip(err)
	}
	for _, v := range []string{"HOME", "USERPROFILE"} {
		t.Setenv(v, link)
	}
	if err := CheckDir(home); err == nil || !strings.Contains(err.Error(), "home directory") {
		t.Errorf("err = %v, want the home directory refused though it is marked", err)
	}
	if err := CheckDir("/"); err == nil {
		t.Error("the root was accepted")
	}
}

func TestCleanDir(t *testing.T) {
	dir := tree(t, "swarming_bot", "swarming_bot.1.zip", "logs/a.log", "c/ab/", "w/ir/deep/file", "w8/x", "junk", "tmp/")
	if errs := CleanDir(dir); len(errs) != 1 {
		t.Errorf("an unmarked directory: %v, want one error", errs)
	}
	if err := MarkDir(dir); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(dir, "w/ir/deep"), 0o500)
	os.Chmod(filepath.Join(dir, "w/ir"), 0)
	if errs := CleanDir(dir); errs != nil {
		t.Errorf("errors: %v", errs)
	}
	entries, _ := os.ReadDir(dir)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	want := []string{"c", "logs", "swarming.dir", "swarming_bot", "swarming_bot.1.zip", "tmp"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("left (-want +got):\n%s", d)
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	l, err := TakeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := LockedBy(dir); canReadLocked && got != os.Getpid() {
		t.Errorf("lock file names %d, want %d", got, os.Getpid())
	}
	if _, err := TakeLock(dir); skep.KindOf(err) != skep.Conflict {
		t.Errorf("second lock: %v, want a Conflict", err)
	}
	if pid, ok := Running(dir); !ok || (canReadLocked && pid != os.Getpid()) {
		t.Errorf("Running = %d, %v, want us", pid, ok)
	}
	other, err := TakeLock(t.TempDir())
	if err != nil {
		t.Errorf("another directory: %v", err)
	}
	_ = other.Release()
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	if pid, ok := Running(dir); ok {
		t.Errorf("after release: process %d still runs", pid)
	}
	again, err := TakeLock(dir)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	_ = again.Release()
}
