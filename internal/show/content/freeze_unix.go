//go:build unix

package content

import (
	"errors"
	"syscall"

	"github.com/skepdev/skep/internal/proc"
)

// freeze stops a process where it is, until it is killed.
func freeze(p *proc.Process) error {
	if err := p.Signal(syscall.SIGSTOP); err != nil && !errors.Is(err, proc.ErrGone) {
		return err
	}
	return nil
}
