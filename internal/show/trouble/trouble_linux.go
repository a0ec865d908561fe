// Package trouble shows how the programs of a host take what goes wrong: peers
// that speak nonsense or may not speak, sockets of the dead and of the living,
// no engine, a disk that takes nothing, images that do not start. Each says why,
// with a reason for programs; none loops. Issue 4, must show 5.
package trouble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/ownengine"
	"github.com/skepdev/skep/internal/stage/ownpool"
)

type show struct {
	dir   string
	skep  string // a copy that every user may run
	image ownpool.Image

	engines []*ownengine.Engine

	mu     sync.Mutex
	idle   []idle
	ends   []func() error
	mounts []string
}

// Main runs the demonstration and returns an exit code.
func Main([]string) int {
	if why := ownengine.Missing(); why != "" {
		fmt.Fprintf(os.Stderr, "show trouble: SKIPPED: needs %s\n", why)
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "docker") {
			return 1
		}
		return 0
	}
	form.Say()
	s := &show{}
	err := s.run()
	err = errors.Join(err, s.clean())
	if err != nil {
		fmt.Fprintln(os.Stderr, "show trouble:", err)
		return 1
	}
	fmt.Println("nothing is left\npassed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(15*time.Minute, 30*time.Minute))
	defer cancel()
	if s.dir, err = os.MkdirTemp("/var/tmp", "skep-trouble-"); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // other users are shown
		return err
	}
	b, err := os.ReadFile("bin/skep")
	if err != nil {
		return err
	}
	s.skep = filepath.Join(s.dir, "skep")
	if err := os.WriteFile(s.skep, b, 0o755); err != nil { //nolint:gosec // as said
		return err
	}
	if s.image, err = ownpool.MakeImage(s.dir, nil); err != nil {
		return err
	}
	// What has to fail several times before it rests begins first.
	began := time.Now()
	if err := together(func(part func(context.Context) error) error { return part(ctx) }, s.noEngine, s.brokenContainers, s.brokenRooms, s.noServer, s.readOnly); err != nil {
		return err
	}
	var errs []error
	for _, part := range []func(context.Context) error{s.refusals, s.protocol, s.sockets, s.peers} {
		errs = append(errs, part(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	time.Sleep(time.Until(began.Add(form.Of(75*time.Second, 22*time.Second))))
	if err := until(2*time.Minute, "resting", s.resting); err != nil {
		return err
	}
	var restless error
	for range form.Of(1, 3) {
		if restless = wakes(s.idle, form.Of(60*time.Second, 8*time.Second)); restless == nil {
			break
		}
	}
	if restless != nil {
		return restless
	}
	return s.engineComes(ctx)
}

// resting says whether containers that end at once have ended often enough for
// the pauses between them to be long.
func (s *show) resting() error {
	st, err := s.status("ends.sock")
	if err == nil && st.Slots[0].Deaths < 5 {
		err = fmt.Errorf("slot 000 died %d times", st.Slots[0].Deaths)
	}
	return err
}

// together does something with all at once.
func together[T any](do func(T) error, all ...T) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { errs[i] = do(one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// atEnd is done at the end.
func (s *show) atEnd(end func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, end)
}

// program is a skep that was started.
type program struct {
	cmd *exec.Cmd
	log string
}

// start starts a skep that goes on until the end of the demonstration.
func (s *show) start(name string, args ...string) (*program, error) {
	p := &program{cmd: exec.Command(s.skep, args...), log: filepath.Join(s.dir, name+".log")}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stderr = log
	p.cmd.Env = append(os.Environ(), "SKEP_TOKEN=")
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	s.atEnd(func() error {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		return p.cmd.Wait()
	})
	return p, nil
}

func (p *program) said() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-1500):])
}

// waits says that from now on a program is to do nothing but wait.
func (s *show) waits(what string, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, idle{what, pid})
}

// patience is for whatever is only waited for.
const patience = time.Minute

// until waits for ok.
func until(limit time.Duration, what string, ok func() error) error {
	for end := time.Now().Add(limit); ; {
		err := ok()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("not %s within %v: %w", what, limit, err)
		}
		time.Sleep(100 * time.Millisecond) // a look may be a process
	}
}

var reason = regexp.MustCompile(`(?m)^skep: (.*) \[([a-z_]+)\]$`)

// refused runs a skep that must not go on, and says with which reason.
func (s *show) refused(ctx context.Context, want, what string, cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = nil, &out
	began := time.Now()
	err := cmd.Start()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	late := time.AfterFunc(form.Of(30*time.Second, 2*time.Minute), func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	err = cmd.Wait()
	m := reason.FindStringSubmatch(out.String())
	switch {
	case err == nil:
		return fmt.Errorf("%s: it works", what)
	case m == nil:
		return fmt.Errorf("%s: no reason in %q (%w)", what, out.String(), err)
	case m[2] != want:
		return fmt.Errorf("%s: the reason is %s, want %s: %s", what, m[2], want, m[1])
	}
	fmt.Printf("said  %-48s %-13s %5d ms  %.90s\n", what, m[2], time.Since(began).Milliseconds(), m[1])
	return nil
}

func (s *show) command(args ...string) *exec.Cmd { return exec.Command(s.skep, args...) }

func (s *show) path(name string) string { return filepath.Join(s.dir, name) }

// mount makes a directory that takes nothing.
func (s *show) mount(name string) (string, error) {
	dir := s.path(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("skep-show", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, dir)
	return dir, nil
}

// freeze makes a directory in use take nothing any more.
func (s *show) freeze(dir string) error {
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	s.mu.Lock()
	s.mounts = append(s.mounts, dir)
	s.mu.Unlock()
	return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func (s *show) thaw() error {
	var errs []error
	for _, m := range s.mounts {
		errs = append(errs, unix.Unmount(m, unix.MNT_DETACH))
	}
	s.mounts = nil
	return errors.Join(errs...)
}

// clean ends what was started, and looks for what is left.
func (s *show) clean() error {
	errs := []error{s.thaw()}
	errs = append(errs, together(func(end func() error) error {
		err := end()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 130 { // interrupted
			return nil
		}
		return err
	}, s.ends...))
	errs = append(errs, together((*ownengine.Engine).Stop, s.engines...))
	if s.dir == "" {
		return errors.Join(errs...)
	}
	errs = append(errs, until(5*time.Second, "ended", s.processes)) // what was told to end may take a moment
	mounts, _ := os.ReadFile("/proc/mounts")
	if strings.Contains(string(mounts), s.dir) {
		errs = append(errs, errors.New("mounts are left"))
	}
	if err := errors.Join(errs...); err != nil && os.Getenv("SKEP_SHOW_KEEP") != "" {
		return err
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// processes says which of this demonstration run.
func (s *show) processes() error {
	var errs []error
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if bytes.Contains(b, []byte(s.dir)) {
			errs = append(errs, fmt.Errorf("process %s is left: %.200s", filepath.Base(filepath.Dir(p)), bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return errors.Join(errs...)
}

// pool returns a pool of this demonstration.
func (s *show) pool(name string) *ownpool.Service {
	return &ownpool.Service{Skep: s.skep, Dir: s.path(name), Runtime: "oci", Image: s.image}
}

// begin starts a pool that goes on until the end.
func (s *show) begin(ctx context.Context, p *ownpool.Service, flags ...string) error {
	if _, err := p.Start(ctx, flags...); err != nil {
		return err
	}
	s.atEnd(func() error { return p.Stop(context.WithoutCancel(ctx)) })
	return nil
}

// brokenRooms: a pool whose images do not start, and one that has nothing to
// do.
func (s *show) brokenRooms(ctx context.Context) error {
	fine := s.pool("fine")
	if err := s.begin(ctx, fine, "--min", "2", "--max", "2"); err != nil {
		return err
	}
	s.waits("pool with stock", fine.Pid())
	first := s.path("first")
	if err := os.WriteFile(first, []byte("#!/bin/sh\nexit 7\n"), 0o755); err != nil { //nolint:gosec // rooms execute it
		return err
	}
	ends := s.pool("ends")
	if err := s.begin(ctx, ends, "--min", "2", "--max", "2", "--room-program", first); err != nil {
		return err
	}
	s.waits("pool whose rooms end at once", ends.Pid())
	// An image in which nothing can be mounted.
	odd := s.pool("odd")
	var err error
	if err = os.Mkdir(s.path("oddimage"), 0o755); err != nil {
		return err
	}
	if odd.Image, err = ownpool.MakeImage(s.path("oddimage"), map[string]string{"proc": "/etc/hostname"}); err != nil {
		return err
	}
	if err := s.begin(ctx, odd, "--min", "2", "--max", "2"); err != nil {
		return err
	}
	s.waits("pool whose image cannot be used", odd.Pid())
	for _, p := range []*ownpool.Service{ends, odd} {
		st, err := p.Await(ctx, patience, "paused", func(st *pool.Status) bool { return st.Paused != "" && st.Totals.Failed > 0 })
		if err != nil {
			return err
		}
		if err := s.noStock(ctx, p, st.Paused); err != nil {
			return err
		}
	}
	return nil
}

// noStock asks a pool that makes nothing, which says why.
func (s *show) noStock(ctx context.Context, p *ownpool.Service, paused string) error {
	c, err := pool.Dial(ctx, p.At())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Get(ctx, pool.Get{For: "trouble"})
	if pool.Reason(err) != pool.ReasonNoStock || !strings.Contains(err.Error(), paused[:min(30, len(paused))]) {
		return fmt.Errorf("%s: a get is answered with %q (%w), and making is paused for %q", p.Dir, pool.Reason(err), err, paused)
	}
	fmt.Printf("said  %-48s %-13s          %.90s\n", "get from "+filepath.Base(p.Dir), pool.Reason(err), err)
	return nil
}

// noServer: a drone whose server is not there.
func (s *show) noServer(context.Context) error {
	cfg := s.path("etc/drone.cfg") // its directory is watched
	if err := os.Mkdir(filepath.Dir(cfg), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(cfg, []byte("bot: \"a\"\nbot: \"b\"\n"), 0o600); err != nil {
		return err
	}
	p, err := s.start("drone", "drone", "--config", cfg, "--dir", s.path("drone"), "--server", "http://127.0.0.1:1", "--log-level", "error")
	if err != nil {
		return err
	}
	s.waits("drone without a server", p.cmd.Process.Pid)
	queen := s.path("etc/queen.cfg")
	if err := os.WriteFile(queen, []byte("queen { dut_capacity: 2 hive: \"h\" }\n"), 0o600); err != nil {
		return err
	}
	if p, err = s.start("queen", "drone", "--config", queen, "--dir", s.path("queen"), "--server", "http://127.0.0.1:1", "--log-level", "error"); err != nil {
		return err
	}
	s.waits("drone without its queen", p.cmd.Process.Pid)
	frozen, err := s.start("frozen", "drone", "--config", cfg, "--dir", s.path("frozen"), "--server", "http://127.0.0.1:1", "--log-level", "error")
	if err != nil {
		return err
	}
	s.waits("drone whose disk takes nothing", frozen.cmd.Process.Pid)
	if err := until(patience, "up", func() error { _, err := os.Stat(s.path("frozen/drone.sock")); return err }); err != nil {
		return fmt.Errorf("%w: %s", err, frozen.said())
	}
	return s.freeze(s.path("frozen/bots"))
}

// readOnly: a pool whose disk takes nothing any more.
func (s *show) readOnly(ctx context.Context) error {
	p := s.pool("readonly")
	if err := s.begin(ctx, p, "--min", "2", "--max", "2"); err != nil {
		return err
	}
	if _, err := p.Await(ctx, time.Minute, "stocked", ownpool.Quiet(2)); err != nil {
		return err
	}
	if err := s.freeze(filepath.Join(p.Dir, "rooms")); err != nil {
		return err
	}
	c, err := pool.Dial(ctx, p.At())
	if err != nil {
		return err
	}
	defer c.Close()
	for range 2 {
		r, err := c.Get(ctx, pool.Get{For: "trouble", Confirm: true})
		if err != nil {
			return fmt.Errorf("a read-only disk keeps stock back: %w", err)
		}
		if err := c.Release(ctx, r.Lease); err != nil {
			return fmt.Errorf("release on a read-only disk: %w", err)
		}
	}
	st, err := p.Await(ctx, patience, "paused", func(st *pool.Status) bool { return st.Paused != "" })
	if err != nil {
		return err
	}
	if !strings.Contains(st.Paused, "read-only") {
		return fmt.Errorf("on a read-only disk making is paused for %q", st.Paused)
	}
	s.waits("pool whose disk takes nothing", p.Pid())
	return s.noStock(ctx, p, st.Paused)
}

// refusals are starts that cannot be.
func (s *show) refusals(ctx context.Context) error {
	none := "unix://" + s.path("no-engine")
	ro, err := s.mount("ro")
	if err != nil {
		return err
	}
	docker := s.pool("nodocker")
	docker.Runtime = "docker"
	bare := s.command(s.pool("bare").Args()...)
	bare.Env = []string{"PATH=/nowhere"}
	wrong := s.pool("wrong")
	wrong.Image.Digest = "sha256:" + strings.Repeat("0", 64)
	garbage := s.pool("garbage")
	garbage.Image.File = "/bin/true"
	onRO := s.pool("ro/pool")
	host := func(args ...string) *exec.Cmd {
		return s.command(append([]string{"host", "run", "--engine", none, "--root", s.path("x/b"), "--state-dir", s.path("x/state"), "--lock-dir", s.path("x/locks"), "--socket", s.path("x/sock"), "--reboot-command", "", "--engine-restart-command", ""}, args...)...)
	}
	cfg := s.path("etc/drone.cfg")
	var errs []error
	for _, r := range []struct {
		want, what string
		cmd        *exec.Cmd
	}{
		{"unavailable", "pool on docker, no engine", s.command(docker.Args("--engine", none)...)},
		{"precondition", "pool, neither crun nor runc", bare},
		{"precondition", "pool, an image with another digest", s.command(wrong.Args()...)},
		{"precondition", "pool, an image that is none", s.command(garbage.Args()...)},
		{"precondition", "pool, read-only disk", s.command(onRO.Args()...)},
		{"precondition", "host run, read-only --state-dir", host("--state-dir", filepath.Join(ro, "state"))},
		{"precondition", "host run, read-only --root", host("--root", filepath.Join(ro, "b"))},
		{"precondition", "host run, nowhere to make its socket", host("--socket", filepath.Join(ro, "sock"))},
		{"invalid", "host run, an engine that is no address", host("--engine", "what")},
		{"precondition", "drone, read-only --dir", s.command("drone", "--config", cfg, "--dir", filepath.Join(ro, "d"), "--server", "http://127.0.0.1:1")},
		{"conflict", "drone, a directory that is another's", s.command("drone", "--config", cfg, "--dir", s.path("drone"), "--server", "http://127.0.0.1:1")},
	} {
		errs = append(errs, s.refused(ctx, r.want, r.what, r.cmd))
	}
	return errors.Join(errs...)
}

// sockets: one that a killed service left, and those of others.
func (s *show) sockets(ctx context.Context) error {
	p := s.pool("killed")
	if _, err := p.Start(ctx, "--min", "1", "--max", "1"); err != nil {
		return err
	}
	p.Kill()
	if _, err := os.Lstat(p.At()); err != nil {
		return fmt.Errorf("a killed pool left no socket: %w", err)
	}
	took, err := p.Start(ctx, "--min", "1", "--max", "1")
	if err != nil {
		return fmt.Errorf("start beside the socket of a killed pool: %w", err)
	}
	fmt.Printf("stale socket of a killed pool: the next answers %v after its start\n", took.Round(time.Millisecond))
	errs := []error{s.refused(ctx, "conflict", "pool, a directory that is another's", s.command(p.Args()...))}
	thief := s.pool("thief")
	thief.Socket = p.At()
	errs = append(errs, s.refused(ctx, "conflict", "pool, a socket that another listens at", s.command(thief.Args()...)))
	file := s.path("precious")
	errs = append(errs, os.WriteFile(file, []byte("precious"), 0o600))
	thief.Socket = file
	errs = append(errs, s.refused(ctx, "precondition", "pool, a file where its socket is to be", s.command(thief.Args()...)))
	host := []string{"host", "run", "--engine", "unix://" + s.path("no-engine"), "--root", s.path("y/b"), "--state-dir", s.path("y/state"), "--lock-dir", s.path("y/locks"), "--reboot-command", "", "--engine-restart-command", "", "--socket"}
	errs = append(errs,
		s.refused(ctx, "conflict", "host run, a socket that another listens at", s.command(append(host, p.At())...)),
		s.refused(ctx, "precondition", "host run, a file where its socket is to be", s.command(append(host, file)...)))
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		errs = append(errs, fmt.Errorf("a file was taken away for a socket: %q, %w", b, err))
	}
	c, err := pool.Dial(ctx, p.At())
	if err == nil {
		_, err = c.Echo(ctx, "still there?")
		_ = c.Close()
	}
	return errors.Join(append(errs, err, p.Stop(ctx))...)
}

// peers: users who may not ask. The sockets are opened to all first, as an
// operator's mistake would: the kernel tells who asks.
func (s *show) peers(ctx context.Context) error {
	as := func(args ...string) *exec.Cmd {
		cmd := s.command(args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return cmd
	}
	p, host, drone := s.path("fine/socket"), s.path("host.sock"), s.path("drone/drone.sock")
	var errs []error
	errs = append(errs, s.refused(ctx, "denied", "another user, host's socket", as("host", "status", "--socket", host)))
	for _, sock := range []string{p, host, drone} {
		errs = append(errs, os.Chmod(sock, 0o666)) //nolint:gosec // a mistake, to be seen
	}
	errs = append(errs,
		s.refused(ctx, "denied", "another user, pool's socket open to all", as("pool", "get", "--socket", p)),
		s.refused(ctx, "denied", "another user, host's socket open to all", as("host", "drain", "--socket", host)),
		s.refused(ctx, "denied", "another user, drone's socket open to all", as("drone", "drain", "--dir", s.path("drone"))))
	return errors.Join(errs...)
}
