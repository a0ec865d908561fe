package chaos

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// TestMain is also the child of some tests.
func TestMain(m *testing.M) {
	switch os.Getenv("CHAOS_CHILD") {
	case "read":
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	case "wait":
		time.Sleep(time.Minute) // a child, which is killed
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestProcessTable(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	child, err := proc.Start(&proc.Cmd{
		Path: exe, Args: []string{"child", filepath.Join(dir, "x")}, Env: []string{"CHAOS_CHILD=read"}, Files: []*os.File{r}, ParentDeath: true,
	})
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	is := func(p process) bool { return p.PID == child.Pid }
	found, err := marked(dir)
	if err != nil || len(found) != 1 || !is(found[0]) {
		t.Fatalf("marked: %v, %v", found, err)
	}
	if ps := below(os.Getpid()); !slices.ContainsFunc(ps, is) {
		t.Errorf("below: %v", ps)
	}
	me, ok := readProcess(os.Getpid())
	if !ok || !me.alive() {
		t.Error("this process is not there")
	}
	if me.Start++; me.alive() {
		t.Error("a process with this one's id is taken for it")
	}
	if err := found[0].kill(); err != nil {
		t.Fatal(err)
	}
	if s := child.Wait(); s.Code != -9 {
		t.Errorf("code %d", s.Code)
	}
	if found[0].alive() || found[0].kill() != nil {
		t.Error("it is still there")
	}
}
