// Package oci makes warm containers with runc or crun. The container's root is
// an overlay over the base image, mounted in a mount namespace of the
// runtime's own: it is gone with the container, whoever is killed.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/internal/proc"
)

// Runtime is runc or crun. The zero value takes whichever is found, crun
// first.
type Runtime struct {
	Program string // name or path; "" = crun, else runc
	State   string // where the runtime keeps its state: a directory of this pool's

	path   string
	isCrun bool
	detach []string
}

// Name implements warm.Runtime.
func (r *Runtime) Name() string {
	if r.path != "" {
		return filepath.Base(r.path)
	}
	return "oci"
}

// Check implements warm.Runtime.
func (r *Runtime) Check(ctx context.Context) error {
	names := []string{"crun", "runc"}
	if r.Program != "" {
		names = []string{r.Program}
	}
	for _, name := range names {
		if path, err := proc.LookPath(name); err == nil {
			r.path = path
			break
		}
	}
	if r.path == "" {
		return skep.Errorf(skep.Precondition, "no %s on this host; install one (Debian: apt-get install %s)", strings.Join(names, " or "), names[0])
	}
	out, err := proc.Output(ctx, nil, r.path, "--version")
	if err != nil {
		return skep.Errorf(skep.Precondition, "%s does not run: %w", r.path, err)
	}
	r.isCrun = strings.Contains(string(out), "crun")
	if point := proc.HybridCgroups(); r.isCrun && point != "" {
		r.detach = []string{point} // it refuses to see both
	}
	if err := os.MkdirAll(r.State, 0o700); err != nil {
		return skep.Errorf(skep.Precondition, "the runtime cannot write its state: %w", err)
	}
	return nil
}

func (r *Runtime) args(args ...string) []string {
	all := []string{r.path, "--root", r.State}
	if r.isCrun {
		all = append(all, "--cgroup-manager=disabled") // the pool's own hold the room
	}
	return append(all, args...)
}

// run runs the runtime to its end; what it complains about is in the error.
// The log also gets what a container's first process says.
func (r *Runtime) run(ctx context.Context, view *proc.View, logTo string, args ...string) error {
	log, err := os.OpenFile(logTo, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	p, err := proc.Start(&proc.Cmd{
		Path: r.path, Args: r.args(args...), Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/",
		Files: []*os.File{nil, log, log}, ParentDeath: true, View: view,
	})
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		_ = p.Kill()
	}
	st := p.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if st.Code != 0 || st.Err != nil {
		said, _ := os.ReadFile(logTo)
		return fmt.Errorf("%s %s: exit code %d: %s", r.Name(), args[0], st.Code, lastLines(said))
	}
	return nil
}

func lastLines(b []byte) string {
	s := strings.TrimSpace(string(b))
	if len(s) > 600 {
		s = "…" + s[len(s)-600:]
	}
	return s
}

// Start implements warm.Runtime.
func (r *Runtime) Start(ctx context.Context, s *warm.Spec) error {
	b, err := json.Marshal(bundle(s))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "config.json"), b, 0o600); err != nil {
		return err
	}
	view := &proc.View{Detach: r.detach, Overlay: &proc.Overlay{
		Lower: s.Base, Upper: filepath.Join(s.Dir, "upper"), Work: filepath.Join(s.Dir, "work"), At: filepath.Join(s.Dir, "root"),
	}}
	log, pidFile := filepath.Join(s.Dir, "log"), filepath.Join(s.Dir, "pid")
	if err := r.run(ctx, view, log, "run", "--detach", "--pid-file", pidFile, "--bundle", s.Dir, s.Name); err != nil {
		return err
	}
	if ended, err := endsBefore(ctx, pidFile, s.Greeted); err != nil || !ended {
		return err
	}
	said, _ := os.ReadFile(log)
	return fmt.Errorf("the container's first process has ended: %s", lastLines(said))
}

// endsBefore waits until the process that a file names has ended, or greeted is
// closed: the runtime has gone and says nothing of that any more.
func endsBefore(ctx context.Context, pidFile string, greeted <-chan struct{}) (ended bool, err error) {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return false, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return false, fmt.Errorf("the container's process id: %w", err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	over, end := make(chan struct{}), make(chan struct{})
	defer close(over)
	go func() {
		defer unix.Close(fd)
		for {
			if proc.AwaitEnd(fd, 50*time.Millisecond) == nil {
				close(end)
				return
			}
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	select {
	case <-greeted:
		return false, nil
	case <-end:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// Remove implements warm.Runtime.
func (r *Runtime) Remove(ctx context.Context, s *warm.Spec) error {
	state, log := filepath.Join(r.State, s.Name), filepath.Join(r.State, "."+s.Name+".log")
	if _, err := os.Stat(state); err == nil {
		// In a namespace of its own, as it looks for cgroups too.
		if err := r.run(ctx, &proc.View{Detach: r.detach}, log, "delete", "--force", s.Name); err != nil {
			// A state that was half written when the runtime was killed.
			if rerr := os.RemoveAll(state); rerr != nil {
				return errors.Join(err, rerr)
			}
		}
		if err := os.RemoveAll(state); err != nil {
			return err
		}
	}
	_ = os.Remove(log) // also that of a removal which was killed
	return proc.RemoveCgroups(s.Name, 5*time.Second)
}

type object = map[string]any

// bundle is the container in the words of the OCI runtime specification.
func bundle(s *warm.Spec) object {
	namespaces := []object{}
	for _, kind := range []string{"pid", "network", "ipc", "uts", "mount", "user", "cgroup"} {
		if kind == "network" && s.HostNetwork {
			continue
		}
		namespaces = append(namespaces, object{"type": kind})
	}
	sys := object{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "noexec", "nodev", "ro"}}
	if s.HostNetwork { // sysfs shows a network that is not the room's, and may not be mounted
		sys = object{"destination": "/sys", "type": "none", "source": "/sys", "options": []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
	}
	ids := []object{{"containerID": 0, "hostID": s.FirstID, "size": s.IDs}}
	caps := object{}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		caps[set] = warm.Capabilities
	}
	return object{
		"ociVersion": "1.0.2",
		"process": object{
			"user": object{"uid": 0, "gid": 0}, "args": []string{filepath.Join(room.Dir, room.ProgramName), room.Word},
			"env": []string{"GOMAXPROCS=1"}, "cwd": "/", "capabilities": caps,
		},
		"root": object{"path": "root"}, "hostname": "room",
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": []string{"nosuid", "noexec", "nodev", "mode=1777"}},
			{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": []string{"nosuid", "noexec", "nodev"}},
			sys,
			{"destination": room.Dir, "type": "none", "source": s.Run, "options": []string{"bind", "ro", "nosuid", "nodev"}},
		},
		"linux": object{
			"cgroupsPath": "/" + s.Name, "namespaces": namespaces, "uidMappings": ids, "gidMappings": ids,
			"maskedPaths":   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
