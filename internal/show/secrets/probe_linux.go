package secrets

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/hook"
)

// token is what every token of a fleet looks like, made of two parts so that
// this program does not find itself.
var token = regexp.MustCompile("skep" + `_[0-9a-f]{12}_[A-Za-z0-9_-]{32,}`)

// probe is a task that wants the bot's credential.
type probe struct {
	dir   string // the bot's
	tried int
}

// Probe is the task: it prints a line for everything that it gets hold of.
// args is the bot's directory.
func Probe(args []string) int {
	if len(args) != 1 {
		return 2
	}
	p := &probe{dir: args[0]}
	p.self()
	p.files()
	pids := p.processes()
	p.socket()
	fmt.Printf("tried %d things on %d processes of bots, uid %d\n", p.tried, pids, os.Getuid())
	return 0
}

func (p *probe) found(format string, args ...any) { fmt.Printf("GOT "+format+"\n", args...) }

// look searches what was read.
func (p *probe) look(where string, data []byte) {
	if token.Match(data) {
		p.found("a token from %s", where)
	}
}

// self is what the task has anyway: environment, arguments, descriptors.
func (p *probe) self() {
	p.tried += 2
	p.look("its own environment", []byte(strings.Join(os.Environ(), "\n")))
	p.look("its own arguments", []byte(strings.Join(os.Args, "\n")))
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		p.tried++
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if n, _ := strconv.Atoi(fd.Name()); err == nil && n > 2 && strings.HasPrefix(to, p.dir+"/") {
			p.found("descriptor %s, which is %s", fd.Name(), to)
		}
	}
}

// files are all of the bot's directory, and of those around it where copies or
// dumps may lie.
func (p *probe) files() {
	for _, name := range []string{"credential.json", "bootstrap.tok", "update.json", "swarming.lck"} {
		p.tried++
		if data, err := os.ReadFile(filepath.Join(p.dir, name)); err == nil {
			p.look(name, data)
		}
		p.tried++
		if f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_WRONLY, 0); err == nil {
			_ = f.Close()
			p.found("%s to write to", name)
		}
	}
	_ = filepath.WalkDir(p.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasPrefix(filepath.Base(path), "swarming_bot.") || filepath.Base(path) == "swarming_bot" {
			return nil //nolint:nilerr // what cannot be read is what we want
		}
		p.tried++
		if f, err := os.Open(path); err == nil {
			defer f.Close()
			data, _ := io.ReadAll(io.LimitReader(f, 8<<20))
			p.look(path, data)
		}
		return nil
	})
	for _, dir := range []string{".", "/var/lib/systemd/coredump", "/var/crash"} {
		cores, _ := filepath.Glob(filepath.Join(dir, "core*"))
		for _, c := range cores {
			p.tried++
			if data, err := os.ReadFile(c); err == nil {
				p.look(c, data)
			}
		}
	}
}

// processes are all that run a bot's executable, this one's children and init
// too; it returns how many.
func (p *probe) processes() (pids int) {
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		p.tried++
		p.look(fmt.Sprintf("the arguments of process %d", pid), cmdline)
		if strings.Contains(string(cmdline), "swarming_bot") {
			pids++
			p.process(pid, strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " "))
		}
	}
	return pids
}

func (p *probe) process(pid int, name string) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, f := range []string{"environ", "maps", "mem", "auxv", "smaps", "pagemap", "stack", "syscall", "io"} {
		p.tried++
		h, err := os.Open(dir + f)
		if err != nil {
			continue
		}
		buf := make([]byte, 64<<10)
		if f == "mem" { // it opens, perhaps; is there anything behind it?
			if n, err := h.ReadAt(buf[:16], int64(firstPage(dir))); n > 0 && err == nil {
				p.found("memory of %s", name)
			}
		} else if n, _ := h.Read(buf); n > 0 {
			p.found("%s of %s", f, name)
			p.look(f, buf[:n])
		}
		_ = h.Close()
	}
	for _, f := range []string{"exe", "cwd", "root"} {
		p.tried++
		if to, err := os.Readlink(dir + f); err == nil {
			p.found("%s of %s: %s", f, name, to)
		}
	}
	for _, d := range []string{"fd", "map_files"} {
		p.tried++
		if got, _ := os.ReadDir(dir + d); len(got) > 0 {
			p.found("%d entries in %s of %s", len(got), d, name)
		}
	}
	p.calls(pid, name)
}

// firstPage is an address that every program of Go's linker has mapped.
func firstPage(string) uint64 { return 0x400000 }

// calls are what the kernel lets a process do to others of its user.
func (p *probe) calls(pid int, name string) {
	p.tried += 5
	if unix.PtraceSeize(pid) == nil {
		_ = unix.PtraceDetach(pid)
		p.found("ptrace of %s", name)
	}
	var buf [16]byte
	local := []unix.Iovec{{Base: &buf[0], Len: 16}}
	if n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(firstPage("")), Len: 16}}, 0); err == nil && n > 0 {
		p.found("memory of %s by process_vm_readv", name)
	}
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		for n := range 20 {
			if got, err := unix.PidfdGetfd(fd, n, 0); err == nil {
				_ = unix.Close(got)
				p.found("descriptor %d of %s", n, name)
				break
			}
		}
		_ = unix.Close(fd)
	}
	if pid == 1 { // the init of our own namespace, which is ours to end and to limit
		return
	}
	if syscall.Kill(pid, 0) == nil { // what can be signalled can be made to dump its core
		p.found("the right to signal %s", name)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &limit); err == nil {
		p.found("the limits of %s", name)
	}
}

// socket is where `skep-bot shell` comes in.
func (p *probe) socket() {
	p.tried++
	if os.Chdir(p.dir) != nil {
		return
	}
	c, err := net.Dial("unix", bot.SocketFile)
	if err != nil {
		return
	}
	defer c.Close()
	// It opens where a task is the bot's own user; is it answered?
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_ = hook.WriteFrame(c, bot.Visit{Source: "bot.id"})
	var r bot.Reply
	switch err := hook.ReadFrame(c, &r); {
	case err == nil && !r.Error:
		p.found("the bot's shell, which says %s", r.Text)
	case err == nil:
		fmt.Println("the shell says:", r.Text)
	}
}
