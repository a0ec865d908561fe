package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep/internal/show/form"
)

// container is a Debian that systemd runs as process 1. It shares the network
// of this machine.
type container struct {
	root string
	cmd  *exec.Cmd
	init int // its process 1, seen from here
	log  string
}

// install makes a Debian in root. It comes from the network, which gets a second
// chance.
func install(ctx context.Context, root string) error {
	err := debootstrap(ctx, root)
	if err == nil || ctx.Err() != nil {
		return err
	}
	fmt.Println("once more:", err)
	return errors.Join(os.RemoveAll(root), debootstrap(ctx, root))
}

func debootstrap(ctx context.Context, root string) error {
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,wget", "bookworm", root, "http://deb.debian.org/debian")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("debootstrap: %w\n%s", err, out[max(0, len(out)-2000):])
	}
	return nil
}

// boot starts the container and waits until systemd is up.
func boot(ctx context.Context, root, log string) (*container, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	c := &container{root: root, log: log}
	c.cmd = exec.Command("systemd-nspawn", "-q", "--register=no", "--keep-unit", "--console=pipe", "-M", "skep-show-"+strconv.Itoa(os.Getpid()), "-D", root, "--boot")
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	last := errors.New("it has no process")
	for end := time.Now().Add(form.Of(time.Minute, 3*time.Minute)); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if c.init == 0 {
			c.init = initOf(c.cmd.Process.Pid)
			continue
		}
		// "degraded" is up too: parts of a machine are missing here.
		state, err := c.run(ctx, "", "systemctl", "is-system-running")
		if state == "running" || state == "degraded" {
			return c, nil
		}
		last = fmt.Errorf("it is %q: %w", state, err)
	}
	text, _ := os.ReadFile(log)
	c.close()
	return nil, fmt.Errorf("systemd did not come up as process 1: %w\n%s", last, text[max(0, len(text)-3000):])
}

// initOf is the child of a process that is process 1 of its namespace, 0 when
// there is none yet. nspawn's first child is not: it makes the container and
// ends.
func initOf(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for _, child := range strings.Fields(string(data)) {
		if ids := namespaced("/proc/" + child + "/status"); len(ids) > 1 && ids[len(ids)-1] == "1" {
			n, _ := strconv.Atoi(child)
			return n
		}
	}
	return 0
}

// namespaced is a process's ids from our namespace inwards, read from its
// status file; nil when the process is gone.
func namespaced(status string) []string {
	data, _ := os.ReadFile(status)
	for l := range strings.Lines(string(data)) {
		if ids, ok := strings.CutPrefix(l, "NSpid:"); ok {
			return strings.Fields(ids)
		}
	}
	return nil
}

// run runs a program in the container and returns what it printed, without
// blanks around it.
func (c *container) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(c.init), "-m", "-u", "-i", "-p", "-C", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C"}
	cmd.Stdin = strings.NewReader(stdin)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, &errOut)
	}
	return strings.TrimSpace(string(out)), err
}

// property is one of the bot's unit.
func (c *container) property(ctx context.Context, name string) string {
	v, _ := c.run(ctx, "", "systemctl", "show", "-P", name, unit)
	return v
}

// outside is the process id here of process pid in there.
func (c *container) outside(pid string) (int, error) {
	all, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return 0, err
	}
	mine, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.init))
	if err != nil {
		return 0, err
	}
	for _, f := range all {
		ids := namespaced(f)
		ns, _ := os.Readlink(filepath.Join(filepath.Dir(f), "ns", "pid"))
		if len(ids) > 1 && ns == mine && ids[len(ids)-1] == pid {
			return strconv.Atoi(ids[0])
		}
	}
	return 0, errors.New("there is no such process in the container")
}

// close ends the container and all in it.
func (c *container) close() {
	if c.init > 0 {
		_ = syscall.Kill(c.init, syscall.SIGKILL) // all of its processes end with it
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-done
	}
}
