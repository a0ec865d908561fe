package trouble

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/need"
)

// The measure tells a program that waits from one that loops, and from one that
// wakes up too often.
func TestWakes(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		need.Skip(t, "bash", err.Error())
	}
	for _, tc := range []struct {
		name, script string
		fails        bool
	}{
		{"waits", "exec sleep 60", false},
		{"loops", "while :; do :; done", true},
		{"wakes up three times a second", "exec 3<> <(:); while :; do read -t 0.3 -u 3 x; done", true}, // by no child
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command(bash, "-c", tc.script)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
			if tc.name == "waits" { // not before it does: it has to become sleep first
				asleep(t, cmd.Process.Pid)
			}
			if err := wakes([]idle{{tc.name, cmd.Process.Pid}}, 2*time.Second); (err != nil) != tc.fails {
				t.Errorf("wakes = %v", err)
			}
		})
	}
}

// asleep waits until a process is a sleep that sleeps.
func asleep(t *testing.T, pid int) {
	t.Helper()
	var stat []byte
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if stat, _ = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(stat), " (sleep) S ") {
			return
		}
	}
	t.Fatalf("it does not come to rest: %s", stat)
}
