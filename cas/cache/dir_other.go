//go:build !linux

package cache

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// dir is an open directory. Its methods take names of single entries, and
// never follow a link: a tree cannot be left through it.
type dir struct{ root *os.Root }

func openDir(path string) (*dir, error) {
	r, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &dir{r}, nil
}

func (d *dir) close() { _ = d.root.Close() }

func (d *dir) open(name string) (*dir, error) {
	r, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	return &dir{r}, nil
}

func (d *dir) mkdir(name string, perm uint32) error { return d.root.Mkdir(name, fs.FileMode(perm)) }

func (d *dir) chown(name string, uid, gid int) error { return d.root.Lchown(name, uid, gid) }

func (d *dir) symlink(target, name string) error { return d.root.Symlink(target, name) }

func (d *dir) rename(from, to string) error { return d.root.Rename(from, to) }

func (d *dir) remove(name string) error { return d.root.Remove(name) }

// link gives a file of d another name in to.
func (d *dir) link(name string, to *dir, as string) error {
	return os.Link(filepath.Join(d.root.Name(), name), filepath.Join(to.root.Name(), as))
}

func (d *dir) lstat(name string) (info, error) {
	fi, err := d.root.Lstat(name)
	if err != nil {
		return info{}, err
	}
	return infoOf(fi), nil
}

// infoOf has no inode to offer; 1 says that there is a file.
func infoOf(fi fs.FileInfo) info {
	t := fi.ModTime().UnixNano()
	return info{ino: 1, size: fi.Size(), mtime: t, ctime: t, perm: uint32(fi.Mode().Perm()), regular: fi.Mode().IsRegular(), isDir: fi.IsDir(), uid: uint32(os.Geteuid()), nlink: 1}
}

// create makes a file for writing, which must not exist, whatever perm says of
// writing.
func (d *dir) create(name string, perm uint32) (*os.File, error) {
	return d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(perm))
}

func (d *dir) openFile(name string) (*os.File, error) { return d.root.Open(name) }

// seal sets the mode of an open file and returns how it looks.
func seal(f *os.File, perm uint32) (info, error) {
	_ = f.Chmod(fs.FileMode(perm)) // Windows has no mode to set
	fi, err := f.Stat()
	if err != nil {
		return info{}, err
	}
	return infoOf(fi), nil
}

// writeFile makes a file with its whole content. On an error it leaves none.
func (d *dir) writeFile(name string, perm uint32, data []byte) (info, error) {
	return d.fill(name, perm, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

func (d *dir) fill(name string, perm uint32, write func(*os.File) error) (i info, err error) {
	f, err := d.create(name, perm)
	if err != nil {
		return info{}, err
	}
	if err = write(f); err == nil {
		i, err = seal(f, perm)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = d.remove(name)
	}
	return i, err
}

func (d *dir) readFile(name string) ([]byte, error) { return d.root.ReadFile(name) }

// copyTo writes the content of a file of d into a new file of to. The new file
// belongs to uid and gid unless uid is negative.
func (d *dir) copyTo(name string, to *dir, as string, perm uint32, clone bool, uid, gid int) (info, error) {
	if clone {
		return info{}, errors.ErrUnsupported
	}
	from, err := d.root.Open(name)
	if err != nil {
		return info{}, err
	}
	defer from.Close()
	return to.fill(as, perm, func(f *os.File) error {
		if _, err := io.Copy(f, from); err != nil || uid < 0 {
			return err
		}
		return f.Chown(uid, gid)
	})
}

// A link that cannot be made is answered with a copy.
func isLinkLimit(err error) bool { return errors.As(err, new(*os.LinkError)) }

func isFull(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "no space left")
}

// freeSpace does not know, and so nothing is evicted for it.
func freeSpace(string) (int64, error) { return 1 << 62, nil }

func bootID() string { return "" }

func isOurs(fs.FileInfo) bool { return true }
