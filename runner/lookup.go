package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/skepdev/skep/internal/proc"
)

// lookup finds the executable of argument 0 as the task would: with a
// separator as given, relative to cwd; without one in the task's PATH, whose
// relative entries are below cwd too. may says whether a file that exists can
// be executed by the task. spec bot.md §5.6.
func lookup(arg, cwd, path string, may func(string) error) (string, error) {
	arg = filepath.FromSlash(arg)
	if strings.ContainsRune(arg, filepath.Separator) {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(cwd, arg)
		}
		var err error
		for _, name := range withExtensions(arg) {
			if err = may(name); err == nil {
				return name, nil
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s does not exist", arg)
		}
		return "", err
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		for _, name := range withExtensions(filepath.Join(dir, arg)) {
			err := may(name)
			if err == nil {
				return name, nil
			}
			if errors.Is(err, errNoProgram) {
				denied = err
			}
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("no %q in the task's PATH (%s)", arg, path)
}

func withExtensions(name string) []string {
	if runtime.GOOS == "windows" && filepath.Ext(name) == "" {
		return []string{name + ".exe", name + ".bat"}
	}
	return []string{name}
}

// errNoProgram is a file that is there but cannot be executed.
var errNoProgram = errors.New("not executable")

// mayExecute is lookup's may: below the run directory, whose parents the
// task's user need not be able to search, the file's mode counts; elsewhere
// the user's rights do too.
func (r *isolatedRun) mayExecute(name string) error {
	fi, err := os.Stat(name)
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return fmt.Errorf("%s is a directory: %w", name, errNoProgram)
	case runtime.GOOS != "windows" && fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s is %w", name, errNoProgram)
	}
	if rel, err := filepath.Rel(r.dirs.run, name); r.User == nil || err == nil && filepath.IsLocal(rel) {
		return nil
	}
	if openToAll(name) {
		return nil // asking costs a thread; execve has the last word anyway
	}
	if err := proc.MayExecute(name, r.User); err != nil {
		return fmt.Errorf("%s is %w for the task's user", name, errNoProgram)
	}
	return nil
}

// openToAll reports whether the modes alone let every stranger execute name.
func openToAll(name string) bool {
	real, err := filepath.EvalSymlinks(name)
	if err != nil {
		return false
	}
	for _, p := range []string{name, real} {
		for {
			fi, err := os.Stat(p)
			if err != nil || fi.Mode()&0o001 == 0 {
				return false
			}
			up := filepath.Dir(p)
			if up == p {
				break
			}
			p = up
		}
		if name == real {
			break
		}
	}
	return true
}
