//go:build unix

package runner

import (
	"os"
	"syscall"
)

// inherited returns a pipe that our parent gave us, such that waiting for it
// costs no thread.
func inherited(fd uintptr, name string) *os.File {
	_ = syscall.SetNonblock(int(fd), true)
	return os.NewFile(fd, name)
}

// inheritedOutput returns a pipe that our parent gave us to write to. It stays
// as it is: the task may get it too.
func inheritedOutput(fd uintptr, name string) *os.File { return os.NewFile(fd, name) }
