package debris

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestRemove removes a tree of directories that their owner may not read or
// write; as root, who may do everything, in a process of another user.
func TestRemove(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("directories have no such modes on Windows")
	}
	if os.Geteuid() == 0 {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		dropPrivileges(t)
	}
	top, err := os.MkdirTemp("/tmp", "debris") //nolint:usetesting // of the user that we are now
	if err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(top, "outside")
	dir := filepath.Join(top, "dir")
	for _, d := range []string{outside, dir, filepath.Join(dir, "a"), filepath.Join(dir, "a", "b"), filepath.Join(dir, "c")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "a", "b", "f"), nil, 0o400),
		os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600),
		os.Symlink(outside, filepath.Join(dir, "c", "link")),
		os.Chmod(filepath.Join(dir, "a", "b"), 0o555), os.Chmod(filepath.Join(dir, "a"), 0), os.Chmod(filepath.Join(dir, "c"), 0o500), os.Chmod(outside, 0o500),
	); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err == nil {
		t.Fatal("this tree needs no help to be removed")
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
	if fi, err := os.Stat(outside); err != nil || fi.Mode().Perm() != 0o500 {
		t.Errorf("what a link pointed at was changed: %v %v", fi, err)
	}
	if err := Remove(dir); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	if err := Remove(top); err != nil {
		t.Error(err)
	}
}
