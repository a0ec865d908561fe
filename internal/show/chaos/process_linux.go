package chaos

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// process is one line of the process table. Its start time makes it differ
// from a later one with the same id.
type process struct {
	PID   int
	Start uint64 // clock ticks since boot
	Cmd   string // for people
}

func (p process) String() string { return fmt.Sprintf("%d %s", p.PID, p.Cmd) }

// readProcess returns what /proc says of pid; ok is false when it is gone or a
// zombie.
func readProcess(pid int) (p process, ok bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, false
	}
	i := bytes.LastIndexByte(b, ')') // the name before may hold anything
	if i < 0 {
		return p, false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return p, false
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return p, false
	}
	cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return p, false
	}
	return process{pid, start, strings.ReplaceAll(strings.Trim(string(cmd), "\x00"), "\x00", " ")}, true
}

// alive reports whether p, and not a later process with its id, still is.
func (p process) alive() bool {
	now, ok := readProcess(p.PID)
	return ok && now.Start == p.Start
}

// kill ends p. A process that is gone is no error.
func (p process) kill() error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %v: %w", p, err)
	}
	return nil
}

// marked returns the processes, without this one, whose command line,
// executable or working directory names root: everything that a run started
// has one of these.
func marked(root string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var out []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		p, ok := readProcess(pid)
		if !ok {
			continue
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // denied for strangers' processes
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if strings.Contains(p.Cmd, root) || strings.HasPrefix(exe, root) || strings.HasPrefix(cwd, root) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b process) int { return cmp.Compare(a.PID, b.PID) })
	return out, nil
}

// below returns the processes that descend from pid.
func below(pid int) []process {
	var out []process
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		b, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if p, ok := readProcess(child); ok {
				out = append(out, p)
			}
			out = append(out, below(child)...)
		}
	}
	return out
}

// rest stops the process that k keeps until wake is called, once or more.
func (k *keeper) rest() (wake func()) {
	p := k.process()
	if p == nil || p.Signal(syscall.SIGSTOP) != nil {
		return func() {}
	}
	return func() { _ = p.Signal(syscall.SIGCONT) }
}
