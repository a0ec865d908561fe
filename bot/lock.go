package bot

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
)

// Lock is the right to be the bot of a directory. It lasts as long as the
// process, and over an exec when Keep was called. spec bot.md §1.6, row B12.
type Lock struct{ f *os.File }

// TakeLock takes the lock of dir and writes our process id into it. When
// another bot holds it, the error is a Conflict that names that bot: it runs
// well, so neither it nor its host is touched.
func TakeLock(dir string) (*Lock, error) {
	path := filepath.Join(dir, LockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	held, err := lockFile(f)
	if err != nil || held {
		pid := LockedBy(dir)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		return nil, skep.Errorf(skep.Conflict, "a bot runs in %s already (process %d); one directory is for one bot, so give this one a directory of its own", dir, pid)
	}
	l := &Lock{f}
	return l, l.write()
}

// AdoptLock returns the lock that the process before exec kept at descriptor
// fd.
func AdoptLock(fd uintptr) (*Lock, error) {
	l := &Lock{os.NewFile(fd, LockFile)}
	if held, err := lockFile(l.f); err != nil || held {
		return nil, skep.Errorf(skep.Conflict, "descriptor %d does not hold the bot's lock", fd)
	}
	closeOnExec(l.f)
	return l, l.write()
}

func (l *Lock) write() error {
	if !canReadLocked {
		return nil
	}
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := l.f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

// Release gives the lock up; the file stays.
func (l *Lock) Release() error { return l.f.Close() }

// Running reports whether a bot runs in dir, and its process id. It takes the
// lock for a moment when none does.
func Running(dir string) (pid int, running bool) {
	f, err := os.OpenFile(filepath.Join(dir, LockFile), os.O_RDWR, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if held, err := lockFile(f); err != nil || !held {
		return 0, false
	}
	return LockedBy(dir), true
}

// LockedBy returns the process id in dir's lock file, 0 if there is none. It
// does not say whether that process still runs; see Running.
func LockedBy(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, LockFile))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}
