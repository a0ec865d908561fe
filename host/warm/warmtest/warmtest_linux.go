// Package warmtest is what every Runtime of a warm pool promises, and a fake
// one.
package warmtest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/internal/need"
	"github.com/skepdev/skep/internal/proc"
)

// Program builds the rooms' program, static.
func Program(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "room")
	res, err := proc.Run(t.Context(), proc.RunOptions{
		// As env(1) sets it in place of what the race detector's tests were given: a
		// room has no loader for a program that is not static.
		Args:      []string{"env", "CGO_ENABLED=0", "go", "build", "-o", out, "github.com/skepdev/skep/host/warm/warmtest/room"},
		MaxOutput: 64 << 10,
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.Status.Code != 0 {
		t.Fatalf("go build: %d\n%s", res.Status.Code, res.Stderr)
	}
	return out
}

// Base makes a base image of busybox.
//
// extra are the content of files in its root by name.
func Base(t *testing.T, extra ...[2]string) warm.Base {
	t.Helper()
	busybox, err := proc.LookPath("busybox")
	if err != nil {
		need.Skip(t, "busybox", err.Error())
	}
	bin, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(bin))},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/cat", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/sleep", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/id", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = w.Write(bin)
		}
	}
	for _, e := range extra {
		if err := w.WriteHeader(&tar.Header{Name: e[0], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e[1]))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write([]byte(e[1]))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	file := filepath.Join(t.TempDir(), "base.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return warm.Base{File: file, Digest: "sha256:" + hex.EncodeToString(sum[:])}
}

// Fake is a Runtime whose rooms are plain processes: quick, and no
// containers. Break, when it is set, may fail a start.
type Fake struct {
	Break func(s *warm.Spec) error

	mu   sync.Mutex
	runs map[string]*proc.Process
}

// Name implements warm.Runtime.
func (f *Fake) Name() string { return "fake" }

// Check implements warm.Runtime.
func (f *Fake) Check(context.Context) error { return nil }

// Start implements warm.Runtime.
func (f *Fake) Start(_ context.Context, s *warm.Spec) error {
	if f.Break != nil {
		if err := f.Break(s); err != nil {
			return err
		}
	}
	program := filepath.Join(s.Run, room.ProgramName)
	p, err := proc.Start(&proc.Cmd{
		Path: program, Args: []string{program, room.Word, s.Run}, Dir: "/", NewGroup: true, ParentDeath: true, User: &proc.User{UID: s.FirstID, GID: s.FirstID},
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runs == nil {
		f.runs = map[string]*proc.Process{}
	}
	f.runs[s.Name] = p
	return nil
}

// Freeze has all rooms that are there say nothing any more.
func (f *Fake) Freeze() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.runs {
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements warm.Runtime.
func (f *Fake) Remove(_ context.Context, s *warm.Spec) error {
	f.mu.Lock()
	p := f.runs[s.Name]
	delete(f.runs, s.Name)
	f.mu.Unlock()
	if p != nil {
		_ = p.Kill()
		p.Wait()
	}
	return nil
}

// Start runs a pool for t, which ends with t and must leave nothing.
func Start(t *testing.T, o warm.Options) *warm.Service {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Skip(t, "root", "a pool needs root")
	}
	if o.Dir == "" {
		// Rooms' users pass through it, which a test's directory does not allow.
		dir, err := os.MkdirTemp("/var/tmp", "skep-warm-") //nolint:usetesting // as said
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as said
			t.Fatal(err)
		}
		o.Dir = dir
	}
	if err := o.Runtime.Check(t.Context()); err != nil {
		need.Skip(t, o.Runtime.Name(), err.Error())
	}
	if o.Program == "" {
		o.Program = Program(t)
	}
	if o.Base.File == "" {
		o.Base = Base(t)
	}
	s, err := warm.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if rooms, err := os.ReadDir(filepath.Join(o.Dir, "rooms")); err != nil || len(rooms) > 0 {
			t.Errorf("left behind: %v (%v)", rooms, err)
		}
	})
	return s
}

// Dial connects to s until t ends.
func Dial(t *testing.T, s *warm.Service) *pool.Client {
	t.Helper()
	c, err := pool.Dial(t.Context(), s.Socket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Shell runs a script in a room and returns its output and exit code.
func Shell(t *testing.T, c *pool.Client, e pool.Exec, script string) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	e.Args, e.Env = []string{"sh", "-c", script}, []string{"PATH=/bin"}
	cmd, err := c.Start(t.Context(), e, [3]*os.File{null, w, w})
	_ = w.Close()
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	code, err := cmd.Wait(t.Context())
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return string(out), code
}

// Suite is what a Runtime promises: rooms that are clean, unprivileged, take
// commands and directories, and end whole.
func Suite(t *testing.T, rt warm.Runtime) {
	s := Start(t, warm.Options{Runtime: rt, Size: warm.Size{Min: 2, Max: 4}, Limits: proc.Limits{Processes: 64, Memory: 256 << 20}})
	c := Dial(t, s)
	get := func() *pool.Room {
		t.Helper()
		r, err := c.Get(t.Context(), pool.Get{For: "suite", TimeoutMS: 60_000})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := get()
	if out, code := Shell(t, c, pool.Exec{Lease: r.Lease}, "id; echo mark >/mark; exit 3"); code != 3 || !strings.Contains(out, "uid=0") {
		t.Errorf("a command in a room: %q, %d", out, code)
	}
	if out, _ := Shell(t, c, pool.Exec{Lease: r.Lease, Task: true}, "id; echo x > /root-only 2>/dev/null || echo refused"); !strings.Contains(out, "uid=1000") || !strings.Contains(out, "refused") {
		t.Errorf("a task in a room: %q", out)
	}
	// With a network of its own it is still not to touch its settings: some of them are the whole host's.
	if out, _ := Shell(t, c, pool.Exec{Lease: r.Lease, Task: true}, "busybox unshare -Urn sh -c 'echo 64 > /proc/sys/net/core/somaxconn' 2>/dev/null && echo written || echo refused"); out != "refused\n" {
		t.Errorf("a task that sets up a network of its own: %q", out)
	}

	// Nobody on the host: a process that is root in the room.
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // a room's user writes there
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := c.Bind(t.Context(), r.Lease, f, "/deep/in/there", false); err != nil {
		t.Fatal(err)
	}
	if out, code := Shell(t, c, pool.Exec{Lease: r.Lease}, "echo hi > /deep/in/there/file && cat /deep/in/there/file"); code != 0 || out != "hi\n" {
		t.Errorf("in a bound directory: %q, %d", out, code)
	}
	if uid := proc.Owner(filepath.Join(dir, "file")); uid != 1_000_000 {
		t.Errorf("what the room's root wrote belongs to user %d of the host, want 1000000", uid)
	}
	if err := c.Bind(t.Context(), r.Lease, f, "/read", true); err != nil {
		t.Fatal(err)
	}
	if out, _ := Shell(t, c, pool.Exec{Lease: r.Lease}, "(echo no > /read/no) 2>/dev/null || echo refused"); out != "refused\n" {
		t.Errorf("in a directory bound read-only: %q", out)
	}

	if _, err := c.Start(t.Context(), pool.Exec{Lease: r.Lease, Args: []string{"nothing"}}, [3]*os.File{f, f, f}); pool.Reason(err) != pool.ReasonExec {
		t.Errorf("a program that is not there: %v", err)
	}
	if err := c.Release(t.Context(), r.Lease); err != nil {
		t.Error(err)
	}
	if _, err := c.Confirm(t.Context(), r.Lease, 0); pool.Reason(err) == "" {
		t.Errorf("a room that was released is confirmed: %v", err)
	}
	r = get()
	if out, _ := Shell(t, c, pool.Exec{Lease: r.Lease}, "cat /mark 2>/dev/null || echo clean"); out != "clean\n" {
		t.Errorf("the next room: %q", out)
	}

	// Another image: for new rooms only.
	b := Base(t, [2]string{"mark", "new"})
	if err := c.Rebase(t.Context(), pool.Rebase{File: b.File, Digest: b.Digest}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"old", "new", "new", "new"} {
		if i > 0 {
			r = get()
		}
		if out, _ := Shell(t, c, pool.Exec{Lease: r.Lease}, "cat /mark 2>/dev/null || echo old"); strings.TrimSpace(out) != want {
			t.Errorf("room %d is of the base %q, want the %s one", i, out, want)
		}
	}
}

// Broken is what a Runtime promises of a room whose first process cannot run,
// or ends before it says anything: that is noticed at once.
func Broken(t *testing.T, rt warm.Runtime) {
	for name, text := range map[string]string{"cannot be executed": "#!/no/such/interpreter\n", "ends": "#!/bin/sh\nexit 7\n"} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "room")
			if err := os.WriteFile(program, []byte(text), 0o755); err != nil { //nolint:gosec // rooms execute it
				t.Fatal(err)
			}
			s := Start(t, warm.Options{Runtime: rt, Program: program, Size: warm.Size{Min: 1, Max: 1}})
			c := Dial(t, s)
			st := Await(t, c, func(st *pool.Status) bool { return st.Totals.Failed > 0 })
			if strings.Contains(st.Errors[0].Text, "within") { // birthLimit has passed
				t.Errorf("noticed late: %s", st.Errors[0].Text)
			}
		})
	}
}

// Await waits until the status is as ok wants.
func Await(t *testing.T, c *pool.Client, ok func(*pool.Status) bool) *pool.Status {
	t.Helper()
	var last *pool.Status
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		st, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ok(st) {
			return st
		}
		last = st
	}
	t.Fatal(errors.New("the pool's status does not come"), fmt.Sprintf("%+v", last))
	return nil
}
