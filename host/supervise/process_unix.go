//go:build unix

package supervise

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/proc"
)

// signals are what a bot understands: SIGTERM drains, SIGINT stops
// (decisions.md 2); and what it need not.
var signals = map[ending]unix.Signal{draining: unix.SIGTERM, stopping: unix.SIGINT, killing: unix.SIGKILL}

func signalChild(p *proc.Process, how ending) error { return p.Signal(signals[how]) }

// lockHolder reads a lock file. held says that some process has its flock;
// pid is the number in the file, 0 when there is none.
func lockHolder(path string) (pid int, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, false, err
	}
	defer f.Close() // and so gives up the lock that the next line may take
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return 0, false, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, false, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, true, err
	}
	pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	return pid, true, nil
}
