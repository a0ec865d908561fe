package proc

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroups are the directories of the cgroups that this process is in; "" where
// the host has no such hierarchy.
type cgroups struct{ unified, freezer, pids string }

func ownCgroups() (cgroups, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return cgroups{}, err
	}
	return parseCgroups(string(mounts), string(own)), nil
}

// parseCgroups combines where hierarchies are mounted with where we are in
// each. proc_pid_mountinfo(5), cgroups(7).
func parseCgroups(mountinfo, own string) (c cgroups) {
	paths := map[string]string{} // controller, or "" for the unified tree
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, name := range strings.Split(f[1], ",") {
			paths[name] = f[2]
		}
	}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(tail) < 3 {
			continue
		}
		root, point, kind, options := unescape(f[3]), unescape(f[4]), tail[0], strings.Split(tail[2], ",")
		set := func(to *string, name string) {
			path, in := paths[name]
			if *to == "" && in {
				*to = below(point, root, path)
			}
		}
		switch {
		case kind == "cgroup2":
			set(&c.unified, "")
		case kind == "cgroup" && slices.Contains(options, "freezer"):
			set(&c.freezer, "freezer")
		case kind == "cgroup" && slices.Contains(options, "pids"):
			set(&c.pids, "pids")
		}
	}
	return c
}

// below returns where path of the hierarchy is found when root is mounted at
// point. Outside of root only the mount point itself can be used.
func below(point, root, path string) string {
	rel, err := filepath.Rel(root, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return point
	}
	return filepath.Join(point, rel)
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// pidsIn reads a list of process ids; a 0 is a process of another namespace.
func pidsIn(s string) (pids []int) {
	for _, f := range strings.Fields(s) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}
