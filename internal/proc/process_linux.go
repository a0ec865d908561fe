package proc

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// forkExec runs on a locked thread that is never used for anything else.
func forkExec(c *Cmd, fds []uintptr) (int, error) {
	attr := &syscall.ProcAttr{Env: withRace(c.Env), Files: fds, Sys: &syscall.SysProcAttr{
		Setpgid:    c.NewGroup,
		Cloneflags: uintptr(c.clone),
	}}
	if c.ParentDeath {
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	if c.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID}
	}
	if c.mapped {
		// The child shares our memory until it execs, and with it whether its
		// uid_map is ours to write.
		if was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err == nil && was != 1 {
			_ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
			defer Undumpable()
		}
		// Exec would take the capabilities that come with the namespace.
		attr.Sys.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN}
		uid, gid := os.Getuid(), os.Getgid()
		attr.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.Sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
	}
	if c.cgroup > 0 {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, c.cgroup
	}
	switch {
	case c.Seat != nil && c.Seat.err != nil:
		return 0, c.Seat.err
	case c.Seat == nil && c.View != nil:
		if err := c.View.enter(); err != nil {
			return 0, err
		}
	}
	if c.Dir != "" {
		// The thread gets a working directory of its own and goes there with our
		// rights: the child's user may lack the right to search its parents.
		err := unix.Unshare(unix.CLONE_FS)
		switch err {
		case nil:
			if err := syscall.Chdir(c.Dir); err != nil {
				return 0, fmt.Errorf("chdir %s: %w", c.Dir, err)
			}
		case unix.EPERM: // as in containers: the child goes there, by what we open
			fd, err := unix.Open(c.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return 0, fmt.Errorf("chdir %s: %w", c.Dir, err)
			}
			defer unix.Close(fd)
			attr.Dir = "/proc/self/fd/" + strconv.Itoa(fd)
		default:
			return 0, fmt.Errorf("unshare: %w", err)
		}
	}
	if err := c.setSlack(); err != nil {
		return 0, err
	}
	if c.powerless {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("drop capabilities: %w", err)
		}
	}
	for _, fd := range c.threads {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return 0, fmt.Errorf("join cgroup: %w", err)
		}
	}
	pid, err := ForkExec(c.Path, c.Args, attr)
	for _, fd := range c.back {
		if _, err := unix.Write(fd, []byte("0")); err != nil && pid > 0 {
			// This thread would be frozen with the task and could not wait for it.
			_ = syscall.Kill(pid, syscall.SIGKILL)
			_, _ = syscall.Wait4(pid, nil, 0, nil)
			return 0, fmt.Errorf("leave cgroup: %w", err)
		}
	}
	return pid, err
}

// waitEnd returns when pid is a zombie, and leaves it one.
func waitEnd(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// Started returns a child of this process that syscall.ForkExec started, the
// leader of its own process group, and sees to its end as Start does.
func Started(pid int) *Process {
	p := &Process{Pid: pid, Started: time.Now(), done: make(chan struct{})}
	go p.reap(true) // another thread has forked it: any may wait
	return p
}

// KeepDescriptors keeps every descriptor above 2 that this process inherited
// from its own children: ours, and those that leaked from whoever started us.
func KeepDescriptors() {
	if unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// A kernel before 5.11.
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if fd, err := strconv.Atoi(n); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// Undumpable keeps processes of the same user from tracing this one and from
// reading its memory, environment and descriptors through /proc.
func Undumpable() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }

// MayExecute reports whether u, in no other groups, may execute path: nil, or
// why not. Only root can ask.
func MayExecute(path string, u *User) error {
	answer := make(chan error, 1)
	onThread(func() {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
			answer <- errno
			return
		}
		_ = unix.Setfsgid(int(u.GID))
		_ = unix.Setfsuid(int(u.UID)) // takes CAP_DAC_OVERRIDE and its like too
		answer <- unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	})
	return <-answer
}

func firstThread() bool { return unix.Gettid() == os.Getpid() }
