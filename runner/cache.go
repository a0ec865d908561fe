package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
)

// Named caches are directories below <bot>/c that are renamed into the run
// directory and back. Sizes, ages and trimming are a later issue's.

// installCaches moves the task's caches into place and returns those that it
// moved.
func (r *isolatedRun) installCaches() (done []botapi.Cache, err error) {
	if len(r.job.Caches) == 0 {
		return nil, nil
	}
	root, err := os.OpenRoot(r.dirs.run)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, c := range r.job.Caches {
		rel := filepath.FromSlash(c.Path)
		if !cacheName(c.Name) || !filepath.IsLocal(rel) || filepath.Clean(rel) == "." {
			return done, fmt.Errorf("cache %q at %q: not a place inside the run directory", c.Name, c.Path)
		}
		if err := makeDirs(root, filepath.Dir(filepath.Clean(rel)), r.own1(root)); err != nil {
			return done, fmt.Errorf("cache %q: %w", c.Name, err)
		}
		to := filepath.Join(r.dirs.run, rel)
		if _, err := os.Lstat(to); err == nil {
			return done, fmt.Errorf("cache %q: %s exists", c.Name, c.Path)
		}
		err := os.Rename(r.cacheDir(c.Name), to)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.Mkdir(to, 0o700)
		}
		if err == nil {
			err = r.ownTree(to)
		}
		if err != nil {
			return done, fmt.Errorf("cache %q: %w", c.Name, err)
		}
		done = append(done, c)
	}
	return done, nil
}

// uninstallCaches keeps what the task left; a cache that cannot be kept is
// lost, and the task's result stands.
func (r *isolatedRun) uninstallCaches(caches []botapi.Cache) {
	for _, c := range caches {
		if err := r.keepCache(c); err != nil {
			r.log.Warn("named cache lost", "task", r.job.TaskID, "cache", c.Name, "err", err)
		}
	}
}

func (r *isolatedRun) keepCache(c botapi.Cache) error {
	// The task may have put a link in its place, or in its way.
	path := r.dirs.run
	for _, part := range strings.Split(filepath.Clean(filepath.FromSlash(c.Path)), string(filepath.Separator)) {
		path = filepath.Join(path, part)
		fi, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fmt.Errorf("%s is no directory any more", path)
		}
	}
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) == 0 {
		return err // an empty one is not worth keeping
	}
	to := r.cacheDir(c.Name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return errors.Join(removeTree(to), os.Rename(path, to))
}

// ownTree gives a cache to the task's user, whole when another user left it.
func (r *isolatedRun) ownTree(dir string) error {
	if r.User == nil || proc.Owner(dir) == r.User.UID {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return r.own(path)
	})
}

func (r *isolatedRun) cacheDir(name string) string {
	return filepath.Join(r.BotDir, "c", "named", name)
}

// cacheName reports whether s is ^[a-z0-9_]{1,255}$, which is a file name.
func cacheName(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}
