package bot

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// canReadLocked is false: a locked range can be neither read nor written by
// others here.
const canReadLocked = false

func lockFile(f *os.File) (held bool, err error) {
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		return true, nil
	}
	return false, err
}

// Keep does nothing: a process cannot be replaced here, its successor takes
// the lock anew.
func (l *Lock) Keep() (fd uintptr, err error) { return 0, errors.ErrUnsupported }

func closeOnExec(*os.File) {}
