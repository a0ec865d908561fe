package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

type write struct {
	path, value string
	optional    bool // the file may be missing
}

// leaf is the cgroup below our own into which this process moves to let the
// others in there have controllers: a cgroup of v2 has processes or gives
// controllers to its children, not both. cgroups(7), "no internal processes".
const leaf = "skep-self"

// moves is held while this process's cgroup is looked at or changed.
var moves sync.Mutex

// PlanLimited is Plan for a cgroup with limits. A limit that no hierarchy of
// this host can keep is an error.
func PlanLimited(m Method, name string, limits []Limit) (*Place, error) {
	if m != MethodCgroup2 && m != MethodCgroup1 {
		return nil, fmt.Errorf("limits need a cgroup; %s is none", m)
	}
	moves.Lock()
	defer moves.Unlock()
	own, _, err := ownHierarchies()
	if err != nil {
		return nil, err
	}
	return planLimited(m, name, limits, homes(own))
}

// homes are the cgroups below which this process makes others: where it is, or
// was before it moved into a leaf.
func homes(own map[string]string) map[string]string {
	if dir, ok := own[unified]; ok && filepath.Base(dir) == leaf {
		own[unified] = filepath.Dir(dir)
	}
	return own
}

// nameIn2 is what cgroup v2 calls a controller of v1.
func nameIn2(controller string) string {
	if controller == "blkio" {
		return "io"
	}
	return controller
}

// settle says which files keep limits. at returns the cgroup that a controller
// limits, "" for none, and whether that is of cgroup v2.
func settle(limits []Limit, at func(l Limit) (dir string, v2 bool)) (writes []write, err error) {
	for _, l := range limits {
		dir, v2 := at(l)
		settings := l.V1
		if v2 {
			settings = l.V2
		}
		switch {
		case dir == "":
			return nil, fmt.Errorf("this host has no %s controller for the limits asked for", l.Controller)
		case len(settings) == 0:
			return nil, fmt.Errorf("this host's version of the %s controller cannot keep a limit asked for", l.Controller)
		}
		for _, s := range settings {
			writes = append(writes, write{filepath.Join(dir, s.File), s.Value, s.Optional})
		}
	}
	return writes, nil
}

func planLimited(m Method, name string, limits []Limit, own map[string]string) (*Place, error) {
	pl := &Place{Method: m}
	add := func(home string, v1 bool) string {
		dir := filepath.Join(home, name)
		if slices.Contains(pl.Dirs, dir) {
			return dir
		}
		pl.Dirs = append(pl.Dirs, dir)
		if !v1 {
			home = ""
		}
		pl.Home = append(pl.Home, home)
		return dir
	}
	switch {
	case m == MethodCgroup2 && own[unified] == "":
		return nil, errors.New("no cgroup2 file system")
	case m == MethodCgroup1 && own["freezer"] == "":
		return nil, errors.New("no freezer hierarchy")
	case m == MethodCgroup2:
		add(own[unified], false)
	default:
		add(own["freezer"], true)
		if own["pids"] != "" {
			add(own["pids"], true)
		}
	}
	var in2 []string // controllers of the unified tree
	if m == MethodCgroup2 {
		text, _ := os.ReadFile(filepath.Join(own[unified], "cgroup.controllers"))
		in2 = strings.Fields(string(text))
	}
	limits = slices.Clone(limits)
	for i, l := range limits {
		if home := own[l.Controller]; l.Controller == "cpuset" && home != "" && len(l.V1) > 0 { // a new one is empty, and nothing can join it
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				if !slices.ContainsFunc(l.V1, func(s Setting) bool { return s.File == f }) {
					text, _ := os.ReadFile(filepath.Join(home, f))
					limits[i].V1 = append(slices.Clip(limits[i].V1), Setting{File: f, Value: strings.TrimSpace(string(text))})
				}
			}
		}
	}
	var err error
	pl.writes, err = settle(limits, func(l Limit) (dir string, v2 bool) {
		switch home, name2 := own[l.Controller], nameIn2(l.Controller); {
		case home != "" && len(l.V1) == 0: // said of the hierarchy, which gets no cgroup for that
			return home, false
		case home != "":
			return add(home, true), false
		case slices.Contains(in2, name2):
			if !slices.Contains(pl.enable, name2) {
				pl.enable = append(pl.enable, name2)
			}
			return pl.Dirs[0], true
		}
		return "", false
	})
	if err != nil {
		return nil, err
	}
	return pl, nil
}

// limit writes the limits of a place that was made.
func (pl *Place) limit() error { return writeAll(pl.writes) }

func writeAll(writes []write) error {
	for _, w := range writes {
		f, err := os.OpenFile(w.path, os.O_WRONLY, 0) // never made: a file that is not there is a limit that is not kept
		if w.optional && errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("limit: %w", err)
		}
		_, err = f.WriteString(w.value)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("limit %q: %w", w.value, err)
		}
	}
	return nil
}

// enable gives the children of a cgroup of v2 these controllers. Where that
// needs it, our processes in there move into a leaf of it.
func enable(home string, controllers []string) error {
	moves.Lock()
	defer moves.Unlock()
	control := filepath.Join(home, "cgroup.subtree_control")
	text, err := os.ReadFile(control)
	if err != nil {
		return fmt.Errorf("controllers: %w", err)
	}
	have := strings.Fields(string(text))
	for _, c := range controllers {
		if slices.Contains(have, c) {
			continue
		}
		err := os.WriteFile(control, []byte("+"+c), 0)
		if errors.Is(err, unix.EBUSY) {
			if err = vacate(home); err == nil {
				err = os.WriteFile(control, []byte("+"+c), 0)
			}
		}
		if err != nil {
			return fmt.Errorf("enable the %s controller below %s; a service needs Delegate=yes: %w", c, home, err)
		}
	}
	return nil
}

// vacate moves the processes of a cgroup of ours into its leaf.
func vacate(home string) error {
	dir := filepath.Join(home, leaf)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	text, err := os.ReadFile(filepath.Join(home, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, pid := range pidsIn(string(text)) {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
