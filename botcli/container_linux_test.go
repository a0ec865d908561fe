package botcli

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// The container ends as its bot does, and with 10 when the bot wants its host
// rebooted, however the bot then ends. spec host.md §1.4.
func TestContainerEndsAsItsBot(t *testing.T) {
	for _, tc := range []struct {
		name, script string
		signal       syscall.Signal
		want         int
	}{
		{"the bot's exit code", "trap 'exit 7' TERM; ready; wait", syscall.SIGTERM, 7},
		{"the signal that killed it", "ready; kill -KILL $$", 0, 137},
		{"a reboot", "trap 'exit 0' INT; ready; wait", syscall.SIGUSR1, exitReboot},
		{"a reboot that the bot ends by a failure", "trap 'exit 9' INT; ready; wait", syscall.SIGUSR1, exitReboot},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ready := filepath.Join(t.TempDir(), "ready")
			if err := syscall.Mkfifo(ready, 0o600); err != nil {
				t.Fatal(err)
			}
			script := "ready() { : >" + ready + "; }; wait() { while :; do sleep 0.01; done; }; " + tc.script
			p, err := proc.Start(&proc.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ(), NewGroup: true, ParentDeath: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.ReadFile(ready); err != nil { // until its traps are set
				t.Fatal(err)
			}
			c := &container{env: Env{Stderr: io.Discard}, signals: make(chan os.Signal, 1)}
			if tc.signal != 0 {
				c.signals <- tc.signal
			}
			if got := c.serve(p); got != tc.want {
				t.Errorf("exit code %d, want %d", got, tc.want)
			}
		})
	}
}

// While there is no bot yet a drain ends the container, and a reboot too.
func TestContainerWithoutABot(t *testing.T) {
	t.Setenv(envCode, "http://127.0.0.1:1/bot_code")
	for sig, want := range map[syscall.Signal]int{syscall.SIGTERM: 0, syscall.SIGINT: 0, syscall.SIGUSR1: exitReboot} {
		c := &container{env: Env{Stderr: io.Discard}, dir: filepath.Join(t.TempDir(), "bot"), signals: make(chan os.Signal, 1)}
		c.signals <- sig
		ended := make(chan int, 1)
		go func() { ended <- c.run() }()
		select {
		case got := <-ended:
			if got != want {
				t.Errorf("%v: exit code %d, want %d", sig, got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%v is not heard", sig)
		}
	}
}
