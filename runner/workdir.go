package runner

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/internal/debris"
)

// removeTree removes dir and everything in it, also what a task made
// unwritable for itself. A directory that still changes gets three tries.
func removeTree(dir string) error {
	err := debris.Remove(dir)
	for try := 1; err != nil && try < 4; try++ {
		time.Sleep(time.Duration(try) * 50 * time.Millisecond)
		err = debris.Remove(dir)
	}
	return err
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
