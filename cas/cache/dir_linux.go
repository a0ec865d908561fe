package cache

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// dir is an open directory. Its methods take names of single entries, and
// never follow a link: a tree cannot be left through it.
type dir struct{ fd int }

func openDir(path string) (*dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &dir{fd}, nil
}

func (d *dir) close() { _ = unix.Close(d.fd) }

func retry[T any](f func() (T, error)) (T, error) {
	for {
		v, err := f()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

func failed(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// openAt opens a file of d, never through a link.
func (d *dir) openAt(name string, flags int, perm uint32) (int, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, perm)
	})
	return fd, failed("open", name, err)
}

func (d *dir) open(name string) (*dir, error) {
	fd, err := d.openAt(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &dir{fd}, nil
}

func (d *dir) mkdir(name string, perm uint32) error {
	return failed("mkdir", name, unix.Mkdirat(d.fd, name, perm))
}

func (d *dir) chown(name string, uid, gid int) error {
	return failed("chown", name, unix.Fchownat(d.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW))
}

func (d *dir) symlink(target, name string) error {
	return failed("symlink", name, unix.Symlinkat(target, d.fd, name))
}

func (d *dir) rename(from, to string) error {
	return failed("rename", from, unix.Renameat(d.fd, from, d.fd, to))
}

func (d *dir) remove(name string) error {
	return failed("remove", name, unix.Unlinkat(d.fd, name, 0))
}

// link gives a file of d another name in to.
func (d *dir) link(name string, to *dir, as string) error {
	return failed("link", as, unix.Linkat(d.fd, name, to.fd, as, 0))
}

func (d *dir) lstat(name string) (info, error) {
	var st unix.Stat_t
	_, err := retry(func() (int, error) { return 0, unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return infoOf(&st), failed("lstat", name, err)
}

func infoOf(st *unix.Stat_t) info {
	return info{
		ino: st.Ino, size: st.Size, mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(), perm: st.Mode & 0o7777, uid: st.Uid, nlink: uint64(st.Nlink),
		regular: st.Mode&unix.S_IFMT == unix.S_IFREG, isDir: st.Mode&unix.S_IFMT == unix.S_IFDIR,
	}
}

// create makes a file for writing, which must not exist, whatever perm says of
// writing.
func (d *dir) create(name string, perm uint32) (*os.File, error) {
	fd, err := d.openAt(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (d *dir) openFile(name string) (*os.File, error) {
	fd, err := d.openAt(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// seal sets the mode of an open file, if the umask had it otherwise, and
// returns how it looks.
func seal(f *os.File, perm uint32) (info, error) { return sealFD(int(f.Fd()), f.Name(), perm) }

func sealFD(fd int, name string, perm uint32) (info, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return info{}, failed("stat", name, err)
	}
	if st.Mode&0o7777 != perm {
		if err := unix.Fchmod(fd, perm); err != nil {
			return info{}, failed("chmod", name, err)
		}
		if err := unix.Fstat(fd, &st); err != nil {
			return info{}, failed("stat", name, err)
		}
	}
	return infoOf(&st), nil
}

// writeFile makes a file with its whole content. On an error it leaves none.
func (d *dir) writeFile(name string, perm uint32, data []byte) (info, error) {
	fd, err := d.openAt(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return info{}, err
	}
	for len(data) > 0 && err == nil {
		var n int
		n, err = retry(func() (int, error) { return unix.Write(fd, data) })
		err = failed("write", name, err)
		data = data[max(n, 0):]
	}
	var i info
	if err == nil {
		i, err = sealFD(fd, name, perm)
	}
	if cerr := unix.Close(fd); err == nil {
		err = failed("close", name, cerr)
	}
	if err != nil {
		_ = d.remove(name)
	}
	return i, err
}

func (d *dir) readFile(name string) ([]byte, error) {
	f, err := d.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// copyTo writes the content of a file of d into a new file of to, sharing its
// blocks when clone is true: then a file system that cannot says so. The new
// file belongs to uid and gid unless uid is negative.
func (d *dir) copyTo(name string, to *dir, as string, perm uint32, clone bool, uid, gid int) (i info, err error) {
	from, err := d.openAt(name, unix.O_RDONLY, 0)
	if err != nil {
		return info{}, err
	}
	defer func() { _ = unix.Close(from) }()
	fd, err := to.openAt(as, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, perm)
	if err != nil {
		return info{}, err
	}
	if clone {
		err = failed("clone", as, unix.IoctlFileClone(fd, from))
	} else {
		err = copyFD(from, fd, as)
	}
	if err == nil {
		i, err = sealFD(fd, as, perm)
	}
	if err == nil && uid >= 0 {
		err = failed("chown", as, unix.Fchown(fd, uid, gid))
	}
	if cerr := unix.Close(fd); err == nil {
		err = failed("close", as, cerr)
	}
	if err != nil {
		_ = to.remove(as)
	}
	return i, err
}

func copyFD(from, to int, name string) error {
	for {
		n, err := retry(func() (int, error) { return unix.CopyFileRange(from, nil, to, nil, 1<<30, 0) })
		switch {
		case n == 0 && err == nil:
			return nil
		case err == nil:
		case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
			return copyPlain(from, to, name)
		default:
			return failed("copy", name, err)
		}
	}
}

func copyPlain(from, to int, name string) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := retry(func() (int, error) { return unix.Read(from, buf) })
		if err != nil || n == 0 {
			return failed("read", name, err)
		}
		for b := buf[:n]; len(b) > 0; {
			n, err := retry(func() (int, error) { return unix.Write(to, b) })
			if err != nil {
				return failed("write", name, err)
			}
			b = b[n:]
		}
	}
}

func isLinkLimit(err error) bool { return errors.Is(err, unix.EMLINK) }

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func freeSpace(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, failed("statfs", path, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// bootID differs after each boot of the machine.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

func isOurs(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}
