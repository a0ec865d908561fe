//go:build unix && !linux

package supervise

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// stranger is a bot that an earlier supervisor started. Without pidfd it is
// watched by asking, and its lock is what proves that the id is still its.
type stranger struct{ id int }

// resync is how often a stranger is looked at.
const resync = time.Second

func openProcess(pid int, _ string) (process, error) { return &stranger{pid}, nil }

func (s *stranger) pid() int { return s.id }
func (s *stranger) close()   {}

func (s *stranger) signal(how ending) error {
	err := unix.Kill(s.id, signals[how])
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (s *stranger) wait(ctx context.Context) (bool, error) {
	for {
		if errors.Is(unix.Kill(s.id, 0), unix.ESRCH) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(resync):
		}
	}
}
