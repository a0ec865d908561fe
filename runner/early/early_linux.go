// Package early starts run_isolated as the first thing that a task_runner does,
// before the other packages of the executable are initialised: both then come
// up at once, and the time until a task's command runs is that of run_isolated.
//
// It imports nothing but syscall, which is what puts it first (Go
// specification, "Program initialization"). It does nothing in any other
// process, and nothing when anything is unusual: whoever finds that Child is
// nil starts run_isolated itself. docs/adr/0040.
package early

import "syscall"

// Process is a run_isolated that has been started, the leader of its own
// process group. Descriptors are close-on-exec.
type Process struct {
	Exe    string // what it executes: this process's own executable
	Pid    int
	Words  int // its standard input, to write to
	Output int // its standard output, to read from
	News   int // its descriptor 3, to read from
}

// Child is this task_runner's run_isolated; nil when it was not started.
var Child = start()

// lifeFD is the descriptor that task_runner inherits to pass it on.
const lifeFD = 3

func start() *Process {
	if !isRunner() {
		return nil
	}
	// Nothing that leaked to us from whoever started the bot may leak further.
	const sysCloseRange, cloexec = 436, 4
	if _, _, errno := syscall.RawSyscall(sysCloseRange, lifeFD, 1<<31-1, cloexec); errno != 0 {
		return nil
	}
	var exe [512]byte
	n, err := syscall.Readlink("/proc/self/exe", exe[:])
	if err != nil || n == len(exe) {
		return nil
	}
	c := &Process{Exe: string(exe[:n])}
	var pipes [3][2]int
	for i := range pipes {
		if syscall.Pipe2(pipes[i][:], syscall.O_CLOEXEC) != nil {
			shut(pipes[:i])
			return nil
		}
	}
	words, output, news := pipes[0], pipes[1], pipes[2]
	c.Words, c.Output, c.News = words[1], output[0], news[0]
	c.Pid, err = syscall.ForkExec(c.Exe, []string{c.Exe, "run_isolated"}, &syscall.ProcAttr{
		Env: syscall.Environ(), Files: []uintptr{uintptr(words[0]), uintptr(output[1]), 2, uintptr(news[1]), lifeFD},
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		shut(pipes[:])
		return nil
	}
	for _, fd := range []int{words[0], output[1], news[1]} {
		_ = syscall.Close(fd)
	}
	return c
}

// isRunner reports whether this process is a task_runner of a bot: package os,
// which knows the arguments, is not there yet.
func isRunner() bool {
	var st syscall.Stat_t // a person who tries the subcommand has no life line to give
	if syscall.Fstat(lifeFD, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return false
	}
	fd, err := syscall.Open("/proc/self/cmdline", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer syscall.Close(fd)
	var b [512]byte // few pages are touched yet, and each is dear
	n, err := syscall.Read(fd, b[:])
	const end = "\x00task_runner\x00"
	if err != nil || n < len(end) || n == len(b) || string(b[n-len(end):n]) != end {
		return false
	}
	for _, c := range b[:n-len(end)] {
		if c == 0 {
			return false // it is not the first argument
		}
	}
	return true
}

func shut(pipes [][2]int) {
	for _, p := range pipes {
		_, _ = syscall.Close(p[0]), syscall.Close(p[1])
	}
}
