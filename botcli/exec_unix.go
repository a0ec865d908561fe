//go:build unix

package botcli

import (
	"errors"
	"syscall"
	"time"
)

// execSelf replaces this process. A file that was just written may still be
// open for writing in a child that another goroutine is starting; that passes
// within moments.
func execSelf(exe string, args, env []string) error {
	for range 50 {
		err := syscall.Exec(exe, args, env)
		if !errors.Is(err, syscall.ETXTBSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return syscall.ETXTBSY
}
