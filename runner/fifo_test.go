package runner

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// fifo makes pipes by which a test and a task wait for each other; everybody
// may use them, since the task has another user id.
func fifo(t testing.TB, dir string, names ...string) {
	t.Helper()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range names {
		path := filepath.Join(dir, n)
		if err := syscall.Mkfifo(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// write lets a task that reads the pipe go on.
func write(t testing.TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("go\n")
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// read waits until a task has written to the pipe.
func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
