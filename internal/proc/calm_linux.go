package proc

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Go's monitor thread sleeps 20 µs at a time while its program works on
// something: to wake it is what a program costs most that has little to do and
// that often, a fifth of a task_runner. With calmSlack the kernel may be late
// with it by as much, and so with other timers. docs/adr/0077.
const (
	calmSlack  = 2 * time.Millisecond
	usualSlack = 50 * time.Microsecond // of Linux, for what is not ours
)

// Calm lets the timers of this program be late by 2 ms. The threads that there
// are keep their slack, but exec hands ours to all that come: the program
// executes itself once more, with the same process id. It must be called before
// anything else is done. It returns when that was done before, or cannot be.
func Calm() {
	exe, err := os.Executable()
	if err != nil || slack() >= calmSlack || setSlack(calmSlack) != nil || slack() < calmSlack {
		return
	}
	_ = syscall.Exec(exe, os.Args, os.Environ())
	_ = setSlack(usualSlack)
}

// setSlack gives the thread that forks what its child is to have.
func (c *Cmd) setSlack() error {
	switch now := slack(); {
	case c.Calm && now < calmSlack:
		return setSlack(calmSlack)
	case !c.Calm && now == calmSlack:
		return setSlack(usualSlack)
	}
	return nil
}

// slack is that of the calling thread; what it starts inherits it. prctl(2).
func slack() time.Duration {
	n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		return 0
	}
	return time.Duration(n)
}

func setSlack(d time.Duration) error {
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(d.Nanoseconds()), 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	return nil
}
