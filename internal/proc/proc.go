// Package proc starts processes and ends them with everything they left
// behind. It is the only package that imports os/exec.
//
// A Process is one child. A Place is what holds all processes of one task: a
// cgroup, a PID namespace, or the fact that orphans come back to us (a
// subreaper). See Place for how they are ended.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// ErrGone is returned by Signal for a process that was already waited for.
var ErrGone = errors.New("process has ended")

// ExecError is the system's refusal to start an executable.
type ExecError struct {
	Path string
	Err  error
}

func (e *ExecError) Error() string { return "start " + e.Path + ": " + e.Err.Error() }

// Unwrap returns the system's error.
func (e *ExecError) Unwrap() error { return e.Err }

// Program reports whether the executable or its arguments are to blame, not
// the state of the machine.
func (e *ExecError) Program() bool {
	return slices.ContainsFunc(programErrors, func(err error) bool { return errors.Is(e.Err, err) })
}

// User is whom a process runs as. Supplementary groups are dropped.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Cmd describes a process to start.
type Cmd struct {
	Path string   // executable, absolute or relative to Dir; not looked up
	Args []string // with argument 0
	Env  []string // "K=V", all of it: nothing is inherited
	Dir  string   // working directory; "" = the starter's

	Files []*os.File // descriptors 0, 1, 2, …; nil, and missing ones up to 2, are the null device

	NewGroup    bool  // own process group, killed when the process ends (POSIX)
	ParentDeath bool  // SIGKILL when the starter dies (Linux)
	Calm        bool  // one of our own programs, whose timers may be late as Calm says (Linux)
	User        *User // nil = the starter's (POSIX)
	View        *View // nil = the starter's view of the file system (Linux)
	Seat        *Seat // where View was entered already; nil = enter it now

	cgroup    int    // descriptor of a cgroup v2 directory to start in; 0 = none
	threads   []int  // descriptors of cgroup v1 "tasks" files that the forking thread joins
	back      []int  // the same hierarchies' files of the cgroup to return to
	clone     uint64 // namespaces of the child
	mapped    bool   // with a user namespace: map only ourselves, and keep the right to mount
	powerless bool   // without the capabilities that mapped left
}

// View hides a directory tree from a process. Hide is covered by an empty,
// read-only directory in which only the paths in Keep, all below Hide, exist
// as before. It lets a task use absolute paths below a directory that its user
// may not search, and keeps it from everything else in there.
type View struct {
	Hide string   `json:"hide"`
	Keep []string `json:"keep"`

	Cover []string `json:"cover,omitempty"` // further directories, of which nothing is seen; one that is missing is none

	Proc bool `json:"proc,omitempty"` // mount /proc anew, for a new PID namespace

	Overlay *Overlay `json:"overlay,omitempty"` // mounted in the view, and so gone with its last process
	Detach  []string `json:"detach,omitempty"`  // mount points that are taken away
}

// Overlay is a directory of two halves: Lower is only read, changes go to
// Upper. Work is an empty directory of the same file system as Upper.
type Overlay struct {
	Lower string `json:"lower"`
	Upper string `json:"upper"`
	Work  string `json:"work"`
	At    string `json:"at"`
}

// Status is how a process ended.
type Status struct {
	Code   int // exit code; −N when signal N killed it
	Err    error
	Ended  time.Time
	Signal bool // Code is a signal
}

// Process is a started child. Its methods may be used by many goroutines.
type Process struct {
	Pid     int
	Started time.Time // just after the kernel had run exec

	done   chan struct{}
	status Status

	mu     sync.Mutex // held while the pid is used and while it is given up
	reaped bool
	outer  *Process    // PID 1 of its namespace, which answers for it (Linux)
	handle *os.Process //nolint:unused // Windows, where a pid is not enough
}

// Done is closed when the process has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, and waits for that.
func (p *Process) Wait() Status {
	<-p.done
	return p.status
}

// Start starts c and returns when its executable runs, or with the reason why
// it cannot: then nothing is left of it.
func Start(c *Cmd) (*Process, error) {
	null, files, err := c.files()
	if null != nil {
		defer null.Close()
	}
	if err != nil {
		return nil, err
	}
	p := &Process{done: make(chan struct{})}
	if err := p.start(c, files); err != nil {
		return nil, err
	}
	return p, nil
}

// files fills descriptors 0 to 2 with the null device where c names none.
func (c *Cmd) files() (null *os.File, files []*os.File, err error) {
	files = append(files, c.Files...)
	for len(files) < 3 {
		files = append(files, nil)
	}
	for i, f := range files {
		if f != nil {
			continue
		}
		if null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, nil, err
			}
		}
		files[i] = null
	}
	return null, files, nil
}

// Output runs a helper and returns what it wrote to its standard output; the
// error of one that failed holds what it complained about. env
// is its whole environment; nil = the caller's. When ctx ends, the helper is
// killed.
func Output(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = env
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	out, err := cmd.Output()
	if e, ok := errors.AsType[*exec.ExitError](err); ok && len(e.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(e.Stderr))
	}
	return out, err
}
