package runner

import (
	"bufio"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// sharedDir is a directory that tasks may use whatever their user, and that no
// view hides.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skep-test") //nolint:usetesting // the parent of t.TempDir is closed to others
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// fifos makes pipes by which a test and a task wait for each other. They stay
// open on the test's side.
func fifos(t testing.TB, names ...string) (dir string, pipes map[string]*os.File) {
	t.Helper()
	dir, pipes = sharedDir(t), map[string]*os.File{}
	for _, n := range names {
		path := filepath.Join(dir, n)
		if err := syscall.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		pipes[n] = f
	}
	return dir, pipes
}

// release lets a task that reads a line from the pipe go on.
func release(t testing.TB, f *os.File) {
	t.Helper()
	if _, err := f.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
}

// line waits for a line that a task writes to the pipe.
func line(t testing.TB, f *os.File) string {
	t.Helper()
	_ = f.SetReadDeadline(time.Now().Add(patient))
	s, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return s[:len(s)-1]
}
