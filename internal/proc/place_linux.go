package proc

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place holds every process of one task, from NewPlace to Remove. Its exported
// fields say how to find it again: they are handed to other processes and kept
// in a file, so that whoever is left can Kill.
type Place struct {
	Method Method   `json:"method"`
	Dirs   []string `json:"dirs,omitempty"`   // cgroups made for it
	Home   []string `json:"home,omitempty"`   // of each that is of cgroup v1: where the starter's thread belongs; "" = it is of v2
	Label  string   `json:"label,omitempty"`  // subreaper: "K=V" in the environment of its processes
	Hidden bool     `json:"hidden,omitempty"` // its processes see only themselves: own PID and mount namespaces

	// Init is the command that calls InitMain; it is needed where the place has
	// a PID namespace.
	Init []string `json:"-"`

	enable []string // controllers of the unified tree that the place needs
	writes []write  // its limits
}

// Choose returns want if this process can use it, or the first method that it
// can when want is "". It tries each for real.
func Choose(want Method) (Method, error) {
	var errs []error
	for _, m := range linuxMethods {
		if want != "" && want != m {
			continue
		}
		err := try(m)
		if err == nil {
			return m, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", m, err))
	}
	if len(errs) == 0 {
		return "", unknownMethod(want)
	}
	return "", errors.Join(errs...)
}

func try(m Method) error {
	pl, err := NewPlace(m, "skep-try-"+rand.Text())
	if err != nil {
		return err
	}
	defer func() { _ = pl.Remove() }()
	if m == MethodSubreaper {
		return nil
	}
	if _, err = pl.startHere(noProgram()); isProbed(err) {
		return nil
	}
	return fmt.Errorf("start in it: %w", err)
}

// noProgram cannot be executed, for a reason that only execve gives: when it
// is given, the child had joined everything it was to join. isProbed tells.
func noProgram() *Cmd {
	return &Cmd{Path: "/" + strings.Repeat("x", 300), Args: []string{"x"}}
}

func isProbed(err error) bool { return errors.Is(err, syscall.ENAMETOOLONG) }

// NewPlace is Plan and Make in one.
func NewPlace(m Method, name string) (*Place, error) {
	pl, err := Plan(m, name)
	if err != nil {
		return nil, err
	}
	return pl, pl.Make()
}

// Plan says what a place called name, which must be new on this host, will
// consist of. Who writes that down before Make never loses one.
func Plan(m Method, name string) (*Place, error) {
	pl := &Place{Method: m}
	var homes []string
	switch m {
	case MethodCgroup2:
		own, err := ownCgroups()
		if err != nil {
			return nil, err
		}
		if own.unified == "" {
			return nil, errors.New("no cgroup2 file system")
		}
		homes = []string{own.unified}
		pl.Home = []string{""}
	case MethodCgroup1:
		own, err := ownCgroups()
		if err != nil {
			return nil, err
		}
		if own.freezer == "" {
			return nil, errors.New("no freezer hierarchy")
		}
		homes = []string{own.freezer}
		if own.pids != "" && own.pids != own.freezer {
			homes = append(homes, own.pids)
		}
		pl.Home = homes
	case MethodPIDNS, MethodSubreaper:
	default:
		return nil, unknownMethod(m)
	}
	for _, home := range homes {
		pl.Dirs = append(pl.Dirs, filepath.Join(home, name))
	}
	return pl, nil
}

// Make makes the place. It leaves nothing behind when it fails.
func (pl *Place) Make() error {
	if len(pl.enable) > 0 {
		if err := enable(filepath.Dir(pl.Dirs[0]), pl.enable); err != nil {
			return err
		}
	}
	for i, dir := range pl.Dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			pl.Dirs = pl.Dirs[:i]
			return errors.Join(err, pl.Remove())
		}
	}
	if pl.Method == MethodCgroup2 {
		if _, err := os.Stat(filepath.Join(pl.Dirs[0], "cgroup.kill")); err != nil {
			return errors.Join(errors.New("kernel without cgroup.kill (5.14)"), pl.Remove())
		}
	}
	if err := pl.limit(); err != nil {
		return errors.Join(err, pl.Remove())
	}
	return nil
}

// Start starts c as the first process of the place, in its own process group,
// killed when this process dies. One place starts one process.
func (pl *Place) Start(c *Cmd) (*Process, error) {
	c.NewGroup, c.ParentDeath = true, true
	if err := Adopt(); err != nil {
		return nil, err
	}
	if pl.Method == MethodPIDNS || pl.Hidden {
		return pl.startInit(c)
	}
	p, err := pl.startHere(c)
	if err == nil {
		ReapOrphans(p)
	}
	return p, err
}

// StartOne is Start for a program with other children besides: what is
// orphaned in the place is left to the system to take in, so that no end is
// told to the wrong one. The place must be a cgroup.
func (pl *Place) StartOne(c *Cmd) (*Process, error) {
	c.NewGroup, c.ParentDeath = true, true
	return pl.startHere(c)
}

func (pl *Place) startHere(c *Cmd) (*Process, error) {
	for i, dir := range pl.Dirs {
		if i >= len(pl.Home) || pl.Home[i] == "" {
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open cgroup %s: %w", dir, err)
			}
			defer unix.Close(fd)
			c.cgroup = fd
			continue
		}
		// cgroup v1 holds threads: the one that forks joins, its child is born
		// inside, and the thread goes home.
		for _, to := range []struct {
			dir  string
			list *[]int
		}{{dir, &c.threads}, {pl.Home[i], &c.back}} {
			fd, err := unix.Open(filepath.Join(to.dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("open cgroup %s: %w", to.dir, err)
			}
			defer unix.Close(fd)
			*to.list = append(*to.list, fd)
		}
	}
	if pl.Method == MethodPIDNS || pl.Hidden {
		c.clone |= unix.CLONE_NEWPID | unix.CLONE_NEWNS
		if os.Geteuid() != 0 {
			c.clone, c.mapped = c.clone|unix.CLONE_NEWUSER, true
		}
	}
	return Start(c)
}

// Kill ends every process of the place and returns when none is left, or with
// an error after limit. It may be called by any process, any number of times.
func (pl *Place) Kill(limit time.Duration) error {
	end := time.Now().Add(limit)
	var err error
	switch pl.Method {
	case MethodCgroup2:
		err = kill2(pl.Dirs[0], end)
	case MethodCgroup1:
		err = kill1(pl.Dirs, end)
	default: // PID 1's end, or the sweep, does it
	}
	return errors.Join(err, pl.sweep(end))
}

// Remove gives back what NewPlace made. The place must be empty.
func (pl *Place) Remove() error {
	var errs []error
	for _, dir := range pl.Dirs {
		errs = append(errs, removeCgroup(dir, time.Now().Add(busyLimit)))
	}
	return errors.Join(errs...)
}

// busyLimit is how long a killed process may keep its cgroup busy after it left
// cgroup.procs: moments, on a machine that has time for it.
const busyLimit = 5 * time.Second

// removeCgroup removes dir and the cgroups that a task made inside. What is
// busy is tried until end.
func removeCgroup(dir string, end time.Time) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			_ = removeCgroup(filepath.Join(dir, e.Name()), end)
		}
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil, err == unix.ENOENT:
			return nil
		case err != unix.EBUSY, time.Now().After(end):
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(pause)
	}
}

func kill2(dir string, end time.Time) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	// The kernel marks cgroup.events for poll when populated changes.
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.events"), os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // another was faster
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var buf [256]byte
	for {
		n, err := unix.Pread(int(f.Fd()), buf[:], 0)
		if err == unix.ENODEV {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		if strings.Contains(string(buf[:n]), "populated 0") {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("cgroup %s still has processes", dir)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		_, _ = unix.Poll(fds, int(min(left, 100*time.Millisecond).Milliseconds())+1)
	}
}

// kill1 stops forks, freezes, kills and thaws in rounds: SIGKILL reaches a
// frozen task when it is thawed.
func kill1(dirs []string, end time.Time) error {
	for {
		left := 0
		for _, dir := range dirs {
			_ = os.WriteFile(filepath.Join(dir, "pids.max"), []byte("0"), 0)
			freezeTree(dir, "FROZEN")
			left += killProcs(dir)
			freezeTree(dir, "THAWED")
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroup %s still has %d processes", dirs[0], left)
		}
		time.Sleep(2 * time.Millisecond) // a killed process needs a moment to leave the list
	}
}

func freezeTree(dir, state string) {
	if os.WriteFile(filepath.Join(dir, "freezer.state"), []byte(state), 0) != nil {
		return
	}
	for range 50 { // FREEZING until the last task stopped
		got, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		if err != nil || strings.TrimSpace(string(got)) == state {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func killProcs(dir string) (n int) {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return 0
	}
	for _, pid := range pidsIn(string(list)) {
		if pid == os.Getpid() {
			continue
		}
		n++
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			n += killProcs(filepath.Join(dir, e.Name()))
		}
	}
	return n
}
