package launch

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What keeps a bot from getting its signal.
var (
	errNoBot   = errors.New("no process holds the bot's lock file") // it starts, or has ended
	errUnknown = errors.New("the bot's main process is not known for sure")
)

// lockPath is where a bot's lock file lies in its slot's directory; the whole
// path is the bot's to write. spec host.md §1.5.
const lockPath = "swarming/swarming.lck"

// signalBot sends sig to the main process of the bot in the container whose
// first process is init, and to no other: the process that the lock file in dir
// names, when it is in that container and holds that file's lock. Nothing is
// started in the container. proc is "/proc". promise D2.
func signalBot(proc, dir string, init int, sig unix.Signal) error {
	pid, err := findBot(proc, dir, init)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnknown, err)
	}
	defer unix.Close(fd)
	// From here on the id stays this process: is it still the one?
	again, err := findBot(proc, dir, init)
	if err != nil {
		return err
	}
	if again != pid {
		return fmt.Errorf("%w: it changed while it was looked at", errUnknown)
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("signal bot: %w", err)
	}
	return nil
}

// findBot returns the host's id of the bot's main process.
func findBot(proc, dir string, init int) (int, error) {
	root, err := os.OpenRoot(dir) // the bot may have put links there
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errNoBot
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	}
	defer root.Close()
	f, err := root.OpenFile(lockPath, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a pipe
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errNoBot
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	}
	defer f.Close()
	var lock unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &lock); err != nil || lock.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, fmt.Errorf("%w: the lock file is no file", errUnknown)
	}
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	}
	inner, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 31)
	if err != nil || inner == 0 {
		return 0, fmt.Errorf("%w: the lock file names no process", errUnknown)
	}
	pid, err := insider(proc, init, int(inner))
	if err != nil {
		return 0, err
	}
	held, err := holds(proc, pid, lock)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	case !held:
		return 0, fmt.Errorf("%w: process %d does not hold the lock", errNoBot, inner)
	}
	return pid, nil
}

// insider returns the host's id of the process that is inner in the pid
// namespace of init.
func insider(proc string, init, inner int) (int, error) {
	space, err := os.Readlink(filepath.Join(proc, strconv.Itoa(init), "ns/pid"))
	if init <= 0 || err != nil {
		return 0, fmt.Errorf("%w: the container's first process is gone", errUnknown)
	}
	if own, err := os.Readlink(filepath.Join(proc, "self/ns/pid")); err == nil && own == space {
		return 0, fmt.Errorf("%w: the container has no process ids of its own", errUnknown)
	}
	d, err := os.Open(proc)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errUnknown, err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(proc, name, "ns/pid")); err != nil || ns != space {
			continue
		}
		if innermost(filepath.Join(proc, name, "status")) == inner {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%w: process %d is not in the container", errNoBot, inner)
}

// innermost is a process's id in its own namespace, the last of NSpid; 0 when
// it is not known.
func innermost(status string) int {
	f, err := os.Open(status)
	if err != nil {
		return 0
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 64<<10))
	for lines.Scan() {
		if ids, ok := bytes.CutPrefix(lines.Bytes(), []byte("NSpid:")); ok {
			fields := bytes.Fields(ids)
			if len(fields) < 2 {
				return 0
			}
			n, _ := strconv.Atoi(string(fields[len(fields)-1]))
			return n
		}
	}
	return 0
}

// holds says whether an open file of process pid is the lock file, with a flock
// on it. Device numbers of locks differ from those of files on some file
// systems, so that the open file is compared and not the number.
func holds(proc string, pid int, lock unix.Stat_t) (bool, error) {
	fds := filepath.Join(proc, strconv.Itoa(pid), "fd")
	d, err := os.Open(fds)
	if err != nil {
		return false, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(fds, name), &st) != nil || st.Dev != lock.Dev || st.Ino != lock.Ino {
			continue
		}
		info, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "fdinfo", name))
		if err != nil {
			return false, err
		}
		for line := range bytes.Lines(info) {
			if f := strings.Fields(string(line)); len(f) >= 5 && f[0] == "lock:" && f[2] == "FLOCK" && f[4] == "WRITE" {
				return true, nil
			}
		}
	}
	return false, nil
}
