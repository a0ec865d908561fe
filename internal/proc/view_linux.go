package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// enter gives the calling thread, and so its children, the view. mount(2):
// what is opened before Hide is covered stays reachable through its
// descriptor.
func (v *View) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, point := range v.Detach {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detach %s: %w", point, err)
		}
	}
	if o := v.Overlay; o != nil {
		for _, path := range []string{o.Lower, o.Upper, o.Work} {
			if strings.ContainsAny(path, ",:\\") {
				return fmt.Errorf("%s: an overlay has no way to name a directory with ',', ':' or '\\'", path)
			}
		}
		if err := unix.Mount("overlay", o.At, "overlay", unix.MS_NODEV, "lowerdir="+o.Lower+",upperdir="+o.Upper+",workdir="+o.Work); err != nil {
			return fmt.Errorf("mount overlay at %s: %w", o.At, err)
		}
	}
	if v.Hide != "" {
		if err := v.cover(); err != nil {
			return err
		}
	}
	for _, dir := range v.Cover {
		err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_RDONLY, "mode=0755,size=4k")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	if v.Proc {
		// Where an outer container masks parts of /proc this is refused; the
		// task then sees the outer one.
		_ = unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	return nil
}

func (v *View) cover() error {
	fds := make([]int, 0, len(v.Keep))
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, path := range v.Keep {
		if rel, err := filepath.Rel(v.Hide, path); err != nil || rel == "." || strings.HasPrefix(rel, "..") {
			return fmt.Errorf("%s is not below %s", path, v.Hide)
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		fds = append(fds, fd)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("tmpfs", v.Hide, "tmpfs", flags, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("cover %s: %w", v.Hide, err)
	}
	for i, path := range v.Keep {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fds[i]), path, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", path, err)
		}
	}
	if err := unix.Mount("", v.Hide, "", flags|unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", v.Hide, err)
	}
	return nil
}
