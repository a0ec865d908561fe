package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/runner/named"
)

// placeCaches moves the task's named caches to their places below top, the
// run directory or what becomes its writable half. has tells what inputs will
// be there besides; nil = none.
func (r *isolatedRun) placeCaches(top string, has func(string) (there, dir bool)) error {
	began := time.Now()
	defer func() {
		r.res.Stats.NamedCaches = &botapi.CachesStats{Install: botapi.OperationStats{Duration: seconds(began)}}
	}()
	r.top = top
	if len(r.job.Caches) == 0 {
		return nil
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, c := range r.job.Caches {
		rel := filepath.Clean(filepath.FromSlash(c.Path))
		if !named.Valid(c.Name) || !filepath.IsLocal(rel) || rel == "." {
			return fmt.Errorf("cache %q at %q: not a place inside the run directory", c.Name, c.Path)
		}
		if in := inWay(rel, has); in != "" {
			return fmt.Errorf("cache %s: the inputs have %s", c.Name, in)
		}
		if err := makeDirs(root, filepath.Dir(rel), r.own1(root)); err != nil {
			return fmt.Errorf("cache %s: %w", c.Name, err)
		}
		to := filepath.Join(top, rel)
		err := r.named.Install(c.Name, to)
		if err == nil {
			r.installed = append(r.installed, c)
			err = r.ownTree(to)
		}
		if err != nil {
			return fmt.Errorf("cache %s: %w", c.Name, err)
		}
	}
	return nil
}

// inWay returns which part of the inputs is where rel shall be: rel itself, or
// a file in place of a directory above it.
func inWay(rel string, has func(string) (there, dir bool)) string {
	if has == nil {
		return ""
	}
	rel = filepath.ToSlash(rel)
	for i := range len(rel) {
		if rel[i] != '/' {
			continue
		}
		if there, dir := has(rel[:i]); there && !dir {
			return rel[:i]
		}
	}
	if there, _ := has(rel); there {
		return rel
	}
	return ""
}

// returnCaches keeps what the task left; a cache that cannot be kept is lost,
// and the task's result stands.
func (r *isolatedRun) returnCaches() {
	if r.res.Stats.NamedCaches == nil {
		r.res.Stats.NamedCaches = &botapi.CachesStats{}
	}
	began := time.Now()
	for _, c := range r.installed {
		path, err := realPath(r.top, c.Path)
		if err == nil {
			err = r.named.Uninstall(c.Name, path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("named cache lost", "task", r.job.TaskID, "cache", c.Name, "err", err)
		}
	}
	r.installed = nil
	r.res.Stats.NamedCaches.Uninstall.Duration = seconds(began)
}

// realPath is a path below top that no link is part of: a task may have put
// one in the place of its cache, or in its way.
func realPath(top, rel string) (string, error) {
	path := top
	for _, part := range strings.Split(filepath.Clean(filepath.FromSlash(rel)), string(filepath.Separator)) {
		path = filepath.Join(path, part)
		fi, err := os.Lstat(path)
		if err != nil {
			return "", err
		}
		if !fi.IsDir() {
			return "", fmt.Errorf("%s is no directory any more", path)
		}
	}
	return path, nil
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
