package proc

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt makes orphans below this process its children, so that a sweep finds
// them and nobody else has to reap them.
func Adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// sweep ends what is left below this process, whatever the method: a root task
// may have left its cgroup. It is for processes that have no other children
// than the task's; those that exec.Cmd or Start still wait for must be gone.
// Without Adopt and without children it does nothing.
func (pl *Place) sweep(end time.Time) error {
	if pl.Method == MethodSubreaper && pl.Label != "" {
		return pl.sweepLabel(end)
	}
	return nil
}

// SweepChildren ends everything below this process and reaps it: freeze what
// is there until a look finds nothing new, then kill. A frozen process cannot
// fork, so each round leaves fewer that can.
func SweepChildren(limit time.Duration) error {
	end := time.Now().Add(limit)
	self := os.Getpid()
	for {
		alive := reapAll()
		if !alive {
			return nil
		}
		frozen := map[int]bool{}
		for {
			fresh := 0
			for _, pid := range descendants(self) {
				if !frozen[pid] && unix.Kill(pid, unix.SIGSTOP) == nil {
					frozen[pid] = true
					fresh++
				}
			}
			if fresh == 0 || time.Now().After(end) {
				break
			}
		}
		for pid := range frozen {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes cannot be killed", len(frozen))
		}
		time.Sleep(time.Millisecond)
	}
}

// reapAll takes in every zombie child and reports whether children are left.
func reapAll() bool {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		switch {
		case err == unix.EINTR:
		case err != nil: // ECHILD
			return false
		case pid == 0:
			return true
		}
	}
}

// descendants lists the processes below root. Zombies are no processes.
func descendants(root int) []int {
	children := map[int][]int{}
	eachProcess(func(pid int) {
		ppid, state := statOf(pid)
		if ppid > 0 && state != 'Z' && state != 'X' {
			children[ppid] = append(children[ppid], pid)
		}
	})
	var all []int
	for next := []int{root}; len(next) > 0; {
		below := children[next[0]]
		all, next = append(all, below...), append(next[1:], below...)
	}
	return all
}

func eachProcess(f func(pid int)) {
	d, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			f(pid)
		}
	}
}

// statOf returns the parent and the state letter of a process, 0 for one that
// is gone. proc_pid_stat(5): the name in parentheses may hold anything.
func statOf(pid int) (ppid int, state byte) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 2 || len(f[0]) != 1 {
		return 0, 0
	}
	ppid, _ = strconv.Atoi(f[1])
	return ppid, f[0][0]
}

// sweepLabel finds processes by the label in the environment they were started
// with: the last means, for the processes of a task whose every parent was
// killed.
func (pl *Place) sweepLabel(end time.Time) error {
	want := []byte(pl.Label)
	for {
		n := 0
		eachProcess(func(pid int) {
			if pid == os.Getpid() {
				return
			}
			env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
			if err != nil {
				return
			}
			for v := range bytes.SplitSeq(env, []byte{0}) {
				if bytes.Equal(v, want) {
					if _, state := statOf(pid); state != 'Z' && state != 'X' {
						n++
						_ = unix.Kill(pid, unix.SIGKILL)
					}
					return
				}
			}
		})
		if n == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes of the task cannot be killed", n)
		}
		time.Sleep(time.Millisecond)
	}
}
