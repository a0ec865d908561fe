package proc

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Ids for tasks, one pair per bot directory. The wide range is the one that
// systemd's registry of ids leaves free; where a user namespace maps fewer ids,
// the narrow one, which nothing assigns either, must do.
const (
	wideFirst, wideCount     = 1879048192, 1 << 28
	narrowFirst, narrowCount = 60578, 606
)

// HideSelf keeps other processes of the same user out of this one: no
// /proc/<pid>/mem or environ, no ptrace, no core dump. What it starts from now
// on cannot be given a user namespace.
func HideSelf() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// Isolate finds out how tasks of the bot in dir can be kept from dir and from
// the bot's processes. want is a user to use, nil = one of our choice.
//
// As root it is another user; when that user may not search the way to dir, a
// View that shows the task its own directories and nothing else there.
// Otherwise it is user, PID and mount namespaces. Each is tried for real.
func Isolate(dir string, want *User) Isolation {
	if os.Geteuid() != 0 {
		return isolateByView(dir)
	}
	iso := Isolation{Kind: IsolationUser, User: want}
	if want == nil {
		id := taskID(dir)
		iso.User = &User{UID: id, GID: id}
	}
	iso.Hide = closedTo(dir)
	probe := noProgram()
	probe.User = iso.User
	if iso.Hide != "" {
		probe.View = &View{Hide: iso.Hide}
	}
	if _, err := Start(probe); !isProbed(err) {
		return Isolation{Kind: IsolationNone, Reason: fmt.Sprintf("cannot run tasks as uid %d: %v", iso.User.UID, err)}
	}
	return iso
}

func isolateByView(dir string) Isolation {
	probe := noProgram()
	probe.mapped, probe.clone = true, unix.CLONE_NEWUSER|unix.CLONE_NEWPID|unix.CLONE_NEWNS
	if _, err := Start(probe); !isProbed(err) {
		return Isolation{Kind: IsolationNone, Reason: fmt.Sprintf("no user namespaces: %v", err)}
	}
	return Isolation{Kind: IsolationView, Hide: dir}
}

func taskID(dir string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(dir))
	m, err := os.ReadFile("/proc/self/uid_map")
	if f := strings.Fields(string(m)); err == nil && len(f) == 3 && f[0] == "0" && f[2] == "4294967295" {
		return wideFirst + h.Sum32()%wideCount
	}
	return narrowFirst + h.Sum32()%narrowCount
}

// closedTo returns the topmost directory on the way to dir, dir included, that
// strangers may not search; "" when there is none.
func closedTo(dir string) string {
	closed := ""
	for p := filepath.Clean(dir); ; p = filepath.Dir(p) {
		fi, err := os.Stat(p)
		if err == nil && fi.Mode().Perm()&0o001 == 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
			closed = p
		}
		if p == filepath.Dir(p) {
			return closed
		}
	}
}
