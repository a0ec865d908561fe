package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/internal/need"
)

// fakeGroup makes a directory that looks like a cgroup with these files.
func fakeGroup(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// What a host with cgroups of version 2 only would be told, written to files:
// the kernel of this machine may have none of the controllers there.
func TestLimitsInTheUnifiedTree(t *testing.T) {
	home := filepath.Join(t.TempDir(), "unified")
	fakeGroup(t, home, map[string]string{"cgroup.controllers": "cpu io memory pids\n", "cgroup.subtree_control": "pids\n"})
	limits := []Limit{
		{Controller: "memory", V1: []Setting{{File: "memory.limit_in_bytes", Value: "1"}}, V2: []Setting{{File: "memory.max", Value: "1048576"}, {File: "memory.swap.max", Value: "0"}}},
		{Controller: "blkio", V2: []Setting{{File: "io.max", Value: "8:0 rbps=1000"}}},
		{Controller: "pids", V2: []Setting{{File: "pids.max", Value: "10"}}},
	}
	pl, err := planLimited(MethodCgroup2, "bot", limits, homes(map[string]string{unified: filepath.Join(home, leaf)}))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(home, "bot")
	if d := cmp.Diff([]string{dir}, pl.Dirs); d != "" {
		t.Errorf("directories (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"memory", "io", "pids"}, pl.enable); d != "" {
		t.Errorf("controllers (-want +got):\n%s", d)
	}
	fakeGroup(t, dir, map[string]string{"memory.max": "", "memory.swap.max": "", "io.max": "", "pids.max": ""})
	if err := pl.limit(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "1048576", "memory.swap.max": "0", "io.max": "8:0 rbps=1000", "pids.max": "10"} {
		if got, _ := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if err := os.Remove(filepath.Join(dir, "io.max")); err != nil {
		t.Fatal(err)
	}
	if err := pl.limit(); err == nil {
		t.Error("a limit that is kept by no file was accepted")
	}
	if err := enable(home, pl.enable); err != nil { // each is written; the last stays in a file that is none
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(home, "cgroup.subtree_control")); string(got) != "+io" {
		t.Errorf("subtree_control = %q", got)
	}
}

func TestProcessesMoveIntoTheLeaf(t *testing.T) {
	home := t.TempDir()
	fakeGroup(t, home, map[string]string{"cgroup.procs": "17\n42\n"})
	fakeGroup(t, filepath.Join(home, leaf), map[string]string{"cgroup.procs": ""})
	if err := vacate(home); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(home, leaf, "cgroup.procs")); string(got) != "42" {
		t.Errorf("moved %q last, want 42", got)
	}
}

func TestLimitsThatNobodyKeeps(t *testing.T) {
	home := t.TempDir()
	fakeGroup(t, home, map[string]string{"cgroup.controllers": "pids\n"})
	own := map[string]string{unified: home, "cpu": home}
	for name, l := range map[string]Limit{
		"no controller": {Controller: "memory", V2: []Setting{{File: "memory.max", Value: "1"}}},
		"not in v2":     {Controller: "pids", V1: []Setting{{File: "pids.max", Value: "1"}}},
		"not in v1":     {Controller: "cpu", V2: []Setting{{File: "cpu.max", Value: "1"}}},
	} {
		if pl, err := planLimited(MethodCgroup2, "bot", []Limit{l}, own); err == nil {
			t.Errorf("%s: planned %+v", name, pl)
		}
	}
	if _, err := PlanLimited(MethodSubreaper, "bot", nil); err == nil {
		t.Error("a place that is no cgroup was planned")
	}
}

// A place with limits on the real kernel: the process is born inside, all that
// it forks dies with it, and nothing is left.
func TestBornLimited(t *testing.T) {
	method, err := Choose("")
	if err != nil || method != MethodCgroup2 && method != MethodCgroup1 {
		need.Skip(t, "cgroup", fmt.Sprintf("the method is %s, %v", method, err))
	}
	limits := []Limit{{Controller: "pids", V1: []Setting{{File: "pids.max", Value: "20"}}, V2: []Setting{{File: "pids.max", Value: "20"}}}}
	pl, err := PlanLimited(method, fmt.Sprintf("skep-limited-%d", os.Getpid()), limits)
	if err != nil {
		t.Skip(err)
	}
	if err := pl.Make(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pl.Remove(); err != nil {
			t.Error(err)
		}
		for _, dir := range pl.Dirs {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is left", dir)
			}
		}
	}()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := pl.StartOne(&Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", "cat /proc/self/cgroup; setsid sleep 1000 & echo; exec sleep 1000"}, Files: []*os.File{nil, w}, Env: []string{"PATH=/usr/bin:/bin"}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16<<10)
	var said string
	for !strings.Contains(said, "\n\n") {
		n, err := r.Read(buf)
		if said += string(buf[:n]); err != nil {
			break
		}
	}
	for _, dir := range pl.Dirs {
		if !strings.Contains(said, filepath.Base(dir)) {
			t.Errorf("the process was born in\n%s, not in %s", said, dir)
		}
	}
	if err := pl.Kill(10 * time.Second); err != nil {
		t.Error(err)
	}
	p.Wait()
}

// A group on a host with cgroups of version 2 only, whose controllers its home
// has to be told to give.
func TestGroupInTheUnifiedTree(t *testing.T) {
	home := filepath.Join(t.TempDir(), "unified")
	fakeGroup(t, home, map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n", "cgroup.subtree_control": ""})
	for _, own := range []string{home, filepath.Join(home, leaf)} { // before and after this process made room
		g, err := planGroup("room", homes(map[string]string{unified: own}))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(map[string]string{unified: filepath.Join(home, "room")}, g.Dirs); d != "" {
			t.Errorf("from %s (-want +got):\n%s", own, d)
		}
	}
	g := &Group{Dirs: map[string]string{unified: filepath.Join(home, "room")}}
	if err := g.Make(); err != nil || g.unable != nil {
		t.Fatal(err, g.unable)
	}
	if got, _ := os.ReadFile(filepath.Join(home, "cgroup.subtree_control")); string(got) != "+pids" { // the last of the three
		t.Errorf("subtree_control = %q", got)
	}
	limits := Limits{Memory: 1 << 20, Processes: 10, MilliCPU: 1500}
	if err := g.Limit(limits); err == nil {
		t.Error("limits that no file keeps were accepted")
	}
	fakeGroup(t, g.Dirs[unified], map[string]string{"memory.max": "", "pids.max": "", "cpu.max": ""}) // no swap on this host
	if err := g.Limit(limits); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"memory.max": "1048576", "pids.max": "10", "cpu.max": "150000 100000"} {
		if got, _ := os.ReadFile(filepath.Join(g.Dirs[unified], name)); string(got) != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if err := g.Limit(Limits{}); err != nil {
		t.Error(err)
	}
}

// A home that gives no controllers says so when a limit is asked for.
func TestGroupWithoutControllers(t *testing.T) {
	home := filepath.Join(t.TempDir(), "unified")
	fakeGroup(t, home, map[string]string{"cgroup.controllers": "memory\n"}) // no subtree_control: not ours
	g, err := planGroup("room", map[string]string{unified: home})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Make(); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(Limits{Memory: 1}); err == nil || !strings.Contains(err.Error(), "controllers") {
		t.Errorf("Limit = %v", err)
	}
	if _, err := planGroup("room", map[string]string{unified: t.TempDir()}); err == nil {
		t.Error("planned where nothing can be limited")
	}
}
