package room

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/jsonfd"
	"github.com/skepdev/skep/internal/proc"
)

// Main is the program; it returns an exit code when the pool is gone.
func Main() int {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	syscall.Umask(0o022)
	loopback()
	dir := Dir
	if len(os.Args) > 2 { // a fake room, which shares the host's root
		dir = os.Args[2]
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, SocketName), Net: "unix"})
	if err != nil {
		_, _ = os.Stderr.WriteString("room: " + err.Error() + "\n")
		return 1
	}
	r := &first{conn: jsonfd.NewConn(c), pids: map[int]uint64{}}
	go r.reap()
	if r.conn.Send(News{Hello: true}) != nil {
		return 1
	}
	for {
		line, err := r.conn.Receive()
		if err != nil {
			return 0
		}
		var o Order
		if jsonfd.Decode(line, &o) != nil {
			return 2
		}
		r.obey(&o)
	}
}

// first is the first process.
type first struct {
	conn *jsonfd.Conn

	mu   sync.Mutex
	pids map[int]uint64 // running commands: the exec's id by pid
	wake chan struct{}  // closed when there is a child again; nil = reap does not wait
}

func (r *first) obey(o *Order) {
	switch {
	case o.Ping:
		_ = r.conn.Send(News{ID: o.ID, Pong: true})
	case o.Exec != nil:
		files, err := r.conn.Take(3)
		if err != nil {
			_ = r.conn.Send(News{ID: o.ID, Error: err.Error()})
			return
		}
		r.start(o.ID, o.Exec, files)
	case o.Signal != nil:
		r.mu.Lock()
		defer r.mu.Unlock()
		for pid, id := range r.pids {
			if id == o.Signal.Exec {
				_ = syscall.Kill(pid, syscall.Signal(o.Signal.Signal))
			}
		}
		_ = r.conn.Send(News{ID: o.ID, Pong: true})
	default:
		_ = r.conn.Send(News{ID: o.ID, Error: "an order that says nothing"})
	}
}

// start starts a command. The lock is held over the fork, so that reap cannot
// report an end before the start was reported.
func (r *first) start(id uint64, e *Exec, files []*os.File) {
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	path, err := lookup(e)
	r.mu.Lock()
	defer r.mu.Unlock()
	var pid int
	if err == nil {
		pid, err = fork(path, e, files)
	}
	if err != nil {
		_ = r.conn.Send(News{ID: id, Error: err.Error()})
		return
	}
	_ = r.conn.Send(News{ID: id, PID: pid})
	r.pids[pid] = id
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
}

// fork runs the command on a thread of its own, which loses its rights and
// ends with the call.
func fork(path string, e *Exec, files []*os.File) (pid int, err error) {
	proc.OnThread(func() {
		attr := &syscall.ProcAttr{Env: e.Env, Dir: dirOf(e), Sys: &syscall.SysProcAttr{Setsid: true}}
		if e.Env == nil {
			attr.Env = []string{}
		}
		for _, f := range files {
			attr.Files = append(attr.Files, f.Fd())
		}
		if e.Task {
			for c := range uintptr(unix.CAP_LAST_CAP + 1) {
				_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			}
			_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
			if err = withoutKeys(); err != nil {
				return
			}
			attr.Sys.Credential = &syscall.Credential{Uid: TaskUID, Gid: TaskGID}
		}
		pid, err = proc.ForkExec(path, e.Args, attr)
	})
	if err != nil {
		return 0, &proc.ExecError{Path: path, Err: err}
	}
	return pid, nil
}

func dirOf(e *Exec) string {
	if e.Dir == "" {
		return "/"
	}
	return e.Dir
}

// lookup finds the executable as the command itself would: with a slash as
// given, below its directory; without one in its PATH.
func lookup(e *Exec) (string, error) {
	if len(e.Args) == 0 || e.Args[0] == "" {
		return "", errors.New("no command")
	}
	name := e.Args[0]
	abs := func(p string) string {
		if filepath.IsAbs(p) {
			return p
		}
		return filepath.Join(dirOf(e), p)
	}
	if strings.Contains(name, "/") {
		return abs(name), nil // execve has the last word
	}
	path := ""
	for _, kv := range e.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(abs(dir), name)
		if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", &proc.ExecError{Path: name, Err: errors.New("no such program in the room's PATH (" + path + ")")}
}

// reap waits for every process of the container: commands, and what they
// orphaned.
func (r *first) reap() {
	for {
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // ECHILD: wait for the first
			wake := make(chan struct{})
			r.mu.Lock()
			if len(r.pids) > 0 {
				r.mu.Unlock()
				continue
			}
			r.wake = wake
			r.mu.Unlock()
			<-wake
			continue
		}
		r.mu.Lock()
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if pid <= 0 {
				break
			}
			id, ours := r.pids[pid]
			if !ours {
				continue
			}
			delete(r.pids, pid)
			code := ws.ExitStatus()
			if ws.Signaled() {
				code = -int(ws.Signal())
			}
			_ = r.conn.Send(News{ID: id, Exit: &code})
		}
		r.mu.Unlock()
	}
}

// loopback brings the loopback interface of a new network namespace up.
func loopback() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr) != nil {
		return
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
