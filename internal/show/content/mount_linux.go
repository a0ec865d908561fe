package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// mountMemory mounts a file system of a few bytes at dir, which it makes. It
// takes root.
func mountMemory(dir string, bytes int64) (_ func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("skep-show", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, fmt.Sprintf("size=%d,mode=700", bytes)); err != nil {
		return nil, fmt.Errorf("mount a file system in memory: %w", err)
	}
	done := false
	return func() error {
		if done {
			return nil
		}
		done = true
		return unmount(dir)
	}, nil
}

// unmount unmounts what a process that just ended may still have open for a moment.
func unmount(dir string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// mountSharing mounts a new file system that can share blocks between files,
// in a file of its own: XFS, or btrfs where there is no XFS. It takes root and
// the programs that make them.
func mountSharing(ctx context.Context, image, at string, bytes int64) (kind string, _ func() error, err error) {
	if err := os.Mkdir(at, 0o755); err != nil {
		return "", nil, err
	}
	for _, fs := range []struct {
		kind string
		mkfs []string
	}{{"xfs", []string{"mkfs.xfs", "-q", "-f", "-m", "reflink=1"}}, {"btrfs", []string{"mkfs.btrfs", "-q", "-f"}}} {
		path, e := exec.LookPath(fs.mkfs[0])
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		f, e := os.Create(image)
		if e != nil {
			return "", nil, e
		}
		if e := errors.Join(f.Truncate(bytes), f.Close()); e != nil {
			return "", nil, e
		}
		for _, argv := range [][]string{append(append([]string{path}, fs.mkfs[1:]...), image), {"mount", "-o", "loop", "-t", fs.kind, image, at}} {
			out, e2 := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
			if e = e2; e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w: %.200s", argv[0], e, out))
				break
			}
		}
		if e == nil {
			return fs.kind, func() error { return unmount(at) }, os.Chmod(at, 0o755)
		}
	}
	return "", nil, err
}
