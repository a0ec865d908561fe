package bot

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

func TestAbbrev(t *testing.T) {
	for _, tt := range []struct {
		in   string
		n    int
		want string
	}{
		{"chromeos256-column8888", 37, "c256-c8888"},
		{"e1-a14-b18a-c17zz", 200, "e1-a14-b18a-c"},
		{"1-22-3-4", 200, "1-22-3-4"},
		{"aa4-bb3-cc2-dd1", 5, "a4-b3"},
		{"eeeeeeee", 37, "eeeeeeee"},
		{"eeeeeeee", 3, "eee"},
		{"a-", 0, "a-"},
		{"ä1-b", 0, "ä1-b"},
	} {
		if got := abbrev(tt.in, tt.n); got != tt.want {
			t.Errorf("abbrev(%q, %d) = %q, want %q", tt.in, tt.n, got, tt.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		in, n := rapid.String().Draw(t, "in"), rapid.IntRange(1, 30).Draw(t, "n")
		if got := abbrev(in, n); len(got) > n {
			t.Errorf("abbrev(%q, %d) = %q", in, n, got)
		}
	})
}

func newDrone(t *testing.T) *DroneStarter {
	return &DroneStarter{
		WorkingDir:    t.TempDir(),
		StartBotFunc:  func(Config) (Bot, error) { return NewFakeBot(), nil },
		BotConfigFunc: func(id, dir string) Config { return Config{BotID: id, WorkDirectory: dir} },
		LogFunc:       t.Logf,
	}
}

var restarts = flag.Int("restarts", 60, "restarts of TestDiskIsBounded; 100000 is the long form")

// However often bots are started again, the disk holds a few directories each.
// Promise B4.
func TestDiskIsBounded(t *testing.T) {
	s := newDrone(t)
	s.StartBotFunc = func(c Config) (Bot, error) {
		b := NewFakeBot()
		b.Stop()
		return b, errors.Join(os.WriteFile(c.LogFile(), []byte("log"), 0o644), os.WriteFile(c.DrainFile(), nil, 0o644))
	}
	for i := range *restarts {
		b, err := s.Start(fmt.Sprintf("lab1-row%d", i%3))
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(s.WorkingDir)
	if err != nil {
		t.Fatal(err)
	}
	if want := 3*3*4 + 1; len(entries) != want { // a directory and three files each; the shared cache
		t.Errorf("%d entries, want %d: %v", len(entries), want, entries)
	}
	s.KeepBytes = 1
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if entries, _ = os.ReadDir(s.WorkingDir); len(entries) != 1 {
		t.Errorf("after a sweep with 1 byte for each: %v", entries)
	}
}

func TestRunningBotsKeepTheirDirectory(t *testing.T) {
	s := newDrone(t)
	s.Keep = -1
	b, err := s.Start("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	dirs, _ := filepath.Glob(filepath.Join(s.WorkingDir, "a.*"))
	if len(dirs) != 2 {
		t.Errorf("%v", dirs)
	}
	if to, err := os.Readlink(filepath.Join(dirs[0], "cipd_cache", "cache")); err != nil || to != filepath.Join(s.WorkingDir, "cipd_cache") {
		t.Errorf("the shared cache is %q, %v", to, err)
	}
	_ = b.TerminateOrKill()
	_ = b.Wait()
	if dirs, _ = filepath.Glob(filepath.Join(s.WorkingDir, "a.*")); len(dirs) != 0 {
		t.Errorf("after its end: %v", dirs)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	s := newDrone(t)
	no := errors.New("no")
	s.StartBotFunc = func(Config) (Bot, error) { return nil, no }
	if _, err := s.Start("a"); !errors.Is(err, no) {
		t.Errorf("err = %v", err)
	}
	for _, id := range []string{"", "..", "a/b", "../a-b1"} {
		if _, err := s.Start(id); err == nil {
			t.Errorf("%q was started", id)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.WorkingDir, "a*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
