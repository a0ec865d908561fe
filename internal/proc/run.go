package proc

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"time"
)

// RunOptions say how Run runs a program. MaxOutput bounds stdout and stderr
// each, in bytes; what is beyond is read and dropped.
type RunOptions struct {
	Args      []string // the program, looked up in PATH, and its arguments
	Env       []string // all of it; nil = the caller's
	Dir       string   // "" = the caller's
	Stdin     []byte   // nil = the null device
	MaxOutput int
}

// RunResult is how a program that could be started ended.
type RunResult struct {
	Status         Status
	Stdout, Stderr []byte
	Truncated      bool // output was dropped
	TimedOut       bool // ctx ended first, and the program was killed
}

// Run runs a program to its end, or until ctx ends; then it is killed with its
// process group. Output that a surviving grandchild may write later is not
// waited for. The error says that it could not be started.
func Run(ctx context.Context, o RunOptions) (*RunResult, error) {
	if len(o.Args) == 0 {
		return nil, errors.New("no program to run")
	}
	path, err := exec.LookPath(o.Args[0])
	if err != nil {
		return nil, err
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}
	out, err := newTank(o.MaxOutput)
	if err != nil {
		return nil, err
	}
	defer out.close()
	errOut, err := newTank(o.MaxOutput)
	if err != nil {
		return nil, err
	}
	defer errOut.close()
	var in, feed *os.File
	if o.Stdin != nil {
		if in, feed, err = os.Pipe(); err != nil {
			return nil, err
		}
		defer feed.Close() // ends the writing, should nobody read
	}
	p, err := Start(&Cmd{
		Path: path, Args: o.Args, Env: o.Env, Dir: o.Dir, Files: []*os.File{in, out.w, errOut.w},
		NewGroup: true, ParentDeath: true,
	})
	if in != nil {
		_ = in.Close()
	}
	if err != nil {
		return nil, err
	}
	if feed != nil {
		go func() {
			_, _ = feed.Write(o.Stdin) // a program need not read it
			_ = feed.Close()
		}()
	}
	out.fill()
	errOut.fill()
	res := &RunResult{}
	select {
	case <-p.Done():
	case <-ctx.Done():
		select {
		case <-p.Done():
		default:
			res.TimedOut = true
			_ = p.Kill()
		}
	}
	res.Status = p.Wait()
	var cut1, cut2 bool
	res.Stdout, cut1 = out.empty()
	res.Stderr, cut2 = errOut.empty()
	res.Truncated = cut1 || cut2
	return res, nil
}

// tank collects what a process writes to one descriptor.
type tank struct {
	r, w *os.File
	max  int
	buf  []byte
	cut  bool
	done chan struct{}
}

func newTank(limit int) (*tank, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return &tank{r: r, w: w, max: limit, done: make(chan struct{})}, nil
}

// fill reads until nobody can write any more. Our own end is closed for that.
func (t *tank) fill() {
	_ = t.w.Close()
	go func() {
		defer close(t.done)
		buf := make([]byte, 4<<10)
		for {
			n, err := t.r.Read(buf)
			t.keep(buf[:n])
			if err != nil {
				return
			}
		}
	}()
}

func (t *tank) keep(b []byte) {
	n := min(len(b), t.max-len(t.buf))
	t.buf = append(t.buf, b[:n]...)
	t.cut = t.cut || n < len(b)
}

// empty returns what was written. A grandchild may hold the pipe; it gets a
// moment. What the process itself wrote lies in the pipe since its end at the
// latest, and is taken however late we are.
func (t *tank) empty() ([]byte, bool) {
	_ = t.r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-t.done
	_ = t.r.SetReadDeadline(time.Time{})
	for buf := make([]byte, 4<<10); !t.cut; { // a grandchild may write for ever
		n := readNow(t.r, buf)
		if n == 0 {
			break
		}
		t.keep(buf[:n])
	}
	return t.buf, t.cut
}

func (t *tank) close() {
	_ = t.w.Close()
	_ = t.r.Close()
}

// ErrNotFound is what the error of LookPath and Run is of a name that no
// directory of PATH has.
var ErrNotFound = exec.ErrNotFound

// LookPath finds an executable by its name in this process's PATH.
func LookPath(name string) (string, error) { return exec.LookPath(name) }
