package proc

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is a cgroup of one name in every hierarchy that can hold or limit
// processes. Unlike a Place it takes in processes that others have started.
// It says how to find it again and may be written down before Make.
type Group struct {
	Dirs map[string]string `json:"dirs"` // by controller; "" = the unified hierarchy

	unable error // why its home gives it no controllers
}

// groupControllers are what a Group limits with, and the freezer, which finds
// its processes.
var groupControllers = []string{"freezer", "pids", "memory", "cpu"}

// PlanGroup says where a group called name will be: below the cgroups that
// this process is in.
func PlanGroup(name string) (*Group, error) {
	moves.Lock()
	defer moves.Unlock()
	own, _, err := ownHierarchies()
	if err != nil {
		return nil, err
	}
	return planGroup(name, homes(own))
}

func planGroup(name string, own map[string]string) (*Group, error) {
	g := &Group{Dirs: map[string]string{}}
	for controller, dir := range own {
		if slices.Contains(groupControllers, controller) {
			g.Dirs[controller] = filepath.Join(dir, name)
		} else if controller == unified && len(able(dir)) > 0 {
			g.Dirs[unified] = filepath.Join(dir, name)
		}
	}
	if len(g.Dirs) == 0 {
		return nil, errors.New("no cgroup hierarchy to limit processes with")
	}
	return g, nil
}

// able are the controllers that a cgroup of v2 may give to its children, of
// those that a Group limits with.
func able(home string) []string {
	text, _ := os.ReadFile(filepath.Join(home, "cgroup.controllers"))
	return slices.DeleteFunc(strings.Fields(string(text)), func(c string) bool { return !slices.Contains(groupControllers, c) })
}

// Make makes the group. It may be repeated.
func (g *Group) Make() error {
	for controller, dir := range g.Dirs {
		if controller == unified {
			home := filepath.Dir(dir)
			g.unable = enable(home, able(home)) // Limit tells; without limits it does no harm
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// Take moves process pid and all its threads into the group; what it starts
// from now on is born there.
func (g *Group) Take(pid int) error {
	for _, dir := range g.Dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// Limit sets limits. One that is 0 stays as it is; one that this host has no
// controller for is an error.
func (g *Group) Limit(l Limits) error {
	writes, err := settle(l.list(), func(l Limit) (dir string, v2 bool) {
		if dir := g.Dirs[l.Controller]; dir != "" {
			return dir, false
		}
		return g.Dirs[unified], true
	})
	if err != nil || len(writes) == 0 {
		return err
	}
	if err := writeAll(writes); err != nil {
		return errors.Join(err, g.unable)
	}
	return nil
}

// Remove kills what is left in the group and removes it, or says after limit
// what it could not. It may be repeated, and called for what was never made.
func (g *Group) Remove(limit time.Duration) error {
	end := time.Now().Add(limit)
	for {
		left := 0
		for _, dir := range g.Dirs {
			left += killProcs(dir)
		}
		if left == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroup %s still has %d processes", slices.Sorted(maps.Values(g.Dirs))[0], left)
		}
		time.Sleep(2 * time.Millisecond) // a killed process needs a moment to leave the list
	}
	var errs []error
	for _, dir := range g.Dirs {
		errs = append(errs, removeCgroup(dir, time.Now().Add(busyLimit)))
	}
	return errors.Join(errs...)
}

// RemoveCgroups removes cgroups called name in every hierarchy, at its root
// and below ours, with what still runs in them: a container runtime's that was
// killed while it made them.
func RemoveCgroups(name string, limit time.Duration) error {
	own, mounts, err := ownHierarchies()
	if err != nil {
		return err
	}
	g := &Group{Dirs: map[string]string{}}
	for controller, dir := range own {
		g.Dirs[controller] = filepath.Join(dir, name)
	}
	if dir, ok := homes(own)[unified]; ok { // made before this process moved into the leaf
		g.Dirs["home"] = filepath.Join(dir, name)
	}
	for line := range strings.Lines(mounts) {
		before, after, ok := strings.Cut(line, " - ")
		if f := strings.Fields(before); ok && len(f) > 4 && strings.HasPrefix(after, "cgroup") {
			g.Dirs["at "+f[4]] = filepath.Join(unescape(f[4]), name)
		}
	}
	return g.Remove(limit)
}

// HybridCgroups returns the mount point of a cgroup v2 tree that has
// controllers beside v1 ones, which some container runtimes refuse to see, or
// "".
func HybridCgroups() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	point, v1 := "", false
	for line := range strings.Lines(string(mounts)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		switch {
		case !ok || len(f) < 5:
		case strings.HasPrefix(after, "cgroup2 "):
			point = unescape(f[4])
		case strings.HasPrefix(after, "cgroup "):
			v1 = true
		}
	}
	if !v1 {
		return ""
	}
	return point
}

// AwaitEnd returns when the process of pidfd has ended, or after limit with an
// error; the processes of its PID namespace have ended then, if it is its
// first.
func AwaitEnd(pidfd int, limit time.Duration) error {
	end := time.Now().Add(limit)
	for {
		left := time.Until(end)
		if left < 0 {
			return errors.New("it has not ended")
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || err != nil && err != unix.EINTR {
			return err
		}
	}
}
