package proc

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroups are the directories of the cgroups that this process is in; "" where
// the host has no such hierarchy.
type cgroups struct{ unified, freezer, pids string }

func ownCgroups() (cgroups, error) {
	own, _, err := ownHierarchies()
	return cgroupsOf(own), err
}

func cgroupsOf(dirs map[string]string) cgroups {
	return cgroups{unified: dirs[unified], freezer: dirs["freezer"], pids: dirs["pids"]}
}

// unified is the name of the tree of cgroup v2 among hierarchies, which have
// those of their controllers.
const unified = ""

// ownHierarchies returns our directory in every hierarchy that is mounted, and
// the table of mounts that says so.
func ownHierarchies() (dirs map[string]string, mountinfo string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, "", err
	}
	return parseHierarchies(string(mounts), string(own)), string(mounts), nil
}

// parseHierarchies returns our directory in every hierarchy that is mounted.
// proc_pid_mountinfo(5), cgroups(7).
func parseHierarchies(mountinfo, own string) map[string]string {
	paths := map[string]string{}
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		for _, name := range strings.Split(f[1], ",") {
			paths[name] = f[2]
		}
	}
	dirs := map[string]string{}
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(tail) < 3 {
			continue
		}
		var names []string
		switch tail[0] {
		case "cgroup2":
			names = []string{unified}
		case "cgroup":
			names = strings.Split(tail[2], ",")
		}
		for _, name := range names {
			path, in := paths[name]
			if _, known := dirs[name]; in && !known {
				dirs[name] = below(unescape(f[4]), unescape(f[3]), path)
			}
		}
	}
	return dirs
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
