package runner

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWorkIsUsedAgain looks at what of one run's directories the next one
// finds: the directories, when the task left them as they were, and nothing in
// them.
func TestWorkIsUsedAgain(t *testing.T) {
	// What is held open keeps its number.
	type made struct{ at [4]*os.File }
	hold := func(paths ...string) (m made) {
		for i, path := range paths {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			m.at[i] = f
		}
		return m
	}
	same := func(a, b *os.File) bool {
		x, err := a.Stat()
		y, err2 := b.Stat()
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return os.SameFile(x, y)
	}
	bot := t.TempDir()
	d, w, err := makeWork(bot, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	first := hold(w, d.run, d.out, d.temp)
	for name, spoil := range map[string]func(run string) error{
		"mode": func(run string) error { return os.Chmod(run, 0o755) },
		"attribute": func(run string) error {
			return unix.Lsetxattr(run, "user.left", []byte("behind"), 0)
		},
		"access rule": func(run string) error {
			// A default rule: user::rwx, group::---, other::rwx, in the kernel's form.
			acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x00\x00\xff\xff\xff\xff\x20\x00\x07\x00\xff\xff\xff\xff"
			return unix.Lsetxattr(run, "system.posix_acl_default", []byte(acl), 0)
		},
		"link":      func(run string) error { return replaced(run, func() error { return os.Symlink(bot, run) }) },
		"file":      func(run string) error { return replaced(run, func() error { return os.WriteFile(run, nil, 0o700) }) },
		"away":      os.Remove,
		"untouched": func(string) error { return nil },
	} {
		for _, f := range []string{filepath.Join(d.run, "a"), filepath.Join(d.out, "b"), filepath.Join(d.temp, "c"), filepath.Join(w, "d")} {
			if err := os.MkdirAll(filepath.Join(f, "x"), 0o500); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range keptFiles {
			if err := os.WriteFile(filepath.Join(w, f), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := tidyWork(w); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := spoil(d.run); err == unix.ENOTSUP {
			t.Logf("%s: this file system has none", name)
			continue
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d, w, err = makeWork(bot, nil, false); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		now := hold(w, d.run, d.out, d.temp)
		if again := same(now.at[1], first.at[1]); again != (name == "untouched") {
			t.Errorf("%s: the run directory is used again: %v", name, again)
		}
		if !same(now.at[0], first.at[0]) || !same(now.at[2], first.at[2]) || !same(now.at[3], first.at[3]) {
			t.Errorf("%s: other directories are not used again", name)
		}
		first = now
		var left []string
		_ = filepath.WalkDir(w, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if fi, err := os.Lstat(path); err != nil || fi.IsDir() || fi.Size() == 0 {
				left = append(left, strings.TrimPrefix(path, w))
			} else {
				t.Errorf("%s: %s is not empty", name, path)
			}
			return nil
		})
		if len(left) != 1+len(keptFiles)+3+1 { // w, the files, three directories, the context
			t.Errorf("%s: there are %q", name, left)
		}
		if fi, err := os.Lstat(d.run); err != nil || fi.Mode() != os.ModeDir|0o700 {
			t.Errorf("%s: the run directory is %v, %v", name, fi.Mode(), err)
		}
	}
	if _, err := os.Stat(bot); err != nil {
		t.Error("what a link pointed at is gone")
	}
}

func replaced(path string, by func() error) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return by()
}
