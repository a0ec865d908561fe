// Package systemd shows a bot as a service: the unit that the bootstrap script
// installs, under a systemd that is process 1 of a Debian of its own.
package systemd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

const (
	unit    = "skep-bot.service"
	botID   = "service-1"
	botDir  = "/srv/skep-bot"
	account = "skepbot"
)

// backBound is from a kill -9 to a connected bot.
var backBound = form.Of(10*time.Second, 30*time.Second)

type show struct {
	dir, skep, url, admin string
	api                   *client.Client
	c                     *container
	cloud                 *cloud
}

// Main runs the demonstration and returns an exit code. SKEP_SHOW_ROOT names a
// Debian with systemd and wget to use instead of a new one; it is changed.
func Main(args []string) int {
	flags := flag.NewFlagSet("systemd", flag.ExitOnError)
	_ = flags.Parse(args)
	dir, err := os.MkdirTemp("", "skep-systemd-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = (&show{dir: dir}).run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show systemd:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(10*time.Minute, 30*time.Minute))
	defer cancel()
	if os.Geteuid() != 0 {
		return errors.New("BLOCKED: a container with systemd needs root")
	}
	for _, name := range []string{"systemd-nspawn", "nsenter"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("BLOCKED: %w; on Debian: apt-get install debootstrap systemd-container", err)
		}
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	root := os.Getenv("SKEP_SHOW_ROOT")
	if root == "" {
		root = filepath.Join(s.dir, "root")
		start := time.Now()
		if err := install(ctx, root); err != nil {
			return err
		}
		fmt.Printf("a Debian with systemd, after %v\n", time.Since(start).Round(time.Second))
	}
	if s.admin, err = s.token("--scope", "admin", "--name", "a"); err != nil {
		return err
	}
	if s.cloud, err = newCloud(); err != nil {
		return err
	}
	defer s.cloud.close()
	conf := filepath.Join(s.dir, "config")
	if err := errors.Join(os.Mkdir(conf, 0o755), os.WriteFile(filepath.Join(conf, "bots.cfg"), []byte(s.cloud.botsCfg()), 0o644)); err != nil { //nolint:gosec // no secret
		return err
	}
	f, err := fleet.Start(ctx, "", s.skep, "server", "--listen", s.cloud.server, "--state-dir", filepath.Join(s.dir, "state"), "--config", conf)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop()) }()
	s.url = f.URL
	if s.api, err = client.New(client.Options{Server: s.url, Token: s.admin}); err != nil {
		return err
	}
	start := time.Now()
	if s.c, err = boot(ctx, root, filepath.Join(s.dir, "console.log")); err != nil {
		return err
	}
	defer s.c.close()
	fmt.Printf("systemd is process 1 after %v\n", time.Since(start).Round(time.Millisecond))
	for _, step := range []func(context.Context) error{s.born, s.killed, s.hung, s.outOfMemory, s.drained, s.terminated, s.machine} {
		if err := step(ctx); err != nil {
			journal, _ := s.c.run(ctx, "", "journalctl", "-u", unit, "-n", "40", "--no-pager", "-o", "cat")
			return fmt.Errorf("%w\njournal:\n%s", err, journal)
		}
	}
	return nil
}

func (s *show) token(args ...string) (string, error) {
	out, err := exec.Command(s.skep, append([]string{"token", "create", "--state-dir", filepath.Join(s.dir, "state")}, args...)...).Output()
	return strings.TrimSpace(string(out)), err
}

func (s *show) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+s.admin)
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", strings.SplitN(path, "?", 2)[0], res.Status)
	}
	return io.ReadAll(res.Body)
}

// born installs the service as its documentation says, for an account without
// rights.
func (s *show) born(ctx context.Context) error {
	boot, err := s.token("--bootstrap", "--name", "b", "--bot-id", botID, "--count", "1", "--expires", "1h")
	if err != nil {
		return err
	}
	script, err := s.get(ctx, "/bootstrap?tok="+boot)
	if err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", "sh", "-c", "id "+account+" >/dev/null 2>&1 || useradd --system --home-dir /nonexistent "+account+"; rm -rf "+botDir); err != nil {
		return err
	}
	flags := []string{"sh", "-s", "--", "--service", "--dir", botDir, "--id", botID, "--user", account}
	printed, err := s.c.run(ctx, string(script), append(flags, "--print")...)
	if err != nil {
		return err
	}
	start := time.Now()
	if _, err := s.c.run(ctx, string(script), flags...); err != nil {
		return err
	}
	installed, err := s.c.run(ctx, "", "cat", "/etc/systemd/system/"+unit)
	if err != nil || installed != printed {
		return fmt.Errorf("installed is something else than --print shows: %w\n%s", err, installed)
	}
	out, err := s.c.run(ctx, "", "sh", "-c", "systemd-analyze verify /etc/systemd/system/"+unit+" 2>&1")
	if err != nil || out != "" {
		return fmt.Errorf("systemd-analyze verify: %q, %w", out, err)
	}
	fmt.Println("systemd-analyze verify has nothing to say of the unit")
	if _, err := s.connected(ctx, ""); err != nil {
		return err
	}
	if got := s.c.property(ctx, "ActiveState"); got != "active" {
		return fmt.Errorf("the unit is %q", got)
	}
	fmt.Printf("installed, ready by sd_notify and connected after %v, as %s\n", time.Since(start).Round(time.Millisecond), account)
	status, err := s.c.run(ctx, "", "cat", "/proc/"+s.c.property(ctx, "MainPID")+"/status")
	if err != nil || !strings.Contains(status, "NoNewPrivs:\t0") {
		return fmt.Errorf("sudo would not work from this unit: %w\n%s", err, status)
	}
	fmt.Println("its processes may gain rights, so that sudo -n works")
	return s.task(ctx, "echo hello", "hello\n", 0)
}

// killed ends the bot as nothing may.
func (s *show) killed(ctx context.Context) error {
	b, err := s.connected(ctx, "")
	if err != nil {
		return err
	}
	pid, err := s.c.outside(s.c.property(ctx, "MainPID"))
	if err != nil {
		return err
	}
	start := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	if _, err := s.connected(ctx, b.SessionId); err != nil {
		return err
	}
	took := time.Since(start)
	fmt.Printf("kill -9 of the bot: connected again after %v   bound %v\n", took.Round(time.Millisecond), backBound)
	if took > backBound {
		return errors.New("that is too late")
	}
	return nil
}

// hung stops the bot, as a bug may: it lives and does nothing. The unit's
// watchdog waits for minutes; here a drop-in makes it wait less.
func (s *show) hung(ctx context.Context) error {
	const wait = 3 * time.Second
	line := fmt.Sprintf("mkdir -p /run/systemd/system/%[1]s.d && printf '[Service]\\nWatchdogSec=%[2]d\\n' >/run/systemd/system/%[1]s.d/show.conf && systemctl daemon-reload && systemctl kill --signal=SIGKILL --kill-whom=main %[1]s",
		unit, int(wait.Seconds()))
	b, err := s.connected(ctx, "")
	if err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", "sh", "-c", line); err != nil { // the next one has the short watchdog
		return err
	}
	if b, err = s.connected(ctx, b.SessionId); err != nil {
		return err
	}
	main, restarts := s.c.property(ctx, "MainPID"), s.c.property(ctx, "NRestarts")
	pid, err := s.c.outside(main)
	if err != nil {
		return err
	}
	// It is left alone by the watchdog as long as it does its work.
	for end := time.Now().Add(2 * wait); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now := s.c.property(ctx, "MainPID"); now != main {
			return fmt.Errorf("the watchdog ended a bot that is well: main process %s, then %s", main, now)
		}
	}
	start := time.Now()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	if _, err := s.connected(ctx, b.SessionId); err != nil {
		return fmt.Errorf("after SIGSTOP: %w", err)
	}
	took := time.Since(start)
	if now := s.c.property(ctx, "NRestarts"); now == restarts {
		return errors.New("the unit was not restarted")
	}
	fmt.Printf("a stopped bot (SIGSTOP), watchdog of %v: connected again after %v   bound %v\n", wait, took.Round(time.Millisecond), wait+backBound)
	if took > wait+backBound {
		return errors.New("that is too late")
	}
	return nil
}

// outOfMemory lets a task be ended for its memory: that is the task's trouble.
func (s *show) outOfMemory(ctx context.Context) error {
	main, restarts := s.c.property(ctx, "MainPID"), s.c.property(ctx, "NRestarts")
	const group = "/sys/fs/cgroup/memory"
	v1 := false
	if _, err := os.Stat(group + "/cgroup.procs"); err == nil {
		v1 = true
	}
	const hungry = "sleep 2; x=0123456789abcdef; while :; do x=$x$x; done"
	if !v1 {
		if _, err := s.c.run(ctx, "", "systemctl", "set-property", "--runtime", unit, "MemoryMax=256M", "MemorySwapMax=0"); err != nil {
			return err
		}
		if err := s.task(ctx, hungry, "", -9); err != nil {
			return err
		}
	} else {
		dir := fmt.Sprintf("%s/skep-show-%d", group, os.Getpid())
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		defer os.Remove(dir)
		if err := os.WriteFile(dir+"/memory.limit_in_bytes", []byte("67108864"), 0); err != nil {
			return err
		}
		go func() { // the task sleeps before it eats
			for end := time.Now().Add(backBound); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
				for _, f := range all {
					if data, _ := os.ReadFile(f); string(data) == "sh\x00-c\x00"+hungry+"\x00" {
						_ = os.WriteFile(dir+"/cgroup.procs", []byte(filepath.Base(filepath.Dir(f))), 0)
					}
				}
			}
		}()
		if err := s.task(ctx, hungry, "", -9); err != nil {
			return err
		}
		control, _ := os.ReadFile(dir + "/memory.oom_control")
		if !strings.Contains(string(control), "oom_kill 1") {
			return fmt.Errorf("the kernel killed nothing: %q", control)
		}
	}
	if got := s.c.property(ctx, "MainPID"); got != main {
		return fmt.Errorf("the bot was restarted: it was process %s, now %s", main, got)
	}
	if got := s.c.property(ctx, "NRestarts"); got != restarts || s.c.property(ctx, "ActiveState") != "active" {
		return fmt.Errorf("the unit restarted %s times, was %s", got, restarts)
	}
	how := "the unit's own limit"
	if v1 {
		how = "a limit of the memory controller, version 1"
	}
	fmt.Printf("a task ended by the kernel for its memory (%s): the unit runs on\n", how)
	return s.task(ctx, "echo still here", "still here\n", 0)
}

// drained stops the unit with a task in hand.
func (s *show) drained(ctx context.Context) error {
	cmd := s.command(ctx, "echo begun; sleep 4; echo finished")
	r, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := io.ReadFull(r, make([]byte, len("begun\n"))); err != nil {
		return fmt.Errorf("the task did not begin: %w", err)
	}
	start := time.Now()
	if _, err := s.c.run(ctx, "", "systemctl", "stop", unit); err != nil {
		return err
	}
	took := time.Since(start)
	rest, _ := io.ReadAll(r)
	if err := cmd.Wait(); err != nil || string(rest) != "finished\n" {
		return fmt.Errorf("the task that ran printed %q: %w", rest, err)
	}
	if got := s.c.property(ctx, "ActiveState") + " " + s.c.property(ctx, "Result"); got != "inactive success" {
		return fmt.Errorf("the unit is %s", got)
	}
	fmt.Printf("systemctl stop with a task in hand: the task finished, the unit ended after %v\n", took.Round(time.Millisecond))
	return nil
}

// terminated lets the server end the bot: then it stays ended.
func (s *show) terminated(ctx context.Context) error {
	b, err := s.connected(ctx, "")
	if err != nil {
		return err
	}
	if _, err := s.c.run(ctx, "", "systemctl", "start", unit); err != nil {
		return err
	}
	if _, err := s.connected(ctx, b.SessionId); err != nil {
		return err
	}
	if _, err := s.api.TerminateBot(ctx, &pb.TerminateRequest{BotId: botID}); err != nil {
		return err
	}
	for end := time.Now().Add(backBound); s.c.property(ctx, "ActiveState") != "inactive"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("the unit did not end with its bot")
		}
	}
	time.Sleep(3 * time.Second) // longer than a restart waits
	if got := s.c.property(ctx, "ActiveState"); got != "inactive" {
		return fmt.Errorf("a terminated bot came back: %s", got)
	}
	fmt.Println("skep terminate: the unit ended and stays so")
	return nil
}

func (s *show) command(ctx context.Context, line string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.skep, "run", "-d", "id="+botID, "--", "sh", "-c", line)
	cmd.Env = append(os.Environ(), "SKEP_SERVER="+s.url, "SKEP_TOKEN="+s.admin)
	return cmd
}

// task runs a line of shell; exit code -9 stands for any way to say that it was
// killed.
func (s *show) task(ctx context.Context, line, want string, code int) error {
	ctx, cancel := context.WithTimeout(ctx, 6*backBound)
	defer cancel()
	out, err := s.command(ctx, line).Output()
	e, failed := errors.AsType[*exec.ExitError](err)
	switch {
	case string(out) != want:
	case code == 0 && err == nil, code != 0 && failed && e.ExitCode() > 128 && e.ExitCode() != 255:
		return nil
	}
	return fmt.Errorf("the task %q printed %q and ended with %w, want %q and %s", line, out, err, want, strconv.Itoa(code))
}

// connected waits until the bot polls as another process than session.
func (s *show) connected(ctx context.Context, session string) (*pb.BotInfo, error) {
	return s.connectedAs(ctx, botID, session)
}

func (s *show) connectedAs(ctx context.Context, id, session string) (*pb.BotInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*backBound)
	defer cancel()
	for {
		b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: id})
		if err == nil && b.SessionId != "" && b.SessionId != session {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the bot did not connect: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
