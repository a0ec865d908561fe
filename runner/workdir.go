package runner

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/internal/proc"
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

// makeRunDirs makes in the work directory w what every run finds there, for
// the task's user u, and returns the names that are not fixed. bot_main does
// it, which has nothing else to do while the processes of a run come up.
// spec bot.md §5.2.
func makeRunDirs(w string, u *proc.User) (out, temp string, err error) {
	run := filepath.Join(w, runDir)
	if err = os.Mkdir(run, 0o700); err != nil {
		return "", "", err
	}
	if out, err = os.MkdirTemp(w, "io"); err != nil {
		return "", "", err
	}
	if temp, err = os.MkdirTemp(w, "it"); err != nil {
		return "", "", err
	}
	d := dirsOf(&setup{Dir: w, Out: out, Temp: temp, User: u})
	if d.home != "" {
		if err = os.Mkdir(d.home, 0o700); err != nil {
			return "", "", err
		}
	}
	if err = os.WriteFile(d.context, nil, 0o600); err != nil {
		return "", "", err
	}
	return out, temp, ownedBy(u, d.run, d.out, d.temp, d.home, d.context)
}

// dirsOf returns what makeRunDirs made.
func dirsOf(s *setup) dirs {
	d := dirs{
		run: filepath.Join(s.Dir, runDir), out: s.Out, temp: s.Temp,
		context: filepath.Join(s.Temp, "luci_ctx."+filepath.Base(s.Temp)[2:]+".json"),
		botFile: filepath.Join(s.Temp, "bot_file.json"),
	}
	if s.User != nil {
		d.home = filepath.Join(s.Temp, "home")
	}
	return d
}

// ownedBy gives paths to u, if there is one; "" is skipped.
func ownedBy(u *proc.User, paths ...string) error {
	if u == nil {
		return nil
	}
	for _, p := range paths {
		if p == "" {
			continue
		}
		if err := os.Lchown(p, int(u.UID), int(u.GID)); err != nil {
			return err
		}
	}
	return nil
}
