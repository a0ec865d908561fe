// Package secrets shows that a task cannot get at its bot's credential, or that
// the bot says so: as root, as an unprivileged user, and as one who may not make
// namespaces. decisions.md 11.
package secrets

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// poor is an account that nothing else uses: it needs no name.
const poor = 64999

// kase is one way to run a bot.
type kase struct {
	name  string
	id    string
	start func(*exec.Cmd) // changes how the shell is started that becomes the bot
	want  []string        // isolation
}

func cases() []kase {
	if os.Geteuid() != 0 {
		fmt.Println("NOT TESTED without root: a bot as root, and one that may not make namespaces")
		return []kase{{"unprivileged, with user namespaces", "secret-view", func(*exec.Cmd) {}, []string{"view"}}}
	}
	user := func(c *exec.Cmd) {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: poor, Gid: poor}
	}
	return []kase{
		{"root: tasks are another user", "secret-root", func(*exec.Cmd) {}, []string{"user"}},
		{"unprivileged, with user namespaces", "secret-view", user, []string{"view"}},
		{"unprivileged, without namespaces", "secret-none", func(c *exec.Cmd) {
			// A user namespace in which all ids are as outside, and none below it may
			// be made: the sysctl is the namespace's own.
			all := []syscall.SysProcIDMap{{Size: 65536}}
			c.SysProcAttr.Cloneflags, c.SysProcAttr.UidMappings, c.SysProcAttr.GidMappings = syscall.CLONE_NEWUSER, all, all
			c.SysProcAttr.GidMappingsEnableSetgroups = true
			c.Args = []string{"sh", "-c", ""}
			c.Args[2] = fmt.Sprintf("echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --reuid %d --regid %d --clear-groups sh", poor, poor)
		}, []string{"none"}},
	}
}

type show struct {
	dir, skep, probe, url, admin string
	api                          *client.Client
}

// Main runs the demonstration and returns an exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("secrets", flag.ExitOnError)
	_ = flags.Parse(args)
	dir, err := os.MkdirTemp("", "skep-secrets-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = (&show{dir: dir}).run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show secrets:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(5*time.Minute, 15*time.Minute))
	defer cancel()
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	s.probe = filepath.Join(s.dir, "probe")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := copyFile(s.probe, self); err != nil {
		return err
	}
	if s.admin, err = s.token("--scope", "admin"); err != nil {
		return err
	}
	f, err := fleet.Start(ctx, "", s.skep, "server", "--listen", "127.0.0.1:0", "--state-dir", filepath.Join(s.dir, "state"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Stop()) }()
	s.url = f.URL
	if s.api, err = client.New(client.Options{Server: s.url, Token: s.admin}); err != nil {
		return err
	}
	if pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern"); bytes.HasPrefix(pattern, []byte("|")) {
		fmt.Println("NOT TESTED: core dumps, which this machine gives to a program")
	}
	var errs []error
	for _, k := range cases() {
		if err := s.try(ctx, k); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *show) token(args ...string) (string, error) {
	cmd := exec.Command(s.skep, append([]string{"token", "create", "--state-dir", filepath.Join(s.dir, "state"), "--name", strconv.FormatInt(time.Now().UnixNano(), 36)}, args...)...)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// try lets a bot be born and a task go for its secrets.
func (s *show) try(ctx context.Context, k kase) (err error) {
	home := filepath.Join(s.dir, k.id)
	boot, err := s.token("--bootstrap", "--bot-id", k.id, "--count", "1", "--expires", "1h")
	if err != nil {
		return err
	}
	if err := os.Mkdir(home, 0o755); err != nil { // as open as a careless person makes it
		return err
	}
	if !slices.Contains(k.want, "user") && os.Geteuid() == 0 {
		if err := os.Chown(home, poor, poor); err != nil {
			return err
		}
	}
	log, err := os.Create(filepath.Join(s.dir, k.id+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	line := fmt.Sprintf("ulimit -c unlimited; curl -fsS '%s/bootstrap?tok=%s' | sh -s -- --id %s", s.url, boot, k.id)
	cmd := exec.Command("/bin/sh") // who types the line does not leave it in arguments
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = home, strings.NewReader(line+"\n"), log, log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "SKEP_REBOOT=none", "GOTRACEBACK=crash"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	k.start(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for _, pid := range processes(home) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		_ = cmd.Wait()
		if err != nil {
			text, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("%w\n%s", err, text)
		}
	}()
	b, err := s.connected(ctx, k.id)
	if err != nil {
		return err
	}
	said := isolation(b)
	out, err := s.task(ctx, k.id, s.probe, "probe-secrets", home)
	if err != nil {
		return err
	}
	got := strings.Count(out, "GOT ")
	fmt.Printf("%s: the bot says isolation=%s\n", k.name, said)
	for l := range strings.Lines(out) {
		fmt.Print("  ", l)
	}
	if !slices.Contains(k.want, said) {
		return fmt.Errorf("isolation is %s, want %v", said, k.want)
	}
	if got > 0 && said != "none" {
		return fmt.Errorf("isolation=%s, and the task got %d things", said, got)
	}
	if strings.Contains(out, "GOT the bot's shell") {
		return errors.New("the task may use the bot's shell")
	}
	if !strings.Contains(out, "\ntried ") && !strings.HasPrefix(out, "tried ") {
		return errors.New("the probe did not come to its end")
	}
	return s.outside(ctx, k, home, boot, out)
}

// outside looks at the bot as root can, while a task runs: no secret stands in
// arguments, environments, logs or what is left of killed processes.
func (s *show) outside(ctx context.Context, k kase, home, boot, printed string) error {
	credential, err := os.ReadFile(filepath.Join(home, bot.CredentialFile))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(home, bot.BootstrapFile)); err == nil {
		return errors.New("the bootstrap token is still there")
	}
	own := token.Find(credential)
	if own == nil {
		return errors.New("the credential holds no token")
	}
	task := exec.CommandContext(ctx, s.skep, "run", "--wait-for-capacity", "-d", "id="+k.id, "--", "sh", "-c", "echo begun; exec sleep 100")
	task.Env = append(os.Environ(), "SKEP_SERVER="+s.url, "SKEP_TOKEN="+s.admin)
	r, err := task.StdoutPipe()
	if err != nil {
		return err
	}
	if err := task.Start(); err != nil {
		return err
	}
	defer func() { _ = task.Process.Kill(); _ = task.Wait() }()
	if _, err := io.ReadFull(r, make([]byte, len("begun\n"))); err != nil {
		return fmt.Errorf("the task did not begin: %w", err)
	}
	pids := processes(home)
	var leaks []string
	check := func(where string, data []byte) {
		if bytes.Contains(data, own) || bytes.Contains(data, []byte(boot)) {
			leaks = append(leaks, where)
		}
	}
	check("the task's output", []byte(printed))
	for _, pid := range pids {
		for _, f := range []string{"cmdline", "environ"} {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
			check(fmt.Sprintf("%s of process %d", f, pid), data)
		}
	}
	for _, pid := range pids { // those who started them go first, or they end by themselves
		_ = syscall.Kill(pid, syscall.SIGABRT)
	}
	for end := time.Now().Add(10 * time.Second); len(alive(pids)) > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	files, cores := 0, 0
	err = filepath.WalkDir(home, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Base(path) == bot.CredentialFile {
			return nil //nolint:nilerr // it went away
		}
		files++
		data, _ := os.ReadFile(path)
		check(path, data)
		if strings.HasPrefix(filepath.Base(path), "core") {
			cores++
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(leaks) > 0 {
		return fmt.Errorf("a secret stands in %s", strings.Join(leaks, ", "))
	}
	if cores > 0 {
		return fmt.Errorf("%d processes left their memory in the bot's directory", cores)
	}
	fmt.Printf("  from outside: %d processes aborted with a task in hand; no secret in arguments, environments and %d files, no core dump\n", len(pids), files)
	return nil
}

func alive(pids []int) []int {
	return slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return syscall.Kill(pid, 0) != nil })
}

// processes are those that run the bot of a directory.
func processes(home string) []int {
	var pids []int
	all, _ := os.ReadDir("/proc")
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && bytes.HasPrefix(cmd, []byte(home+"/swarming_bot")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (s *show) connected(ctx context.Context, id string) (*pb.BotInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, form.Of(20*time.Second, time.Minute))
	defer cancel()
	for {
		b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: id})
		if err == nil && b.State != "" {
			return b, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the bot did not connect: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *show) task(ctx context.Context, id string, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.skep, append([]string{"run", "--wait-for-capacity", "-d", "id=" + id, "--"}, argv...)...)
	cmd.Env = append(os.Environ(), "SKEP_SERVER="+s.url, "SKEP_TOKEN="+s.admin)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("the task: %w\n%s%s", err, out, &errOut)
	}
	return string(out), err
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
