package proc

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReapOrphans takes in the zombies of processes that were orphaned below us,
// for as long as p runs: a task that makes daemons for hours would fill the
// process table with them. p itself is left to its own wait.
func ReapOrphans(p *Process) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		defer signal.Stop(ended)
		for {
			select {
			case <-p.Done():
				return
			case <-ended:
				for {
					pid := zombie()
					if pid <= 0 || pid == p.Pid {
						break
					}
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
				}
			}
		}
	}()
}

// zombie returns a child that has ended, and leaves it; 0 when there is none.
func zombie() int {
	var info unix.Siginfo
	if unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) != nil {
		return 0
	}
	// si_pid follows three ints, aligned as the union that it is part of.
	// waitid(2), sigaction(2).
	const word = unsafe.Sizeof(uintptr(0))
	const offset = (3*4 + word - 1) &^ (word - 1)
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset)))
}
