package warm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Canary is what the tasks of this demonstration run in rooms; the first of args
// says what: "leave" leaves marks, "look" looks for them. They write a line for
// each place:
//
//	took PLACE [DETAIL]   the mark is there; DETAIL is for the one that looks
//	found PLACE: WHAT     a mark of an earlier task is there
//
// and "done" at the end. A place that refuses is no leak and no line.
func Canary(args []string) int {
	runtime.LockOSThread() // keyrings are a thread's
	if len(args) < 2 {
		return 2
	}
	c := &canary{mark: args[1], args: args[2:]}
	if args[0] == "leave" || args[0] == "look" { // one that takes too long says where it is
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, unix.SIGTERM)
		go func() {
			<-asked
			_ = pprof.Lookup("goroutine").WriteTo(os.Stdout, 2)
			os.Exit(1)
		}()
	}
	switch args[0] {
	case "leave":
		c.leave()
	case "stay":
		return c.stay()
	case "inner":
		c.own()
	case "look":
		c.look()
	}
	fmt.Println("done")
	return 0
}

// anyMark begins every mark.
const anyMark = "mark-"

// inputFiles are the inputs of the tasks.
var inputFiles = []string{"inputs/data", "inputs/run.sh", "inputs/below/more"}

// inputText is what is in an input file.
func inputText(name string) []byte {
	return []byte("#!/bin/sh\n# " + name + strings.Repeat(" as it was archived\n", 50))
}

type canary struct {
	mark string   // a word that no other task of any run has
	args []string // sockets that must not answer, and details of what the task before took
}

// key is the mark as System V objects are named.
func (c *canary) key() int {
	sum := sha256.Sum256([]byte(c.mark))
	return int(sum[0])<<16 | int(sum[1])<<8 | int(sum[2]) | 1<<24
}

func took(place string, err error, detail ...string) {
	if err == nil {
		fmt.Println(strings.Join(append([]string{"took", place}, detail...), " "))
	}
}

func found(place, what string) {
	fmt.Printf("found %s: %s\n", place, strings.ReplaceAll(what, "\n", `\n`))
}

func (c *canary) leave() {
	if _, err := os.Stat(filepath.Join("cache", c.args[0])); err == nil {
		fmt.Println("kept")
	}
	c.files()
	c.inputs()
	c.objects()
	c.keys()
	c.names()
	c.reach(c.args[1:])
	self, err := os.Executable()
	if err != nil {
		found("program", err.Error())
		return
	}
	// What stays holds sockets, shared memory and the session's keyring.
	out, err := start(exec.Command(self, "canary", "stay", c.mark))
	for line := range strings.Lines(out) {
		took(strings.TrimSpace(line), err)
	}
	took("process", err)
	// The same as the root of a user namespace of the task's own.
	inner := exec.Command(self, "canary", "inner", c.mark)
	inner.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err = start(inner)
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "took "); ok && err == nil {
			fmt.Println("took own namespaces' " + rest)
		}
	}
}

// start starts a process that shall stay, outside of our session, and returns
// what it says until it is ready: until "ready", or its end.
func start(cmd *exec.Cmd) (string, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	r, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var all []byte
	buf := make([]byte, 1024)
	for !bytes.Contains(all, []byte("ready\n")) {
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return "", fmt.Errorf("it ended: %w", err)
		}
	}
	before, _, _ := strings.Cut(string(all), "ready\n")
	return before, nil
}

// top is the place that a path counts for.
func (c *canary) top(path string) string {
	wd, _ := os.Getwd()
	for _, p := range []struct{ dir, name string }{{filepath.Join(wd, "cache"), "named cache"}, {wd, "work directory"}, {os.Getenv("TMPDIR"), "TMPDIR"}, {"/dev/shm", "/dev/shm"}, {"/dev/mqueue", "/dev/mqueue"}} {
		if rel, err := filepath.Rel(p.dir, path); err == nil && p.dir != "" && filepath.IsLocal(rel) {
			return p.name
		}
	}
	if i := strings.IndexByte(path[1:], '/'); i > 0 {
		return path[:i+1]
	}
	return path
}

// walk visits everything in the room but /proc, which is not files.
func walk(visit func(path string, mode fs.FileMode)) {
	_ = filepath.WalkDir("/", func(path string, _ fs.DirEntry, err error) error {
		if path == "/proc" {
			return fs.SkipDir
		}
		// What is mounted on a file may be of another kind than the entry says.
		if fi, serr := os.Lstat(path); serr == nil {
			visit(path, fi.Mode())
		}
		return nil
	})
}

// files leaves a file in every directory that takes one, a longer text in every
// file, and an attribute.
func (c *canary) files() {
	places := map[string]bool{}
	walk(func(path string, mode fs.FileMode) {
		at := path
		if strings.Contains(path, anyMark) {
			return // ours; or of a round before, in the cache that is kept: with marks in marks these double each time
		}
		if mode.IsDir() {
			at = filepath.Join(path, c.mark)
			if os.Mkdir(filepath.Join(path, c.mark+"-directory"), 0o777) == nil {
				places[c.top(path)] = true
			}
		} else if strings.Contains(path, "/inputs/") || !mode.IsRegular() {
			return
		}
		f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_APPEND|syscall.O_NONBLOCK, 0o666)
		if err != nil {
			return
		}
		if _, err := f.WriteString(c.mark); err == nil {
			places[c.top(path)] = true
		}
		_ = unix.Fsetxattr(int(f.Fd()), "user.mark", []byte(c.mark), 0)
		_ = f.Close()
	})
	for p := range places {
		took(p, nil)
	}
}

// inputs changes the task's inputs in every way that reaches the file itself and
// not only its name here.
func (c *canary) inputs() {
	text := []byte(c.mark)
	for _, name := range inputFiles {
		before, err := os.Stat(name)
		if err != nil {
			found("inputs", err.Error())
			return
		}
		_ = os.Chmod(name, 0o777)
		for how, change := range map[string]func() error{
			"written": func() error {
				f, err := os.OpenFile(name, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = f.WriteAt(text, 3)
				return err
			},
			"cut off": func() error { return os.Truncate(name, before.Size()-1) },
			"mapped": func() error {
				f, err := os.OpenFile(name, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				m, err := unix.Mmap(int(f.Fd()), 0, int(before.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				copy(m[100:], text)
				return unix.Munmap(m)
			},
			"attribute": func() error { return unix.Setxattr(name, "user.mark", text, 0) },
		} {
			took("input "+how, change())
		}
		// As if nothing had been.
		took("input dated back", os.Chtimes(name, before.ModTime(), before.ModTime()))
	}
	took("input replaced", os.WriteFile("new", text, 0o755)) // a name, and not the file
	_ = os.Rename("new", inputFiles[2])
}

// objects leaves what System V and POSIX name without files.
func (c *canary) objects() {
	id, err := unix.SysvShmGet(c.key(), 4096, unix.IPC_CREAT|0o666)
	if err == nil {
		var m []byte
		if m, err = unix.SysvShmAttach(id, 0, 0); err == nil {
			copy(m, c.mark)
		}
	}
	took("SysV shared memory", err)
	q, _, e := unix.Syscall(unix.SYS_MSGGET, uintptr(c.key()), unix.IPC_CREAT|0o666, 0)
	if e == 0 {
		msg := append(make([]byte, 8), c.mark...)
		msg[0] = 1 // its type
		_, _, e = unix.Syscall6(unix.SYS_MSGSND, q, uintptr(unsafe.Pointer(&msg[0])), uintptr(len(c.mark)), unix.IPC_NOWAIT, 0, 0)
	}
	took("SysV message queue", result(e))
	_, _, e = unix.Syscall(unix.SYS_SEMGET, uintptr(c.key()), 1, unix.IPC_CREAT|0o666)
	took("SysV semaphore", result(e))
	took("POSIX message queue", openQueue(c.mark, unix.O_CREAT|unix.O_RDWR))
}

func result(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func openQueue(name string, flags int) error {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return err
	}
	fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), uintptr(flags), 0o666, 0, 0, 0)
	if e != 0 {
		return e
	}
	return unix.Close(int(fd))
}

// rings are the keyrings that a process is told of by name.
var rings = []struct {
	name string
	id   int
}{{"session", unix.KEY_SPEC_SESSION_KEYRING}, {"user", unix.KEY_SPEC_USER_KEYRING}, {"user session", unix.KEY_SPEC_USER_SESSION_KEYRING}, {"process", unix.KEY_SPEC_PROCESS_KEYRING}, {"thread", unix.KEY_SPEC_THREAD_KEYRING}}

const everybody = 0x3f3f3f3f // may do everything with a key

// keys leaves keys that everybody may read, and their numbers.
func (c *canary) keys() {
	add := func(name string, ring int) {
		id, err := unix.AddKey("user", c.mark, []byte(c.mark), ring)
		if err == nil {
			err = unix.KeyctlSetperm(id, everybody)
		}
		took(name+" keyring", err, "key="+strconv.Itoa(id))
	}
	for _, r := range rings {
		// A key that we do not possess cannot be given to everybody.
		_, _ = unix.KeyctlInt(unix.KEYCTL_LINK, r.id, unix.KEY_SPEC_PROCESS_KEYRING, 0, 0)
		add(r.name, r.id)
	}
	if id, err := unix.KeyctlInt(unix.KEYCTL_GET_PERSISTENT, -1, unix.KEY_SPEC_PROCESS_KEYRING, 0, 0); err == nil {
		add("persistent", id)
	}
}

// names leaves the mark where the kernel keeps it: names, mounts, routes, sysctls.
func (c *canary) names() {
	took("host name", unix.Sethostname([]byte(c.mark)))
	took("domain name", unix.Setdomainname([]byte(c.mark)))
	took("mount", unix.Mount(c.mark, "/tmp", "tmpfs", 0, ""))
	took("route", exec.Command("/bin/ip", "route", "add", "198.51.100.0/24", "dev", "lo").Run())
	before := readSysctls()
	sysctls(func(path string) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return
		}
		defer f.Close()
		value := c.mark
		if old, err := os.ReadFile(path); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(old)), 10, 64); err == nil {
				value = strconv.FormatInt(n^1, 10)
			}
		}
		if _, err = f.WriteString(value); strings.TrimSpace(before[path]) == value {
			took("sysctl", err) // changed back: another changes several
			return
		}
		took("sysctl", err, "sysctl="+path+"="+value)
	})
}

// sysctls visits the files below /proc/sys that somebody may write to. Those
// that move by themselves, or do something when they are read, are not of them.
func sysctls(visit func(path string)) {
	const dir = "/proc/sys"
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch strings.TrimPrefix(path, dir+"/") {
		case "fs/binfmt_misc", "kernel/random":
			return fs.SkipDir
		case "kernel/ns_last_pid", "vm/stat_refresh":
			return nil
		}
		if err != nil || d.IsDir() {
			return nil //nolint:nilerr // an interface that has gone
		}
		if fi, err := d.Info(); err == nil && fi.Mode()&0o222 != 0 {
			visit(path)
		}
		return nil
	})
}

// readSysctls returns the value of every file of sysctls that can be read.
func readSysctls() map[string]string {
	all := map[string]string{}
	sysctls(func(path string) {
		if b, err := os.ReadFile(path); err == nil {
			all[path] = string(b)
		}
	})
	return all
}

// reach tries to talk to the pool: at sockets that are told, at every socket
// that is here, and through the descriptors of the room's first process, which
// has one.
func (c *canary) reach(sockets []string) {
	walk(func(path string, mode fs.FileMode) {
		if mode&fs.ModeSocket != 0 {
			sockets = append(sockets, path)
		}
	})
	for _, s := range append(sockets, "/.skep/socket", "\x00/.skep/socket") {
		if conn, err := net.DialTimeout("unix", s, time.Second); err == nil {
			_ = conn.Close()
			found("socket", s)
		}
	}
	if fds, _ := os.ReadDir("/proc/1/fd"); len(fds) > 0 {
		found("descriptors of the first process", fmt.Sprint(len(fds)))
	}
	pid, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return
	}
	for fd := range 32 {
		if _, err := unix.PidfdGetfd(pid, fd, 0); err == nil {
			found("descriptor of the first process", strconv.Itoa(fd))
		}
	}
	for fd := 3; fd < 256; fd++ { // Go's own are no sockets
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			found("inherited socket", strconv.Itoa(fd))
		}
	}
}

// stay is a process that runs on: it has left the session, ignores what asks it
// to end, and holds what has no name in a file system.
func (c *canary) stay() int {
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	held := []io.Closer{}
	listen := func(place, network, address string) {
		l, err := net.Listen(network, address)
		if err == nil {
			held = append(held, l)
			fmt.Println(place)
		}
	}
	listen("abstract socket", "unix", "@"+c.mark)
	listen("path socket", "unix", c.mark+".socket")
	listen("path socket in /tmp", "unix", "/tmp/"+c.mark+".socket")
	listen("port", "tcp", "127.0.0.1:9871")
	id, err := unix.SysvShmGet(c.key(), 4096, 0o666)
	if err == nil {
		_, _ = unix.SysvShmAttach(id, 0, 0)
	}
	// A child whose parent is not us any more.
	_ = exec.Command("/bin/sh", "-c", "(setsid sh -c 'trap : TERM INT HUP; while :; do sleep 9871; done' "+c.mark+" >/dev/null 2>&1 &)").Run()
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
		runtime.KeepAlive(held)
	}
}

// own leaves marks as the root of namespaces of its own, and stays.
func (c *canary) own() {
	wd, _ := os.Getwd()
	for _, at := range []string{"/tmp", wd, "/dev/shm"} {
		took("mount", unix.Mount(c.mark, at, "tmpfs", 0, ""))
	}
	c.names()
	c.objects()
	c.keys()
	fmt.Println("ready")
	for {
		time.Sleep(time.Hour)
	}
}

// look looks for marks, of whatever task.
func (c *canary) look() {
	walk(func(path string, mode fs.FileMode) {
		if strings.Contains(filepath.Base(path), anyMark) {
			found("file", path)
		}
		buf := make([]byte, 64)
		if n, err := unix.Lgetxattr(path, "user.mark", buf); err == nil {
			found("attribute", path+" "+string(buf[:n]))
		}
		if mode.IsRegular() && !strings.HasPrefix(path, "/bin/") && !strings.HasPrefix(path, "/sys/") && !strings.HasPrefix(path, "/.skep/") {
			if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(anyMark)) {
				found("text", path)
			}
		}
	})
	for _, name := range inputFiles {
		if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, inputText(name)) {
			found("input", fmt.Sprintf("%s: %.100q %v", name, b, err))
		}
	}
	for _, name := range []string{"mounts", "net/unix", "keys", "sys/kernel/hostname", "sys/kernel/domainname"} {
		path := filepath.Join("/proc", name)
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(anyMark)) {
			found(path, string(b))
		}
	}
	if out, err := exec.Command("/bin/ip", "route").Output(); err == nil && bytes.Contains(out, []byte("198.51.100")) {
		found("route", string(out))
	}
	for _, kind := range []string{"shm", "msg", "sem"} {
		if b, err := os.ReadFile("/proc/sysvipc/" + kind); err == nil && bytes.Count(b, []byte("\n")) > 1 {
			found("System V "+kind, string(b))
		}
	}
	if openQueue(c.mark, unix.O_RDWR) == nil {
		found("POSIX message queue", c.mark)
	}
	c.lookForKeys()
	for _, address := range []string{"@" + c.mark, c.mark + ".socket", "/tmp/" + c.mark + ".socket"} {
		if conn, err := net.Dial("unix", address); err == nil {
			_ = conn.Close()
			found("socket", address)
		}
	}
	if conn, err := net.Dial("tcp", "127.0.0.1:9871"); err == nil {
		_ = conn.Close()
		found("port", "9871")
	}
	for _, p := range processes(anyMark) {
		if p != os.Getpid() {
			found("process", strconv.Itoa(p))
		}
	}
	for _, a := range c.args {
		if rest, ok := strings.CutPrefix(a, "sysctl="); ok {
			path, value, _ := strings.Cut(rest, "=")
			if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == value {
				found("sysctl", rest)
			}
		}
	}
}

func (c *canary) lookForKeys() {
	for _, r := range rings {
		if id, err := unix.KeyctlSearch(r.id, "user", c.mark, 0); err == nil {
			found(r.name+" keyring", strconv.Itoa(id))
		}
	}
	if id, err := unix.RequestKey("user", c.mark, "", 0); err == nil {
		found("requested key", strconv.Itoa(id))
	}
	for _, a := range c.args {
		n, ok := strings.CutPrefix(a, "key=")
		if !ok {
			continue
		}
		id, err := strconv.Atoi(n)
		if err != nil {
			found("key", a)
			continue
		}
		if text, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, id); err == nil && strings.Contains(text, c.mark) {
			found("key by its number", text)
		}
		buf := make([]byte, 64)
		if size, err := unix.KeyctlBuffer(unix.KEYCTL_READ, id, buf, 0); err == nil && strings.Contains(string(buf[:min(size, len(buf))]), c.mark) {
			found("text of a key by its number", n)
		}
	}
}

// processes are those with a word in their arguments or environment.
func processes(word string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		if pid, err := strconv.Atoi(filepath.Base(d)); err == nil && bytes.Contains(append(args, env...), []byte(word)) {
			pids = append(pids, pid)
		}
	}
	return pids
}
