package proc

import (
	"errors"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// programErrors are what Windows says of a bad executable.
var programErrors = []error{
	windows.ERROR_FILE_NOT_FOUND, windows.ERROR_PATH_NOT_FOUND, windows.ERROR_ACCESS_DENIED, windows.ERROR_BAD_EXE_FORMAT,
	windows.ERROR_FILENAME_EXCED_RANGE, windows.ERROR_EXE_MACHINE_TYPE_MISMATCH,
}

// readNow has nothing to read: a pipe has no deadline here, and was read to its
// end.
func readNow(*os.File, []byte) int { return 0 }

func (p *Process) start(c *Cmd, files []*os.File) error {
	h, err := os.StartProcess(c.Path, c.Args, &os.ProcAttr{Dir: c.Dir, Env: withRace(c.Env), Files: files[:3], Sys: &syscall.SysProcAttr{
		CreationFlags: windows.CREATE_NEW_PROCESS_GROUP,
	}})
	if err != nil {
		return &ExecError{Path: c.Path, Err: err}
	}
	p.Pid, p.Started, p.handle = h.Pid, time.Now(), h
	go func() {
		st, err := h.Wait()
		p.mu.Lock()
		p.reaped = true
		p.mu.Unlock()
		p.status = Status{Code: -1, Err: err, Ended: time.Now()}
		if st != nil {
			p.status.Code = st.ExitCode()
		}
		close(p.done)
	}()
	return nil
}

// Terminate sends CTRL_BREAK to the process's group.
func (p *Process) Terminate() error {
	return windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.Pid))
}

// Kill ends the process.
func (p *Process) Kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return ErrGone
	}
	return p.handle.Kill()
}

// KeepDescriptors does nothing: handles are inherited by list.
func KeepDescriptors() {}

// Undumpable does nothing here.
func Undumpable() {}

// Place holds the processes of one task in a job object that ends them when
// its last handle is closed, so also when this process dies.
type Place struct {
	Method Method   `json:"method"`
	Label  string   `json:"label,omitempty"`
	Hidden bool     `json:"hidden,omitempty"`
	Init   []string `json:"-"`

	job windows.Handle
}

// Choose returns the one method of this system.
func Choose(want Method) (Method, error) {
	if want != "" && want != MethodJob {
		return "", unknownMethod(want)
	}
	return MethodJob, nil
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

// Start starts c and puts it into the job.
func (pl *Place) Start(c *Cmd) (*Process, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, err
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	if _, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info))); err != nil {
		return nil, err
	}
	pl.job = job
	p, err := Start(c)
	if err != nil {
		return nil, err
	}
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.Pid))
	if err == nil {
		err = windows.AssignProcessToJobObject(job, h)
		_ = windows.CloseHandle(h)
	}
	if err != nil {
		_ = p.Kill()
		return nil, err
	}
	return p, nil
}

// Kill ends every process of the job.
func (pl *Place) Kill(time.Duration) error {
	if pl.job == 0 {
		return nil
	}
	return windows.TerminateJobObject(pl.job, 1)
}

// Remove gives back the job object.
func (pl *Place) Remove() error {
	if pl.job == 0 {
		return nil
	}
	err := windows.CloseHandle(pl.job)
	pl.job = 0
	return err
}

// SweepChildren has nothing to do: the job holds them.
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

// Owner is for systems with user ids.
func Owner(string) uint32 { return 0 }

// Seat is for views, which this system does not have.
type Seat struct{}

// NewSeat returns nil: there is nothing to prepare.
func NewSeat(*View) *Seat { return nil }

// Leave does nothing.
func (s *Seat) Leave() {}
