package runner

import (
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
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

// workDir is the work directory in the bot's, runDir the run directory in that.
const (
	workDir = "w"
	runDir  = "ir"
)

// keptFiles in w are our own. Between two tasks they are empty.
var keptFiles = []string{recordFile, manifestFile, resultFile}

// A work directory is emptied after a task, not removed. Making and deleting a
// dozen directories and files for each is up to a quarter of what a short task
// costs a bot where a file system looks at all that was deleted lately before it
// makes something new, as ext4 does without a journal.

// tidyWork removes what is in a work directory after a run, but for what is
// ours and empty, or can be emptied.
func tidyWork(w string) error {
	if err := cache.Release(filepath.Join(w, runDir)); err != nil {
		return err
	}
	entries, err := os.ReadDir(w)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(w, e.Name())
		switch {
		case slices.Contains(keptFiles, e.Name()) && isPrivate(e):
			err = os.Truncate(path, 0)
		case e.IsDir() && isRunDir(e.Name()):
			err = emptyTree(path)
		default:
			err = removeTree(path)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// isPrivate reports whether a file is as we make ours.
func isPrivate(e os.DirEntry) bool {
	fi, err := e.Info()
	return err == nil && (fi.Mode() == 0o600 || runtime.GOOS == "windows" && fi.Mode().IsRegular())
}

func isRunDir(name string) bool {
	return name == runDir || len(name) > 2 && (strings.HasPrefix(name, "io") || strings.HasPrefix(name, "it"))
}

// emptyTree removes what is in dir, and dir too when that cannot be done. Of a
// home in it, it removes what is in that.
func emptyTree(dir string) error {
	if fi, err := os.Lstat(dir); err != nil || !fi.IsDir() {
		return removeTree(dir)
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if e.IsDir() && e.Name() == homeDir {
			err = errors.Join(err, emptyTree(path))
		} else {
			err = errors.Join(err, debris.Remove(path))
		}
	}
	if err != nil {
		return removeTree(dir)
	}
	return nil
}

// makeWork makes <bot>/w ready for a run of the task's user u, or w<random>
// when something in w cannot be removed. Others may pass through to the task's
// own directories in it. tidy says that w is as tidyWork left it. bot_main does it, which has nothing else to do while
// the processes of a run come up. spec bot.md §5.2.
func makeWork(botDir string, u *proc.User, tidy bool) (dirs, string, error) {
	w := filepath.Join(botDir, workDir)
	if asMade(w, 0o711, nil) && (tidy || tidyWork(w) == nil) {
		if d, err := makeRunDirs(w, u); err == nil {
			return d, w, nil
		}
	}
	err := removeWork(w)
	if err == nil {
		err = os.Mkdir(w, 0o711)
	}
	if err != nil {
		var terr error
		if w, terr = os.MkdirTemp(botDir, "w"); terr != nil {
			return dirs{}, "", errors.Join(err, terr)
		}
	}
	if err := os.Chmod(w, 0o711); err != nil { // whatever the umask
		return dirs{}, "", err
	}
	d, err := makeRunDirs(w, u)
	return d, w, err
}

// makeRunDirs makes in the work directory w what every run finds there. What
// an earlier one left as it was made is used again, under another name where
// names are not fixed.
func makeRunDirs(w string, u *proc.User) (d dirs, err error) {
	d.run = filepath.Join(w, runDir)
	if err = makeRunDir(d.run, d.run, u); err != nil {
		return d, err
	}
	if d.out, err = makeRandomDir(w, "io", u); err != nil {
		return d, err
	}
	if d.temp, err = makeRandomDir(w, "it", u); err != nil {
		return d, err
	}
	d = dirsOf(&setup{Dir: w, Out: d.out, Temp: d.temp, User: u})
	if d.home != "" {
		if err = makeRunDir(d.home, d.home, u); err != nil {
			return d, err
		}
	}
	if err = os.WriteFile(d.context, nil, 0o600); err != nil {
		return d, err
	}
	return d, ownedBy(u, d.context)
}

// makeRandomDir makes a directory of a name that begins with prefix in w, of
// one that is there if it can.
func makeRandomDir(w, prefix string, u *proc.User) (string, error) {
	path := filepath.Join(w, prefix+strings.ToLower(rand.Text()[:10]))
	entries, err := os.ReadDir(w)
	if err != nil {
		return "", err
	}
	old := path
	for _, e := range entries {
		if isRunDir(e.Name()) && strings.HasPrefix(e.Name(), prefix) {
			old = filepath.Join(w, e.Name())
		}
	}
	return path, makeRunDir(path, old, u)
}

// makeRunDir makes a directory for u, of old if it is as such a directory is
// made.
func makeRunDir(path, old string, u *proc.User) error {
	if asMade(old, 0o700, u) {
		if path == old {
			return nil
		}
		return os.Rename(old, path)
	}
	if err := removeTree(old); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	return ownedBy(u, path)
}

// homeDir is what a task's user has for a home, in the temporary directory.
const homeDir = "home"

// dirsOf returns what makeRunDirs made.
func dirsOf(s *setup) dirs {
	d := dirs{
		run: filepath.Join(s.Dir, runDir), out: s.Out, temp: s.Temp,
		context: filepath.Join(s.Temp, "luci_ctx."+filepath.Base(s.Temp)[2:]+".json"),
		botFile: filepath.Join(s.Temp, "bot_file.json"),
	}
	if s.User != nil {
		d.home = filepath.Join(s.Temp, homeDir)
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
