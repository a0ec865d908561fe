package chaos

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestPhaseOfABot(t *testing.T) {
	for _, tc := range []struct {
		name string
		see  sight
		want phase
	}{
		{"it polls while tasks wait", sight{Been: true, Work: true}, phaseClaim},
		{"it polls and nothing waits", sight{Been: true}, phaseNone},
		{"it has just been started", sight{Work: true}, phaseNone},
		{"it has the manifest", sight{Run: "5a01", Work: true}, phaseStart},
		{"its task runs", sight{Run: "5a01", Said: wordStart, Been: true}, phaseOutput},
		{"its task has ended", sight{Run: "5a01", Said: wordEnd, Been: true}, phaseFinal},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := tc.see.phase(); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWindow(t *testing.T) {
	w := &window{dir: t.TempDir()}
	put := func(dir, name, text string, at time.Time) {
		t.Helper()
		path := filepath.Join(w.dir, dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Unix(1000, 0)
	see := func(when, want string) {
		t.Helper()
		if got := w.look(); got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	see("an empty directory", "")
	if w.been {
		t.Error("it had no task yet")
	}
	put("w", manifestName, `{"task_`, at)
	see("a manifest that is being written", "")
	put("w", manifestName, `{"task_id":"5a01"}`, at.Add(1))
	see("a manifest", "5a01")
	see("the same manifest", "5a01")
	put("w", manifestName, `{"task_id":"5a11"}`, at.Add(2))
	see("another manifest", "5a11")
	put("w123", manifestName, `{"task_id":"5a21"}`, at.Add(3))
	see("w goes before", "5a11")
	if err := os.RemoveAll(filepath.Join(w.dir, "w")); err != nil {
		t.Fatal(err)
	}
	see("a work directory of another name", "5a21")
	put("w123", recordName, `{"method":"cgroup2","dirs":["/c/skep-a"]}`, at)
	put("w124", recordName, `{"method":"cgroup2","dir`, at)
	if diff := cmp.Diff([]string{"/c/skep-a"}, w.places()); diff != "" {
		t.Error(diff)
	}
	if !w.been {
		t.Error("it had a task")
	}
	if w.reborn(); w.been {
		t.Error("its new process had none")
	}
}
