//go:build unix

package runner

import (
	"errors"
	"syscall"
)

// isTaskFault reports whether the system refused to start an executable
// because of what it is, not because of the machine's state.
func isTaskFault(err error) bool {
	for _, e := range []error{syscall.ENOENT, syscall.EACCES, syscall.ENOEXEC, syscall.E2BIG, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.EINVAL, syscall.EPERM, syscall.ETXTBSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
