package proc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// initJob is what PID 1 of a task's namespace is to start. It travels over a
// pipe: arguments and environment of PID 1 are empty.
type initJob struct {
	Path string
	Args []string
	Env  []string
	Dir  string
	User *User
	View *View
}

// initNews are the words of PID 1: the task runs or cannot, later how it ended.
type initNews struct {
	Errno  int    `json:"errno,omitempty"`
	Err    string `json:"err,omitempty"`
	Status *int   `json:"status,omitempty"` // wait status
}

// Descriptors of PID 1: 0 to 2 are its own, these follow.
const (
	initJobFD = 3 + iota
	initNewsFD
	initTaskFD // the task's 0, 1, 2
)

// startInit starts c below a PID 1 of our own in new namespaces. The Process
// is PID 1: the kernel ends it only after everything else in there, and its
// Status is the task's.
func (pl *Place) startInit(c *Cmd) (*Process, error) {
	if len(pl.Init) == 0 {
		return nil, errors.New("no init command for a PID namespace")
	}
	null, files, err := c.files()
	if null != nil {
		defer null.Close()
	}
	if err != nil {
		return nil, err
	}
	jobR, jobW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer jobR.Close()
	defer jobW.Close()
	newsR, newsW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer newsW.Close()
	view := View{Proc: true}
	if c.View != nil {
		view.Hide, view.Keep, view.Cover = c.View.Hide, c.View.Keep, c.View.Cover
	}
	job := initJob{Path: c.Path, Args: c.Args, Env: c.Env, Dir: c.Dir, User: c.User, View: &view}
	init := &Cmd{
		Path: pl.Init[0], Args: pl.Init, Env: []string{"GOMAXPROCS=1"}, Dir: "/",
		Files:    append([]*os.File{nil, nil, os.Stderr, jobR, newsW}, files[:3]...),
		NewGroup: true, ParentDeath: true, Calm: true,
	}
	p, err := pl.startHere(init)
	if err != nil {
		newsR.Close()
		return nil, err
	}
	newsW.Close()
	err = json.NewEncoder(jobW).Encode(job)
	dec := json.NewDecoder(newsR)
	var first initNews
	if err == nil {
		err = dec.Decode(&first)
	}
	if err == nil && first.Err != "" {
		err = fmt.Errorf("%s", first.Err)
		if first.Errno != 0 {
			err = execError(c.Path, syscall.Errno(first.Errno))
		}
	}
	if err != nil {
		newsR.Close()
		_ = p.Kill()
		p.Wait()
		return nil, err
	}
	q := &Process{Pid: p.Pid, Started: p.Started, done: make(chan struct{}), outer: p}
	go func() {
		defer newsR.Close()
		end := p.Wait()
		var last initNews
		if dec.Decode(&last) == nil && last.Status != nil {
			ended := end.Ended
			end = statusOf(syscall.WaitStatus(*last.Status), nil)
			end.Ended = ended
		}
		q.status = end
		close(q.done)
	}()
	return q, nil
}

// InitMain is PID 1 of a task's namespace. It starts the task, passes SIGTERM
// on, reaps, and ends when the task's first process has ended; the kernel then
// ends the rest.
func InitMain() int {
	runtime.LockOSThread()
	KeepDescriptors()
	Undumpable()
	news := json.NewEncoder(os.NewFile(initNewsFD, "news"))
	var job initJob
	if err := json.NewDecoder(os.NewFile(initJobFD, "job")).Decode(&job); err != nil {
		return 2
	}
	term := make(chan os.Signal, 4)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	c := &Cmd{Path: job.Path, Args: job.Args, Env: job.Env, Dir: job.Dir, User: job.User, View: job.View, NewGroup: true, powerless: os.Getuid() != 0}
	pid, err := forkExec(c, []uintptr{initTaskFD, initTaskFD + 1, initTaskFD + 2})
	if err != nil {
		n := initNews{Err: err.Error()}
		if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // ForkExec returns it bare
			n.Errno = int(errno)
		}
		_ = news.Encode(n)
		return 1
	}
	for _, fd := range []int{initTaskFD, initTaskFD + 1, initTaskFD + 2} {
		_ = unix.Close(fd)
	}
	if news.Encode(initNews{}) != nil {
		return 1
	}
	go func() {
		for range term {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	}()
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 1
		}
		if got == pid && (ws.Exited() || ws.Signaled()) {
			status := int(ws)
			_ = news.Encode(initNews{Status: &status})
			return 0
		}
	}
}
