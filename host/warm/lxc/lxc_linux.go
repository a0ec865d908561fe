// Package lxc makes warm containers with LXC. The container's root is an
// overlay snapshot of the base image that LXC mounts in the container's own
// mount namespace; lxc-start stays beside it, as a child of the pool that dies
// with it.
package lxc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/internal/proc"
)

// Runtime is LXC. The zero value is ready for Check.
type Runtime struct {
	start string // path of lxc-start

	mu   sync.Mutex
	runs map[string]*proc.Process // lxc-start by room
}

// Name implements warm.Runtime.
func (r *Runtime) Name() string { return "lxc" }

// Check implements warm.Runtime.
func (r *Runtime) Check(ctx context.Context) error {
	path, err := proc.LookPath("lxc-start")
	if err != nil {
		return skep.Errorf(skep.Precondition, "no lxc-start on this host; install LXC (Debian: apt-get install lxc)")
	}
	if _, err := proc.Output(ctx, nil, path, "--version"); err != nil {
		return skep.Errorf(skep.Precondition, "%s does not run: %w", path, err)
	}
	r.start = path
	return nil
}

// Start implements warm.Runtime.
func (r *Runtime) Start(ctx context.Context, s *warm.Spec) error {
	config, err := configure(s)
	if err != nil {
		return err
	}
	path := filepath.Join(s.Dir, "config")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: r.start,
		Args: []string{r.start, "--foreground", "--name", s.Name, "--lxcpath", filepath.Dir(s.Dir), "--rcfile", path, "--logfile", filepath.Join(s.Dir, "lxc.log"), "--logpriority", "ERROR"},
		// Without newuidmap in its PATH it maps ids by itself, as root may, and
		// needs no entry in /etc/subuid.
		Env: []string{"PATH=/nonexistent", "GOMAXPROCS=1"}, Dir: "/",
		Files: []*os.File{nil, log, log}, NewGroup: true, ParentDeath: true,
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.runs == nil {
		r.runs = map[string]*proc.Process{}
	}
	r.runs[s.Name] = p
	r.mu.Unlock()
	// It says nothing when the container is up; the room does. It ends when it
	// fails.
	select {
	case <-p.Done():
		said, _ := os.ReadFile(filepath.Join(s.Dir, "lxc.log"))
		return fmt.Errorf("lxc-start: exit code %d: %s", p.Wait().Code, firstLines(said))
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.Greeted:
		return nil
	}
}

func firstLines(b []byte) string {
	s := strings.TrimSpace(string(b))
	if len(s) > 600 {
		s = s[:600] + "…"
	}
	return s
}

// Remove implements warm.Runtime.
func (r *Runtime) Remove(_ context.Context, s *warm.Spec) error {
	r.mu.Lock()
	p := r.runs[s.Name]
	delete(r.runs, s.Name)
	r.mu.Unlock()
	if p != nil {
		// It notices the container's end by itself and tidies up; killed, it takes
		// the container with it.
		select {
		case <-p.Done():
		case <-time.After(2 * time.Second):
			_ = p.Kill()
			p.Wait()
		}
	}
	var errs []error
	for _, name := range cgroupNames(s.Name) {
		errs = append(errs, proc.RemoveCgroups(name, 5*time.Second))
	}
	return errors.Join(errs...)
}

// cgroupNames are the cgroups that LXC is told to make.
func cgroupNames(name string) []string {
	return []string{name + "-lxc", name + "-monitor", name + "-pivot"}
}

// configure returns the container in LXC's words. lxc.container.conf(5).
func configure(s *warm.Spec) (string, error) {
	for _, p := range []string{s.Base, s.Dir, s.Run} {
		if strings.ContainsAny(p, ": \t\n,\\") {
			return "", skep.Errorf(skep.Invalid, "%s: LXC has no way to name such a directory; use one without spaces, ':', ',' and '\\'", p)
		}
	}
	cg := cgroupNames(s.Name)
	lines := []string{
		"lxc.uts.name = room",
		"lxc.rootfs.path = overlay:" + s.Base + ":" + filepath.Join(s.Dir, "upper"),
		"lxc.rootfs.mount = " + filepath.Join(s.Dir, "root"),
		fmt.Sprintf("lxc.idmap = u 0 %d %d", s.FirstID, s.IDs),
		fmt.Sprintf("lxc.idmap = g 0 %d %d", s.FirstID, s.IDs),
		"lxc.init.cmd = " + filepath.Join(room.Dir, room.ProgramName) + " " + room.Word,
		"lxc.mount.auto = proc:mixed sys:ro",
		// LXC leaves this writable, and not all that is below it is of one network alone.
		"lxc.mount.entry = /proc/sys/net proc/sys/net none bind,ro,nosuid,nodev,noexec 0 0",
		"lxc.mount.entry = " + s.Run + " " + strings.TrimPrefix(room.Dir, "/") + " none bind,ro,nosuid,nodev,create=dir 0 0",
		"lxc.mount.entry = shm dev/shm tmpfs nosuid,noexec,nodev,mode=1777,create=dir 0 0",
		"lxc.mount.entry = mqueue dev/mqueue mqueue nosuid,noexec,nodev,create=dir 0 0",
		"lxc.autodev = 1", "lxc.pty.max = 64", "lxc.tty.max = 0",
		"lxc.cap.keep = chown dac_override fsetid fowner setgid setuid setpcap net_bind_service net_admin sys_chroot kill",
		"lxc.cgroup.dir.container = " + cg[0], "lxc.cgroup.dir.monitor = " + cg[1], "lxc.cgroup.dir.monitor.pivot = " + cg[2],
		"lxc.signal.halt = SIGKILL",
	}
	if s.HostNetwork {
		lines = append(lines, "lxc.net.0.type = none")
	} else {
		lines = append(lines, "lxc.net.0.type = empty")
	}
	return strings.Join(lines, "\n") + "\n", nil
}
