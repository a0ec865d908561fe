// Package cage shows that what a bot and its tasks may take is really limited,
// and that nothing of them survives: package host/bot on this kernel.
package cage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/host/bot"
	"github.com/skepdev/skep/internal/show/form"
)

// killBound is how long a fork bomb may take to be gone after its kill.
var killBound = form.Of(2*time.Second, 10*time.Second)

const (
	bombSize     = 100             // processes that it must have made by then
	bombPatience = 2 * time.Minute // for it to make them
)

// Main runs the demonstration and returns an exit code.
func Main([]string) int {
	dir, err := os.MkdirTemp("", "skep-cage-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = run(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show cage:", err)
		return 1
	}
	return 0
}

func run(dir string) error {
	form.Say()
	rounds := form.Of(20, 3)
	srv, err := serve()
	if err != nil {
		return err
	}
	defer srv.Close()
	s := bot.NewStarter(srv.Client(), srv.URL)
	s.CacheDir = filepath.Join(dir, "code")
	c := &cage{dir: dir, starter: s}
	before := emptyCgroups()
	return errors.Join(c.memory(), c.cpu(), c.pids(), c.io(), c.bombs(rounds), noCgroups(before))
}

// serve hands out this program as bot code: a script that runs it as prisoner.
func serve() (*httptest.Server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	code := fmt.Appendf(nil, "#!/bin/sh\nexec '%s' prisoner $SHOW_CAGE\n", self)
	sum := sha256.Sum256(code)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bot_code", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/v/"+hex.EncodeToString(sum[:]), http.StatusFound)
	})
	mux.HandleFunc("GET /v/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(code) })
	return httptest.NewServer(mux), nil
}

type cage struct {
	dir     string
	n       int
	starter *bot.Starter
}

// start starts a bot that does one thing, and returns what tells of it.
func (c *cage) start(what string, r *specs.LinuxResources) (bot.Bot, bot.Config, error) {
	c.n++
	cfg := bot.Config{BotID: what, WorkDirectory: filepath.Join(c.dir, fmt.Sprint(what, c.n)), Resources: r, Env: []string{"SHOW_CAGE=" + what}, Grace: time.Millisecond}
	if err := os.Mkdir(cfg.WorkDirectory, 0o755); err != nil {
		return nil, cfg, err
	}
	b, err := c.starter.Start(cfg)
	return b, cfg, err
}

// said waits for a line of the bot that begins with word, and returns its rest.
func said(cfg bot.Config, word string, limit time.Duration) (string, error) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		text, _ := os.ReadFile(cfg.LogFile())
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, word+" "); ok && strings.HasSuffix(line, "\n") {
				return strings.TrimSpace(rest), nil
			}
		}
	}
	text, _ := os.ReadFile(cfg.LogFile())
	return "", fmt.Errorf("%s: it did not say %q within %v: %.300s", cfg.BotID, word, limit, text)
}

// memory: a process that takes more than its limit is killed, its host is not.
func (c *cage) memory() error {
	limit := int64(64 << 20)
	b, cfg, err := c.start("memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}})
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	defer func() { _ = b.TerminateOrKill() }()
	end := make(chan error, 1)
	go func() { end <- b.Wait() }()
	select {
	case err = <-end:
	case <-time.After(60 * time.Second):
		return errors.New("memory: 256 MiB were taken under a limit of 64 MiB")
	}
	text, _ := os.ReadFile(cfg.LogFile())
	lines := strings.Fields(string(text))
	if e, ok := errors.AsType[*bot.ExitError](err); !ok || e.Code != -9 {
		return fmt.Errorf("memory: it ended by itself and not by the kernel: %w", err)
	}
	got, _ := strconv.Atoi(lines[len(lines)-1])
	fmt.Printf("memory  limit 64 MiB: killed by the kernel after %d MiB of 256\n", got)
	if got >= 64 {
		return fmt.Errorf("memory: it got %d MiB", got)
	}
	return nil
}

// cpu: two busy threads under a fifth of a processor.
func (c *cage) cpu() error {
	quota, period := int64(20000), uint64(100000)
	b, cfg, err := c.start("cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}})
	if err != nil {
		return fmt.Errorf("cpu: %w", err)
	}
	defer func() { _ = b.TerminateOrKill() }()
	share, err := said(cfg, "share", 60*time.Second)
	if err != nil {
		return err
	}
	got, _ := strconv.ParseFloat(share, 64)
	fmt.Printf("cpu     limit 0.20 processors: %.2f used by busy threads in 3 s\n", got)
	if got <= 0 || got > 0.25 {
		return fmt.Errorf("cpu: %.2f processors under a limit of 0.20", got)
	}
	return nil
}

// pids: forks fail beyond the limit.
func (c *cage) pids() error {
	b, cfg, err := c.start("pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: 40}})
	if err != nil {
		return fmt.Errorf("pids: %w", err)
	}
	defer func() { _ = b.TerminateOrKill() }()
	started, err := said(cfg, "started", 60*time.Second)
	if err != nil {
		return err
	}
	got, _ := strconv.Atoi(started)
	fmt.Printf("pids    limit 40 with threads: %d of 100 children started\n", got)
	if got < 1 || got > 39 {
		return fmt.Errorf("pids: %d children under a limit of 40", got)
	}
	return nil
}

// io: direct writes to the device under the directory.
func (c *cage) io() error {
	major, minor, err := device(c.dir)
	if err != nil {
		fmt.Println("io      UNPROVEN:", err)
		return nil
	}
	dev := specs.LinuxThrottleDevice{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: major, Minor: minor}, Rate: 2 << 20}
	b, cfg, err := c.start("io", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{dev}}})
	if err != nil {
		return fmt.Errorf("io: %w", err)
	}
	defer func() { _ = b.TerminateOrKill() }()
	took, err := said(cfg, "wrote", 100*time.Second)
	if err != nil {
		return err
	}
	d, err := time.ParseDuration(took)
	if err != nil {
		fmt.Printf("io      UNPROVEN: %s\n", took)
		return nil //nolint:nilerr // it says that the file system cannot write directly
	}
	fmt.Printf("io      limit 2 MiB/s on %d:%d: 8 MiB took %v\n", major, minor, d.Round(10*time.Millisecond))
	if d < 3*time.Second {
		return fmt.Errorf("io: 8 MiB in %v under a limit of 2 MiB/s", d)
	}
	return nil
}

// device returns the whole disk that path lies on: limits are of disks.
func device(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, err
	}
	name := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + name)
	if err != nil {
		return 0, 0, fmt.Errorf("%s is on no disk (%s)", path, name)
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	text, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscanf(string(text), "%d:%d", &major, &minor)
	return major, minor, err
}

// bombs: processes that fork twice, leave their session and ignore SIGTERM.
func (c *cage) bombs(rounds int) error {
	var worst time.Duration
	most := 0
	for range rounds {
		b, cfg, err := c.start("bomb", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: 400}})
		if err != nil {
			return fmt.Errorf("bomb: %w", err)
		}
		mark := "SKEP_BOMB=" + cfg.WorkDirectory
		// However slow the machine is today: what is shown is that none survives. Each
		// look takes from the bomb's share of it.
		n := 0
		for end := time.Now().Add(bombPatience); n < bombSize && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			n = len(marked(mark))
		}
		most = max(most, n)
		begun := time.Now()
		if err := b.TerminateOrKill(); err != nil {
			return fmt.Errorf("bomb: %w", err)
		}
		took := time.Since(begun)
		worst = max(worst, took)
		if left := marked(mark); len(left) > 0 {
			for _, pid := range left {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			return fmt.Errorf("bomb: %d processes, and %d of them survive", n, len(left))
		}
		if n < bombSize {
			return fmt.Errorf("bomb: it made %d processes within %v, want %d: this shows nothing", n, bombPatience, bombSize)
		}
	}
	fmt.Printf("bomb    %d fork bombs with double forks, up to %d processes each: 0 survivors, killed within %v (bound %v)\n", rounds, most, worst.Round(time.Millisecond), killBound)
	if worst > killBound {
		return fmt.Errorf("bomb: it took %v", worst)
	}
	return nil
}

// marked returns the live processes with kv in their environment.
func marked(kv string) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		env, err := os.ReadFile(filepath.Join(d, "environ"))
		if err != nil || !strings.Contains("\x00"+string(env), "\x00"+kv+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// emptyCgroups are those of bots that have no process.
func emptyCgroups() (left []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/skep-bot-*", "/sys/fs/cgroup/*/skep-bot-*", "/sys/fs/cgroup/*/*/*/skep-bot-*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			if text, err := os.ReadFile(filepath.Join(d, "cgroup.procs")); err == nil && len(text) == 0 {
				left = append(left, d)
			}
		}
	}
	return left
}

// noCgroups checks that there are none but those that were there before.
func noCgroups(before []string) error {
	left := slices.DeleteFunc(emptyCgroups(), func(d string) bool { return slices.Contains(before, d) })
	if len(left) > 0 {
		return fmt.Errorf("empty cgroups are left: %v", left)
	}
	fmt.Println("left    no cgroup")
	return nil
}

// Prisoner is what the bots of this demonstration do.
func Prisoner(args []string) int {
	if len(args) != 1 {
		return 2
	}
	switch args[0] {
	case "memory":
		var all [][]byte
		for i := range 256 {
			b := make([]byte, 1<<20)
			for j := range b {
				b[j] = byte(j)
			}
			all = append(all, b)
			fmt.Println(i + 1)
		}
		_ = all
	case "cpu":
		for range 2 {
			go func() {
				for { //nolint:staticcheck // it is to be busy
				}
			}()
		}
		begun := time.Now()
		time.Sleep(3 * time.Second)
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		fmt.Println("share", time.Duration(u.Utime.Nano()+u.Stime.Nano()).Seconds()/time.Since(begun).Seconds())
	case "pids":
		n := 0
		for range 100 {
			if exec.CommandContext(context.Background(), "/bin/sleep", "1000").Start() != nil {
				break
			}
			n++
		}
		fmt.Println("started", n)
		time.Sleep(time.Minute)
	case "io":
		fmt.Println("wrote", direct())
	case "bomb":
		wd, _ := os.Getwd()
		_ = os.Setenv("SKEP_BOMB", wd)
		script := `trap '' TERM HUP INT; while :; do (trap '' TERM; (setsid sleep 300 &) &) ; done`
		_ = unix.Exec("/bin/sh", []string{"sh", "-c", script}, os.Environ())
	}
	return 0
}

// direct writes 8 MiB past the page cache.
func direct() string {
	fd, err := unix.Open("out", unix.O_CREAT|unix.O_WRONLY|unix.O_DIRECT, 0o600)
	if err != nil {
		return "this file system has no direct writes: " + err.Error()
	}
	defer unix.Close(fd)
	buf, err := unix.Mmap(-1, 0, 256<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err.Error()
	}
	begun := time.Now()
	for range 8 << 20 / len(buf) {
		if _, err := unix.Write(fd, buf); err != nil {
			return err.Error()
		}
	}
	return time.Since(begun).String()
}
