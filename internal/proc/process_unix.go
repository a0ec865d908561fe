//go:build unix

package proc

import (
	"math"
	"os"
	"runtime"
	"syscall"
	"time"
)

// start forks from a thread of its own, which lives as long as the child: its
// cgroup, view and parent-death duty are then nobody else's, and the child is
// told of our death only when the whole process dies.
func (p *Process) start(c *Cmd, files []*os.File) error {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	started := make(chan error, 1)
	c.Seat.run(func() {
		pid, err := forkExec(c, fds)
		runtime.KeepAlive(files)
		if err != nil {
			started <- execError(c.Path, err)
			return
		}
		p.Pid, p.Started = pid, time.Now()
		started <- nil
		p.reap(c.NewGroup)
	})
	return <-started
}

// untilFree calls exec, and calls it again while it says that the executable is
// open for writing: a file that was just written may still be open in a child
// that another goroutine is starting. That passes within moments; after two
// seconds somebody does write to it.
func untilFree(exec func() error) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := exec(); err != syscall.ETXTBSY || time.Now().After(end) { //nolint:errorlint // a bare number
			return err
		}
	}
}

// ForkExec is syscall.ForkExec of an executable that may be just written.
func ForkExec(path string, args []string, attr *syscall.ProcAttr) (pid int, err error) {
	err = untilFree(func() error {
		pid, err = syscall.ForkExec(path, args, attr)
		return err
	})
	return pid, err
}

// Exec replaces this process by an executable that may be just written.
func Exec(path string, args, env []string) error {
	return untilFree(func() error { return syscall.Exec(path, args, env) })
}

// readNow reads what lies in a pipe and waits for nothing.
func readNow(r *os.File, buf []byte) (n int) {
	c, err := r.SyscallConn()
	if err != nil {
		return 0
	}
	_ = c.Read(func(fd uintptr) bool {
		n, _ = syscall.Read(int(fd), buf)
		return true
	})
	return max(n, 0)
}

// programErrors are what execve says of a bad executable.
var programErrors = []error{syscall.ENOENT, syscall.EACCES, syscall.ENOEXEC, syscall.E2BIG, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.ETXTBSY}

// execError tells what fork and exec say, a bare number, from what went wrong
// before.
func execError(path string, err error) error {
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // ForkExec's is bare
		return &ExecError{Path: path, Err: errno}
	}
	return err
}

// reap waits until the process ends. Its pid stays reserved until the group
// was killed, so that neither can hit a stranger.
func (p *Process) reap(group bool) {
	waitEnd(p.Pid)
	ended := time.Now()
	p.mu.Lock()
	if group {
		_ = syscall.Kill(-p.Pid, syscall.SIGKILL)
	}
	var ws syscall.WaitStatus
	var err error
	for {
		if _, err = syscall.Wait4(p.Pid, &ws, 0, nil); err != syscall.EINTR {
			break
		}
	}
	p.reaped = true
	p.mu.Unlock()
	p.status = statusOf(ws, err)
	p.status.Ended = ended
	close(p.done)
}

func statusOf(ws syscall.WaitStatus, err error) Status {
	switch {
	case err != nil:
		return Status{Code: -1, Err: err}
	case ws.Signaled():
		return Status{Code: -int(ws.Signal()), Signal: true}
	default:
		return Status{Code: ws.ExitStatus()}
	}
}

// Terminate asks the process to end (SIGTERM).
func (p *Process) Terminate() error { return p.Signal(syscall.SIGTERM) }

// Kill ends the process, and its group when it has one of its own.
func (p *Process) Kill() error { return p.Signal(syscall.SIGKILL) }

// Signal sends sig to the process alone. It never reaches a stranger that got
// the same pid later: it then returns ErrGone.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.outer != nil {
		return p.outer.Signal(sig)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return ErrGone
	}
	return syscall.Kill(p.Pid, sig)
}

// Owner returns the user id that path belongs to, and the id that belongs to
// nobody when there is none.
func Owner(path string) uint32 {
	fi, err := os.Lstat(path)
	if err != nil {
		return math.MaxUint32
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return math.MaxUint32
	}
	return st.Uid
}
