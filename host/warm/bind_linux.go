package warm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/proc"
)

// bind makes dir appear at a path in the room. The calling thread takes a copy
// of the mount, goes into the room's mount namespace, where paths mean the
// room's, and puts it there; the thread ends with that.
func bind(b *body, root uint32, dir *os.File, at string, readOnly bool) error {
	pid := b.pid()
	if pid == 0 {
		return errors.New(errEnded)
	}
	var err error
	proc.OnThread(func() { err = bindHere(b, root, dir, at, readOnly) })
	return err
}

func bindHere(b *body, root uint32, dir *os.File, at string, readOnly bool) error {
	tree, err := unix.OpenTree(int(dir.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("copy the mount of the directory, which must be one that the pool sees too: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("secure the mount: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(b.pidfd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the room: %w", err)
	}
	// As the room's root: where the overlay is of the room's user namespace, the
	// host's has no id.
	if err := errors.Join(unix.Setfsgid(int(root)), unix.Setfsuid(int(root))); err != nil {
		return err
	}
	if err := makePoint(at); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// makePoint makes a directory to mount on.
func makePoint(at string) error {
	var st unix.Stat_t
	if unix.Stat(at, &st) == nil {
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return errors.New("something that is no directory is there")
		}
		return nil
	}
	if up := filepath.Dir(at); up != at {
		if err := makePoint(up); err != nil {
			return err
		}
	}
	if err := unix.Mkdir(at, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make %s: %w", at, err)
	}
	return nil
}
