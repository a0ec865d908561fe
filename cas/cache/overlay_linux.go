package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/debris"
)

// overlay mounts the ready tree of p at dst; what the task writes goes to
// how.Scratch.
func (c *Cache) overlay(ctx context.Context, p *plan, dst string, how How, res *Result) (err error) {
	lower := -1
	unlock, err := c.lower(ctx, p, func(path string) (err error) {
		lower, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return failed("open", path, err)
	})
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(lower) }()
	upper, work := filepath.Join(how.Scratch, "upper"), filepath.Join(how.Scratch, "work")
	undo := sync.OnceValue(func() error {
		defer unlock()
		return Release(dst)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, undo(), debris.Remove(upper), debris.Remove(work))
		}
	}()
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	// The mounted directory has the owner and mode of the upper one.
	fi, err := os.Stat(dst)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(upper, fi.Mode().Perm()), os.Lchown(upper, how.UID, how.GID)); err != nil {
		return err
	}
	if how.Place != nil {
		if err := how.Place(upper, p.has()); err != nil {
			return &placeError{err}
		}
	}
	if err := mountOverlay(lower, upper, work, dst); err != nil {
		return fmt.Errorf("mount inputs: %w", err)
	}
	res.Top, res.Undo = upper, undo
	return nil
}

// mountOverlay names the directories by descriptors: a path may hold what has
// a meaning in the options of a mount.
func mountOverlay(lower int, upper, work, at string) error {
	opts := []string{"lowerdir=/proc/self/fd/" + strconv.Itoa(lower)}
	for _, o := range []struct{ name, path string }{{"upperdir", upper}, {"workdir", work}} {
		fd, err := unix.Open(o.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return failed("open", o.path, err)
		}
		defer func() { _ = unix.Close(fd) }()
		opts = append(opts, o.name+"=/proc/self/fd/"+strconv.Itoa(fd))
	}
	// No feature that leaves marks which another mount would stumble over.
	opts = append(opts, "index=off", "metacopy=off", "redirect_dir=off")
	return failed("mount", at, unix.Mount("overlay", at, "overlay", unix.MS_NODEV, strings.Join(opts, ",")))
}

// Release ends what is mounted at dir, and then below it, as a killed process
// leaves it. Without anything mounted at dir it does nothing.
func Release(dir string) error {
	var at, above unix.Stat_t
	if unix.Lstat(dir, &at) != nil || unix.Lstat(filepath.Dir(dir), &above) != nil || at.Dev == above.Dev {
		return nil //nolint:nilerr // nothing is there, or no mount: an overlay has a device of its own
	}
	return releaseBelow(dir)
}

func releaseBelow(dir string) error {
	for range 16 {
		points, err := mountsBelow(dir)
		if err != nil || len(points) == 0 {
			return err
		}
		for i := len(points) - 1; i >= 0; i-- { // the last was mounted last
			err := unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW)
			if err != nil { // something still looks at it: out of sight, it goes with the last
				err = unix.Unmount(points[i], unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			}
			if err != nil {
				return failed("unmount", points[i], err)
			}
		}
	}
	return fmt.Errorf("%s: something mounts there again and again", dir)
}

func mountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := unescape(f[4]); at == dir || strings.HasPrefix(at, dir+"/") {
			points = append(points, at)
		}
	}
	return points, nil
}

// unescape reads a path as mountinfo writes it: \040 for a space.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
