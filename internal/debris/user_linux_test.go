package debris

import (
	"syscall"
	"testing"
)

// dropPrivileges makes this thread nobody's.
func dropPrivileges(t *testing.T) {
	const nobody = 65534
	if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
		t.Skip("cannot become another user: ", errno)
	}
}
