package debris

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Remove removes path and all below it, also directories that were made
// unwritable or unreadable for their owner. That nothing is there is fine.
//
// It has two directories open at a time, however deep the tree is, and follows
// no symbolic link below the parent of path. os.RemoveAll opens one a level: a
// task could make a tree that is never removed, and that takes a bot all its
// descriptors.
func Remove(path string) error {
	path = filepath.Clean(path)
	name := filepath.Base(path)
	if name == "." || name == ".." || name == "/" {
		return &fs.PathError{Op: "remove", Path: path, Err: unix.EINVAL}
	}
	up, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(up)
	full, err := unlink(up, name, false)
	if err != nil || !full {
		return wrap(path, err)
	}
	return wrap(path, walk(up, name))
}

func wrap(path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: path, Err: err}
}

// level is a directory on the way from the top to where walk is.
type level struct {
	name  string
	id    [2]uint64 // device and inode, of the directory
	names []string  // read and not looked at; dropped where it is deep
	left  []string  // cannot be removed
}

// Bounds of what walk remembers: names of one reading, levels that keep theirs,
// and what cannot be removed in a directory before it gives up.
const (
	batch     = 512
	keepNames = 64
	maxLeft   = 1000
)

// walk removes the directory called name in up, which is not empty. It returns
// the first error, after it has removed what it could.
func walk(up int, name string) (first error) {
	failed := func(l *level, name string, err error) {
		if first == nil {
			first = fmt.Errorf("%s: %w", name, err)
		}
		l.left = append(l.left, name)
	}
	dir, id, err := enter(up, name)
	if err != nil {
		return err
	}
	way := []*level{{name: name, id: id}}
	defer func() { _ = dir.Close() }()
	for {
		here := way[len(way)-1]
		if len(here.names) == 0 {
			if len(here.left) > maxLeft {
				return first
			}
			here.names, err = read(dir, here.left)
			if err != nil && first == nil {
				first = fmt.Errorf("%s: %w", here.name, err)
			}
		}
		if len(here.names) > 0 {
			name := here.names[0]
			here.names = here.names[1:]
			full, err := unlink(int(dir.Fd()), name, true)
			switch {
			case err != nil:
				failed(here, name, err)
			case full:
				below, id, err := enter(int(dir.Fd()), name)
				if err != nil {
					failed(here, name, err)
					continue
				}
				_ = dir.Close()
				dir = below
				if len(way) > keepNames {
					here.names = nil
				}
				way = append(way, &level{name: name, id: id})
			}
			continue
		}
		// Nothing is in here any more that can be removed.
		way = way[:len(way)-1]
		if len(way) == 0 {
			if err := unix.Unlinkat(up, here.name, unix.AT_REMOVEDIR); first == nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			return first
		}
		parent := way[len(way)-1]
		above, id, err := enter(int(dir.Fd()), "..")
		if err != nil {
			return errors.Join(first, err)
		}
		_ = dir.Close()
		dir = above
		if id != parent.id { // somebody moves directories while we are in them
			return errors.Join(first, fmt.Errorf("%s was moved away", here.name))
		}
		err = unix.Unlinkat(int(dir.Fd()), here.name, unix.AT_REMOVEDIR)
		if err != nil && !errors.Is(err, unix.ENOENT) { // what is left in it, or came meanwhile
			failed(parent, here.name, err)
		}
	}
}

// unlink removes a file or an empty directory; full says that it is a
// directory that is not empty. Where the rights of dir are in the way and it is
// ours they are changed.
func unlink(dir int, name string, ours bool) (full bool, err error) {
	for range 2 {
		err = unix.Unlinkat(dir, name, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			if derr := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); derr != unix.ENOTDIR {
				err = derr
			}
		}
		switch err {
		case nil, unix.ENOENT:
			return false, nil
		case unix.ENOTEMPTY, unix.EEXIST:
			return true, nil
		case unix.EACCES:
			if !ours || open(dir) != nil {
				return false, err
			}
		default:
			return false, err
		}
	}
	return false, err
}

// enter opens a directory for reading, and makes it ours to change.
func enter(dir int, name string) (f *os.File, id [2]uint64, err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if errors.Is(err, unix.EACCES) {
		var handle int
		if handle, err = unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			if err = open(handle); err == nil {
				fd, err = unix.Openat(dir, name, flags, 0)
			}
			_ = unix.Close(handle)
		}
	}
	if err != nil {
		return nil, id, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, id, err
	}
	if st.Mode&0o700 != 0o700 && name != ".." {
		_ = open(fd) // its entries tell, if that was needed
	}
	return os.NewFile(uintptr(fd), name), [2]uint64{uint64(st.Dev), st.Ino}, nil //nolint:unconvert // of another type on some machines
}

// open gives the owner of a directory, which fd is of, all rights.
func open(fd int) error {
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o700)
}

// read returns names in a directory, but those in left. None = there is none.
func read(dir *os.File, left []string) (names []string, err error) {
	if _, err := dir.Seek(0, 0); err != nil {
		return nil, err
	}
	for len(names) == 0 {
		some, err := dir.Readdirnames(batch)
		if len(some) == 0 { // io.EOF too
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return nil, err
		}
		names = slices.DeleteFunc(some, func(n string) bool { return slices.Contains(left, n) })
	}
	return names, nil
}
