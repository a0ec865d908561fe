package ownengine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/internal/proc"
)

// Engine is a dockerd. Its containers have no network.
type Engine struct {
	*docker.Engine
	Dir string
	p   *proc.Process
}

// Missing says what this machine lacks for one, "" when nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "root"
	}
	for _, name := range []string{"dockerd", "docker", "busybox"} {
		if _, err := proc.LookPath(name); err != nil {
			return name
		}
	}
	return ""
}

// errEnded is that of an engine that ended by itself before it answered.
var errEnded = errors.New("dockerd ended")

// Start starts an engine in dir, which the caller removes after Stop, and
// returns when it answers. A path of a socket is short, and so dir must be.
func Start(ctx context.Context, dir string) (*Engine, error) {
	path, err := proc.LookPath("dockerd")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o600)); err != nil {
		return nil, err
	}
	e := &Engine{Dir: dir}
	if e.Engine, err = docker.New(e.Host(), 20*time.Second); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	e.p, err = proc.Start(&proc.Cmd{
		Path: path, Env: os.Environ(), Files: []*os.File{nil, log, log}, NewGroup: true, ParentDeath: true,
		Args: []string{
			"dockerd", "--config-file", filepath.Join(dir, "daemon.json"), "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
			"--pidfile", filepath.Join(dir, "pid"), "--host", e.Host(), "--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-masq=false",
		},
	})
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; {
		if err = e.Ping(ctx); err == nil {
			return e, nil
		}
		select {
		case <-e.p.Done():
			return nil, errors.Join(fmt.Errorf("%w: %s", errEnded, e.said()), e.Stop())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), e.Stop())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("dockerd does not answer: %w: %s", err, e.said()), e.Stop())
		}
	}
}

// Host is where it listens, as --engine and DOCKER_HOST want it.
func (e *Engine) Host() string { return "unix://" + filepath.Join(e.Dir, "socket") }

func (e *Engine) said() string {
	b, _ := os.ReadFile(filepath.Join(e.Dir, "log"))
	return string(b[max(0, len(b)-1500):])
}

// Docker runs the engine's own client and returns what it printed.
func (e *Engine) Docker(ctx context.Context, args ...string) (string, error) {
	return e.run(ctx, append([]string{"docker", "--host", e.Host()}, args...)...)
}

// run returns what a program printed that ended well.
func (e *Engine) run(ctx context.Context, args ...string) (string, error) {
	res, err := proc.Run(ctx, proc.RunOptions{Args: args, Env: append(os.Environ(), "DOCKER_HOST="+e.Host()), MaxOutput: 1 << 20})
	switch {
	case err != nil:
		return "", err
	case res.Status.Code != 0 || res.Status.Err != nil:
		return "", fmt.Errorf("%s ended with exit code %d: %s", args[0], res.Status.Code, res.Stderr)
	}
	return strings.TrimSpace(string(res.Stdout)), nil
}

// Tiny makes an image called name of busybox that runs entrypoint; label makes
// it another image than others.
func (e *Engine) Tiny(ctx context.Context, name, label string, entrypoint ...string) error {
	const script = `d=$(mktemp -d) && trap 'rm -rf "$d"' EXIT && mkdir "$d/bin" "$d/tmp" && cp "$(command -v busybox)" "$d/bin/busybox" &&
ln -s busybox "$d/bin/sh" && tar -C "$d" -cf - . | docker import --change "ENTRYPOINT $2" --change "LABEL show=$3" - "$1"`
	words := make([]string, len(entrypoint))
	for i, w := range entrypoint {
		words[i] = fmt.Sprintf("%q", w)
	}
	if _, err := e.run(ctx, "sh", "-ec", script, "sh", name, "["+strings.Join(words, ",")+"]", label); err != nil {
		return fmt.Errorf("make image %s: %w", name, err)
	}
	return nil
}

// Stop ends the engine and its containers, and takes its mounts away.
func (e *Engine) Stop() error {
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if all, err := e.List(ctx, nil); err == nil {
		for _, c := range all {
			errs = append(errs, e.Remove(ctx, c.ID))
		}
	}
	if err := e.p.Terminate(); err != nil && !errors.Is(err, proc.ErrGone) {
		errs = append(errs, err)
	}
	select {
	case <-e.p.Done():
	case <-time.After(30 * time.Second):
		errs = append(errs, errors.New("dockerd does not end"), e.p.Kill())
	}
	_ = e.Close()
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], e.Dir+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	return errors.Join(errs...)
}
