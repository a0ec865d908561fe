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

type write struct{ path, value string }

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
	return planLimited(m, name, limits, own)
}

func planLimited(m Method, name string, limits []Limit, own map[string]string) (*Place, error) {
	if dir, ok := own[unified]; ok && filepath.Base(dir) == leaf {
		own[unified] = filepath.Dir(dir)
	}
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
	for _, l := range limits {
		home, settings, dir := own[l.Controller], l.V1, ""
		name2 := l.Controller
		if name2 == "blkio" {
			name2 = "io"
		}
		switch {
		case home != "":
			if len(settings) > 0 {
				dir = add(home, true)
			}
			if l.Controller == "cpuset" { // a new one is empty, and nothing can join it
				for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
					if !slices.ContainsFunc(settings, func(s Setting) bool { return s.File == f }) {
						text, _ := os.ReadFile(filepath.Join(home, f))
						settings = append(settings[:len(settings):len(settings)], Setting{f, strings.TrimSpace(string(text))})
					}
				}
			}
		case slices.Contains(in2, name2):
			dir, settings = pl.Dirs[0], l.V2
			if !slices.Contains(pl.enable, name2) {
				pl.enable = append(pl.enable, name2)
			}
		default:
			return nil, fmt.Errorf("this host has no %s controller for the limits asked for", l.Controller)
		}
		if len(settings) == 0 {
			return nil, fmt.Errorf("this host's version of the %s controller cannot keep a limit asked for", l.Controller)
		}
		for _, s := range settings {
			pl.writes = append(pl.writes, write{filepath.Join(dir, s.File), s.Value})
		}
	}
	return pl, nil
}

// limit writes the limits of a place that was made.
func (pl *Place) limit() error {
	for _, w := range pl.writes {
		f, err := os.OpenFile(w.path, os.O_WRONLY, 0) // never made: a file that is not there is a limit that is not kept
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
