package drone

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/skepdev/skep/internal/proc"
)

// What a drone has started, over however many processes and sessions, is told
// from what others have.
func TestNotOurs(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-c", "echo $$; sh -c 'echo $$; sleep 1000'; true"}, Dir: "/", Env: os.Environ(), NewGroup: true, Files: []*os.File{nil, w, nil},
	})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Kill(); p.Wait() }()
	said := bufio.NewScanner(r)
	for range 2 {
		if !said.Scan() {
			t.Fatal("the child says nothing")
		}
		pid, err := strconv.Atoi(strings.TrimSpace(said.Text()))
		if err != nil {
			t.Fatal(err)
		}
		if err := notOurs(pid, os.Getpid()); err == nil {
			t.Errorf("process %d, which we started, may ask", pid)
		}
		if err := notOurs(os.Getpid(), pid); err != nil {
			t.Errorf("its parent may not ask: %v", err)
		}
	}
	if err := notOurs(os.Getppid(), os.Getpid()); err != nil {
		t.Errorf("who started us may not ask: %v", err)
	}
	if err := notOurs(1<<22+1, os.Getpid()); err == nil {
		t.Error("a process that is not there may ask")
	}
	if err := notOurs(0, os.Getpid()); err == nil {
		t.Error("a process of another PID namespace may ask")
	}
}
