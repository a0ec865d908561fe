//go:build unix && !linux

package proc

import (
	"errors"
	"syscall"
	"time"
)

func forkExec(c *Cmd, fds []uintptr) (int, error) {
	attr := &syscall.ProcAttr{Env: withRace(c.Env), Dir: c.Dir, Files: fds, Sys: &syscall.SysProcAttr{Setpgid: c.NewGroup}}
	if c.User != nil {
		attr.Sys.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID}
	}
	return ForkExec(c.Path, c.Args, attr)
}

// waitEnd has no WNOWAIT everywhere: the group is killed when the process is
// gone, which the system keeps reserved while the group has members.
func waitEnd(int) {}

// KeepDescriptors keeps every descriptor above 2 that this process inherited
// from its own children.
func KeepDescriptors() {
	for fd := 3; fd < 256; fd++ {
		syscall.CloseOnExec(fd)
	}
}

// Undumpable does nothing here.
func Undumpable() {}

// Place holds the processes of one task: here its process group.
type Place struct {
	Method Method   `json:"method"`
	Group  int      `json:"group,omitempty"`
	Label  string   `json:"label,omitempty"`
	Hidden bool     `json:"hidden,omitempty"`
	Init   []string `json:"-"`
}

// Choose returns the one method of this system.
func Choose(want Method) (Method, error) {
	if want != "" && want != MethodGroup {
		return "", unknownMethod(want)
	}
	return MethodGroup, nil
}

// NewPlace returns a place for one task.
func NewPlace(m Method, name string) (*Place, error) { return Plan(m, name) }

// Plan returns a place for one task.
func Plan(m Method, _ string) (*Place, error) { return &Place{Method: m}, nil }

// PlanLimited returns a place; this system keeps no limits.
func PlanLimited(m Method, name string, limits []Limit) (*Place, error) {
	if len(limits) > 0 {
		return nil, errors.New("limits need Linux")
	}
	return Plan(m, name)
}

// StartOne is Start.
func (pl *Place) StartOne(c *Cmd) (*Process, error) { return pl.Start(c) }

// Make has nothing to make.
func (pl *Place) Make() error { return nil }

// Start starts c in its own process group.
func (pl *Place) Start(c *Cmd) (*Process, error) {
	c.NewGroup = true
	p, err := Start(c)
	if err == nil {
		pl.Group = p.Pid
	}
	return p, err
}

// Kill ends the group.
func (pl *Place) Kill(time.Duration) error {
	if pl.Group == 0 {
		return nil
	}
	err := syscall.Kill(-pl.Group, syscall.SIGKILL)
	if err == syscall.ESRCH || err == syscall.EPERM { // nobody left; macOS says EPERM for zombies
		return nil
	}
	return err
}

// Remove has nothing to remove.
func (pl *Place) Remove() error { return nil }

// SweepChildren cannot find orphans here.
func SweepChildren(time.Duration) error { return nil }

// InitMain is for namespaces, which this system does not have.
func InitMain() int { return 2 }

// Adopt does nothing here.
func Adopt() error { return nil }

// Isolate finds no isolation here.
func Isolate(string, *User) Isolation {
	return Isolation{Kind: IsolationNone, Reason: "not supported on this system"}
}

// MayExecute does not know better than the system does here.
func MayExecute(string, *User) error { return nil }

func (v *View) enter() error { return nil }

// firstThread matters where threads have views of their own, on Linux.
func firstThread() bool { return false }
