package bench

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memory is what a process occupies, in MiB.
type memory struct {
	RSS float64 `json:"rss"`
	PSS float64 `json:"pss"` // pages shared with others count in part
}

// memoryOf adds up the memory of processes.
func memoryOf(pids ...int) (m memory, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return m, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) != 3 || f[2] != "kB" {
				continue
			}
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				return m, err
			}
			switch f[0] {
			case "Rss:":
				m.RSS += kb / 1024
			case "Pss:":
				m.PSS += kb / 1024
			}
		}
	}
	return m, nil
}

// rssOf returns the resident memory of a process in MiB, cheaply.
func rssOf(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0, fmt.Errorf("memory of process %d: %q", pid, b)
	}
	pages, err := strconv.ParseFloat(f[1], 64)
	return pages * float64(os.Getpagesize()) / mib, err
}

// cpuOf adds up the processor time of processes and of the children that they
// have waited for.
func cpuOf(pids ...int) (time.Duration, error) {
	var ticks int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("processor time of process %d: %w", pid, err)
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // the name may hold blanks
		for _, i := range []int{11, 12, 13, 14} {                      // utime, stime, cutime, cstime
			if i >= len(f) {
				return 0, fmt.Errorf("processor time of process %d: %q", pid, b)
			}
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100, nil // USER_HZ is 100 everywhere
}

// treeOf returns a process and all below it.
func treeOf(pid int) []int {
	tree := []int{pid}
	for i := 0; i < len(tree); i++ {
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", tree[i]))
		if err != nil {
			continue // it has ended
		}
		for _, t := range threads {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", tree[i], t.Name()))
			if err != nil {
				continue
			}
			for _, f := range strings.Fields(string(b)) {
				if child, err := strconv.Atoi(f); err == nil && !slices.Contains(tree, child) {
					tree = append(tree, child)
				}
			}
		}
	}
	return tree
}

// allowFiles raises the number of files that this process and its children
// may open to n, or says why not.
func allowFiles(n uint64) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	if l.Max < n {
		l.Max = n // root may
	}
	l.Cur = max(l.Cur, n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("%d open files are needed, and the limit is lower (ulimit -Hn): %w", n, err)
	}
	return nil
}

// runsHere reports whether a process was started from below dir: its id alone
// may be a stranger's by now.
func runsHere(pid int, dir string) bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && strings.HasPrefix(exe, dir+"/")
}
