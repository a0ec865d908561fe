package drone

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/skepdev/skep/internal/peercred"
)

// mayAsk says why the process at the other end of a connection must not ask
// anything.
func mayAsk(c net.Conn) error {
	cred, err := peercred.Of(c)
	if err != nil {
		return fmt.Errorf("who asks is not known: %w", err)
	}
	own := os.Geteuid()
	switch {
	case cred.UID != 0 && cred.UID != own && !cred.InGroup(os.Getegid()): // whatever became of the socket's mode
		return fmt.Errorf("user %d may not ask this drone; root may, and its own user and group", cred.UID)
	case own == 0 || cred.UID != own: // tasks have another user
		return nil
	}
	return notOurs(cred.PID, os.Getpid())
}

// notOurs returns an error for a process that the process self, a bot or a task
// started, and for one that cannot be told from those. Bots and tasks take in
// what is orphaned below them, so that the way up from there leads to us.
func notOurs(pid, self int) error {
	for pid > 1 && pid != self {
		parent, err := parentOf(pid)
		if err != nil {
			return fmt.Errorf("who asks cannot be told from a task of this drone: %w", err)
		}
		pid = parent
	}
	if pid == 0 || pid == self { // 0: of another PID namespace, or our own start is not seen
		return errors.New("bots and tasks of this drone may not ask it")
	}
	return nil
}

func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name in field 2 may hold blanks and ends with the last parenthesis.
	// proc_pid_stat(5).
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return 0, errors.New("/proc tells no parent")
	}
	return strconv.Atoi(string(f[1]))
}
