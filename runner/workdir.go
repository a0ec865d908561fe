package runner

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/skepdev/skep/cas/cache"
)

// removeTree removes dir and everything in it, also what a task made
// unwritable for itself. A directory that still changes gets three tries.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	for try := range 3 {
		if err == nil {
			return nil
		}
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, _ error) error {
			if e != nil && e.IsDir() {
				_ = os.Chmod(path, 0o700)
			}
			return nil
		})
		if runtime.GOOS == "windows" {
			removeEach(dir)
		}
		if err = os.RemoveAll(dir); err != nil {
			time.Sleep(time.Duration(1+try) * 50 * time.Millisecond)
		}
	}
	return err
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

// removeWork removes a work directory, ending first what a killed
// run_isolated left mounted in it.
func removeWork(dir string) error {
	if err := cache.Release(filepath.Join(dir, runDir)); err != nil {
		return err
	}
	return removeTree(dir)
}

// runDir is the run directory in a work directory.
const runDir = "ir"

// makeWorkDir makes <bot>/w anew, or w<random> when something in w cannot be
// removed. Others may pass through to the task's own directories in it.
func makeWorkDir(botDir string) (string, error) {
	dir := filepath.Join(botDir, "w")
	err := removeWork(dir)
	if err == nil {
		if err = os.Mkdir(dir, 0o711); err == nil {
			return dir, os.Chmod(dir, 0o711) // whatever the umask
		}
	}
	dir, terr := os.MkdirTemp(botDir, "w")
	if terr != nil {
		return "", errors.Join(err, terr)
	}
	return dir, os.Chmod(dir, 0o711)
}
