package trouble

import (
	"os/exec"
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
			if err := wakes([]idle{{tc.name, cmd.Process.Pid}}, 2*time.Second); (err != nil) != tc.fails {
				t.Errorf("wakes = %v", err)
			}
		})
	}
}
