//go:build !linux

package debris

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Remove removes path and all below it, also directories that were made
// unwritable or unreadable for their owner. That nothing is there is fine.
func Remove(path string) error {
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() { // before it is read
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	if runtime.GOOS == "windows" {
		removeEach(path)
	}
	return os.RemoveAll(path)
}

// removeEach removes what it can by its path. os.RemoveAll deletes relative to
// open directories and by a call that Wine and some file systems do not have.
func removeEach(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if path := filepath.Join(dir, e.Name()); e.IsDir() {
			removeEach(path)
		} else {
			_ = os.Remove(path)
		}
	}
	_ = os.Remove(dir)
}
