package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stranger is a bot that an earlier supervisor started, held by a pidfd, so
// that its process id cannot come to mean another process.
type stranger struct {
	id int
	fd int
}

// openProcess takes hold of process pid, which must run an executable that
// lies in dir.
func openProcess(pid int, dir string) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: %s names process %d, which has ended", errHeld, LockFile, pid)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	// The check comes after the pidfd: from here on the id stays this process.
	if err := checkBot(pid, dir); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &stranger{id: pid, fd: fd}, nil
}

// checkBot makes sure that the process holds the directory's lock and runs an
// executable that lies there. A bot hides itself from other processes of its
// user, who then cannot see its executable; the command line must do.
func checkBot(pid int, dir string) error {
	if !ownsLock(pid, filepath.Join(dir, LockFile)) {
		return fmt.Errorf("%w: %s names process %d, which does not hold it", errHeld, LockFile, pid)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if errors.Is(err, fs.ErrPermission) {
		var line []byte
		line, err = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		exe, _, _ = strings.Cut(string(line), "\x00")
	}
	if err != nil {
		return err
	}
	if !within(strings.TrimSuffix(exe, " (deleted)"), dir) {
		return fmt.Errorf("%w: process %d holds %s and runs %s", errHeld, pid, LockFile, exe)
	}
	return nil
}

// ownsLock asks the kernel who holds the flock of a file. Where it does not
// tell, as in some containers, the caller's other checks must do.
func ownsLock(pid int, path string) bool {
	var st unix.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Stat(path, &st) != nil {
		return true
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	told := false
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:00:123456 0 EOF
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != inode {
			continue
		}
		if f[4] == fmt.Sprint(pid) {
			return true
		}
		told = true
	}
	return !told
}

func within(exe, dir string) bool {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	return filepath.Dir(exe) == dir
}

func (s *stranger) pid() int { return s.id }
func (s *stranger) close()   { unix.Close(s.fd) }

func (s *stranger) signal(how ending) error {
	err := unix.PidfdSendSignal(s.fd, signals[how], nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait never reports a clean end: how a process ended is known to its parent
// alone.
func (s *stranger) wait(ctx context.Context) (bool, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer r.Close()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer func() {
		if stop() {
			w.Close()
		}
	}()
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(r.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return false, fmt.Errorf("wait for process %d: %w", s.id, err)
		case fds[0].Revents != 0:
			return false, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		}
	}
}
