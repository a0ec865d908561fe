package debris

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/internal/need"
)

// few lets this process open few more files than it has open, until the test
// ends.
func few(t *testing.T, n int) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open) + n), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// dig makes a tree of one directory in another, with a file in each.
func dig(t *testing.T, top string, depth int) {
	t.Helper()
	if err := os.Mkdir(top, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err == nil {
			_ = unix.Close(f)
			err = unix.Mkdirat(fd, "directory", 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		below, err := unix.Openat(fd, "directory", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = below
	}
	_ = unix.Close(fd)
}

// TestRemoveDeep removes a tree that is deeper than this process may open
// files, and than a path may be long.
func TestRemoveDeep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep")
	dig(t, dir, 3000)
	few(t, 12)
	if err := os.RemoveAll(dir); err == nil {
		t.Fatal("this tree needs no help to be removed")
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestRemoveAny removes trees of any shape, and nothing beside them.
func TestRemoveAny(t *testing.T) {
	top := t.TempDir()
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		beside := filepath.Join(top, fmt.Sprint(n))
		dir := filepath.Join(beside, "dir")
		dirs := []string{dir}
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(beside, "kept"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		for i := range rapid.IntRange(0, 60).Draw(t, "entries") {
			path := filepath.Join(rapid.SampledFrom(dirs).Draw(t, "in"), fmt.Sprint("e", i))
			var err error
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				err = os.WriteFile(path, nil, 0o400)
			case 1:
				err = os.Symlink(beside, path)
			default:
				err = os.Mkdir(path, 0o755)
				dirs = append(dirs, path)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadDir(beside)
		if err != nil || len(left) != 1 || left[0].Name() != "kept" {
			t.Fatalf("left: %v, %v", left, err)
		}
	})
}

// TestRemoveWhatItMay says what it could not remove, once, and removes the
// rest.
func TestRemoveWhatItMay(t *testing.T) {
	need.Root(t, "to mount something")
	dir := filepath.Join(t.TempDir(), "dir")
	mount := filepath.Join(dir, "a", "mount")
	if err := errors.Join(os.MkdirAll(mount, 0o755), os.WriteFile(filepath.Join(dir, "z"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mount, "tmpfs", 0, ""); err != nil {
		need.Skip(t, "root", "nothing can be mounted: "+err.Error())
	}
	defer func() {
		if err := errors.Join(unix.Unmount(mount, 0), Remove(dir)); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(mount, "another's"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Remove = %v, want EBUSY", err)
	}
	if _, err := os.Stat(filepath.Join(mount, "another's")); err != nil {
		t.Errorf("what is mounted was touched: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "z")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the rest is still there: %v", err)
	}
}

func BenchmarkRemove(b *testing.B) {
	for name, remove := range map[string]func(string) error{"ours": Remove, "os": os.RemoveAll} {
		b.Run(name, func(b *testing.B) {
			top := b.TempDir()
			for b.Loop() {
				b.StopTimer()
				dir := filepath.Join(top, "d")
				for i := range 100 {
					sub := filepath.Join(dir, fmt.Sprint(i), "sub")
					if err := os.MkdirAll(sub, 0o755); err != nil {
						b.Fatal(err)
					}
					for j := range 10 {
						_ = os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), nil, 0o600)
					}
				}
				b.StartTimer()
				if err := remove(dir); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
