package runner

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/skepdev/skep"
	warmpool "github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/jsonfd"
	"github.com/skepdev/skep/internal/need"
)

// roomUID is the user of the rooms of a fakePool.
const roomUID = 1_001_000

// fakePool is the service's side of docs/wire/pool.md, with plain processes in
// place of rooms. It notes what it is asked for.
type fakePool struct {
	socket  string
	noStock bool // it has no room
	refuse  bool // no command can be started
	vanish  bool // the room ends when its command has started

	mu    sync.Mutex
	asked []string
	limit warmpool.Limits
}

func newFakePool(t *testing.T, change ...func(*fakePool)) *fakePool {
	t.Helper()
	need.Root(t, "the task's files are given to the room's user")
	p := &fakePool{socket: filepath.Join(t.TempDir(), "socket")}
	for _, f := range change {
		f(p)
	}
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(c.(*net.UnixConn)) }) //nolint:errcheck // "unix" gives no other
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		serving.Wait()
	})
	return p
}

func (p *fakePool) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, what)
}

func (p *fakePool) serve(uc *net.UnixConn) {
	c := jsonfd.NewConn(uc)
	defer c.Drop()
	defer uc.Close()
	defer p.note("gone")
	for {
		line, err := c.Receive()
		var r warmpool.Request
		if err != nil || jsonfd.Decode(line, &r) != nil {
			return
		}
		res := &warmpool.Response{ID: r.ID, Done: true}
		switch {
		case r.Get != nil:
			p.note("get " + r.Get.For)
			res = &warmpool.Response{ID: r.ID, Room: &warmpool.Room{Lease: warmpool.Lease{Room: "room-1", Generation: 1}, UID: roomUID, GID: roomUID}}
			if p.noStock {
				res = &warmpool.Response{ID: r.ID, Error: warmpool.Refusef(skep.Exhausted, warmpool.ReasonNoStock, "no container became ready")}
			}
		case r.Bind != nil:
			files, err := c.Take(1)
			if err != nil {
				return
			}
			if link, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", files[0].Fd())); link == r.Bind.At && !r.Bind.ReadOnly {
				p.note("bind")
			}
			_ = files[0].Close()
		case r.Exec != nil:
			files, err := c.Take(3)
			if err != nil {
				return
			}
			res = p.exec(c, &r, files)
			if p.vanish {
				return
			}
		case r.Release != nil:
			p.note("release")
		}
		if c.Send(res) != nil {
			return
		}
	}
}

// exec runs a command to its end and returns that.
func (p *fakePool) exec(c *jsonfd.Conn, r *warmpool.Request, files []*os.File) *warmpool.Response {
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	p.note("exec")
	if l := r.Exec.Limits; l != nil {
		p.mu.Lock()
		p.limit = *l
		p.mu.Unlock()
	}
	if p.refuse {
		return &warmpool.Response{ID: r.ID, Error: warmpool.Refusef(skep.Precondition, warmpool.ReasonExec, "no such program in the room's PATH")}
	}
	cmd := exec.Command(r.Exec.Args[0], r.Exec.Args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = r.Exec.Dir, r.Exec.Env, files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: roomUID, Gid: roomUID}}
	if err := cmd.Start(); err != nil {
		return &warmpool.Response{ID: r.ID, Error: warmpool.Refusef(skep.Precondition, warmpool.ReasonExec, "%v", err)}
	}
	_ = c.Send(&warmpool.Response{ID: r.ID, Started: &warmpool.Started{PID: 7}})
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](cmd.Wait()); ok {
		code = exit.ExitCode()
	}
	return &warmpool.Response{ID: r.ID, Exit: &warmpool.Exit{Code: code}}
}

// roomRun runs one task in a room of p.
func roomRun(t *testing.T, p *fakePool, script string, change ...func(map[string]any)) (*taskServerStub, Summary) {
	t.Helper()
	server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.BotDir = filepath.Join(sharedDir(t), "bot") })
	if err := os.MkdirAll(s.cfg.BotDir, 0o755); err != nil {
		t.Fatal(err)
	}
	sum, err := s.Run(t.Context(), Job{Manifest: sh(script, change...), Server: server.URL, BotID: "bot1", Session: "s0", Pool: p.socket})
	if err != nil {
		t.Fatal(err)
	}
	return server, sum
}

// A task in a room is its user, has its directories and limits, and the room is
// the pool's again when the task has ended.
func TestRoom(t *testing.T) {
	p := newFakePool(t)
	server, sum := roomRun(t, p, `id -u; id -g; echo made > f && cat f; echo t > "$TMPDIR/t" && echo err >&2; exit 3`,
		with("containment", map[string]any{"limit_processes": 20, "limit_total_committed_memory": 1 << 30}))
	out, _, errs := server.got()
	if want := fmt.Sprintf("%d\n%d\nmade\nerr\n", roomUID, roomUID); out != want {
		t.Errorf("output %q, want %q; errors %+v", out, want, errs)
	}
	if sum.ExitCode == nil || *sum.ExitCode != 3 {
		t.Errorf("exit code %v, want 3", sum.ExitCode)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if got, want := strings.Join(slices.DeleteFunc(p.asked, func(s string) bool { return s == "gone" }), ", "), "get "+testRunID+", bind, bind, bind, exec, release"; got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
	if p.limit.Processes != 20 || p.limit.Memory != 1<<30 {
		t.Errorf("limits %+v", p.limit)
	}
}

// What a room cannot start is the task's fault, as it is without one.
func TestRoomCannotStart(t *testing.T) {
	p := newFakePool(t, func(p *fakePool) { p.refuse = true })
	server, sum := roomRun(t, p, "true")
	out, _, errs := server.got()
	if sum.ExitCode == nil || *sum.ExitCode == 0 || len(errs) != 0 || !strings.Contains(out, "no such program") {
		t.Errorf("exit code %v, output %q, errors %+v", sum.ExitCode, out, errs)
	}
}

// A pool that has no room, or loses one, is no fault of the task.
func TestRoomFails(t *testing.T) {
	for name, fail := range map[string]func(*fakePool){
		"no stock":      func(p *fakePool) { p.noStock = true },
		"the pool goes": func(p *fakePool) { p.vanish = true },
	} {
		t.Run(name, func(t *testing.T) {
			p := newFakePool(t, fail)
			server, sum := roomRun(t, p, "echo ran")
			_, updates, errs := server.got()
			if sum.InternalError == "" && len(errs) == 0 {
				t.Errorf("%+v; updates %+v", sum, updates)
			}
		})
	}
}

func TestRoomWithoutPool(t *testing.T) {
	p := newFakePool(t)
	p = &fakePool{socket: p.socket + "-not-there"}
	if _, sum := roomRun(t, p, "echo ran"); sum.InternalError == "" {
		t.Errorf("%+v", sum)
	}
}
