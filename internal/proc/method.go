package proc

import "fmt"

// Method is how all processes of a task are held together, so that none
// survives it.
type Method string

// The methods, in the order in which Choose tries them on Linux. Elsewhere
// there is one: the process group, or the job object on Windows.
const (
	MethodCgroup2   Method = "cgroup2"   // cgroup.kill; also in the unified tree of a hybrid host
	MethodCgroup1   Method = "cgroup1"   // frozen, then killed; pids.max stops forks
	MethodPIDNS     Method = "pidns"     // the kernel ends what PID 1 leaves
	MethodSubreaper Method = "subreaper" // orphans come back to us; rounds of freeze and kill
	MethodGroup     Method = "group"     // a process group; what leaves it survives
	MethodJob       Method = "job"       // a Windows job object
)

var linuxMethods = []Method{MethodCgroup2, MethodCgroup1, MethodPIDNS, MethodSubreaper}

func unknownMethod(m Method) error {
	return fmt.Errorf("unknown containment %q", m)
}

// Isolation is what keeps a task from the bot's own files and processes.
type Isolation struct {
	Kind   string // one of the Isolation constants
	Reason string // why it is not better, for a person
	User   *User  // whom tasks run as; nil = as the bot
	Hide   string // directory that the task must not need to search; "" = none. See View
}

// Kinds of isolation, as the bot reports them.
const (
	IsolationNone = "none" // the task has the bot's rights
	IsolationUser = "user" // the task runs as another user
	IsolationView = "view" // namespaces hide the bot's directory and processes
)
