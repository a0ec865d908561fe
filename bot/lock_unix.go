//go:build unix

package bot

import (
	"errors"
	"os"
	"syscall"
)

const canReadLocked = true

// lockFile reports whether another open file holds the lock.
func lockFile(f *os.File) (held bool, err error) {
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// Keep makes the lock survive an exec of this process and returns its
// descriptor for AdoptLock. Child processes started otherwise do not get it:
// they close what they are not given.
func (l *Lock) Keep() (fd uintptr, err error) {
	fd = l.f.Fd()
	_, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_SETFD, 0)
	if errno != 0 {
		return 0, errno
	}
	return fd, nil
}

func closeOnExec(f *os.File) { syscall.CloseOnExec(int(f.Fd())) }
