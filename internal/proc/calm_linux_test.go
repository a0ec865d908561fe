package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSlackOfChildren: our own programs get the slack of calm ones, and what is
// not ours never does, whatever the starter has.
func TestSlackOfChildren(t *testing.T) {
	for _, c := range []struct {
		name    string
		starter time.Duration
		calm    bool
		want    string // nanoseconds
	}{
		{"ours", usualSlack, true, "2000000"},
		{"not ours", usualSlack, false, "50000"},
		{"ours of a calm one", calmSlack, true, "2000000"},
		{"not ours, of a calm one", calmSlack, false, "50000"},
		{"with what somebody set", 77 * time.Microsecond, false, "77000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "slack")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			OnThread(func() {
				if err = setSlack(c.starter); err != nil {
					return
				}
				err = forked(&Cmd{
					Path: "/bin/cat", Args: []string{"cat", "/proc/self/timerslack_ns"}, Env: os.Environ(), Dir: "/",
					NewGroup: true, Calm: c.calm,
				}, f)
			})
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(string(b)); got != c.want {
				t.Errorf("timer slack %s ns, want %s", got, c.want)
			}
		})
	}
}

// forked runs c on the calling thread, with output to f.
func forked(c *Cmd, f *os.File) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := forkExec(c, []uintptr{null.Fd(), f.Fd(), f.Fd()})
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	_, err = p.Wait()
	return err
}
