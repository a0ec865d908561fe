package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// lookup finds the executable of argument 0 as the task would: with a
// separator as given, relative to cwd; without one in the task's PATH, whose
// relative entries are below cwd too. spec bot.md §5.6.
func lookup(arg, cwd, path string) (string, error) {
	arg = filepath.FromSlash(arg)
	if strings.ContainsRune(arg, filepath.Separator) {
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(cwd, arg)
		}
		for _, name := range withExtensions(arg) {
			if err := executable(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
				return name, err
			}
		}
		return "", fmt.Errorf("%s does not exist", arg)
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
			err := executable(name)
			if err == nil {
				return name, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
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

func executable(name string) error {
	fi, err := os.Stat(name)
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return fmt.Errorf("%s is a directory", name)
	case runtime.GOOS != "windows" && fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not executable", name)
	}
	return nil
}
