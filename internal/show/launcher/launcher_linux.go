// Package launcher shows that skep host keeps ten containers with real bots
// while containers, bots, the engine and the launcher itself are killed at
// random under a load of tasks.
package launcher

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skepdev/skep"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

const (
	slots    = 10
	look     = 25 * time.Millisecond
	hostName = "show"
)

var (
	// The short form sees about a dozen refills: their 99th percentile is the longest.
	refillBound = form.Of(2*time.Second, 20*time.Second)
	patience    = form.Of(30*time.Second, 2*time.Minute) // for each thing that is waited for
)

type show struct {
	dir, bridge, address string
	skep                 string
	rng                  *rand.Rand

	engine   *docker.Engine
	runtime  *proc.Process // containerd, a service of its own as systems install it
	dockerd  *proc.Process
	launcher *proc.Process
	server   *fleet.Fleet
	api      *client.Client

	mu     sync.Mutex
	killed map[string][]time.Time // by bot id
	kills  map[string]int         // by what
	seen   map[string]bool        // containers, by id
	refill []time.Duration
	loads  int

	engines int // that were killed
}

// Main runs the demonstration and returns an exit code.
func Main(args []string) int {
	flags := flag.NewFlagSet("launcher", flag.ExitOnError)
	length := flags.Duration("for", 10*time.Minute, "how long to kill")
	seed := flags.Uint64("seed", uint64(time.Now().UnixNano()), "of the random moments")
	_ = flags.Parse(args)
	if form.Short() {
		*length = 45 * time.Second
	}
	if os.Geteuid() != 0 || !installed("dockerd", "docker", "ip", "busybox") {
		fmt.Fprintln(os.Stderr, "show launcher: SKIPPED: needs root, dockerd, docker, ip and busybox")
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "docker") {
			return 1
		}
		return 0
	}
	form.Say()
	fmt.Printf("seed %d\n", *seed)
	s := &show{rng: rand.New(rand.NewPCG(*seed, 0)), killed: map[string][]time.Time{}, kills: map[string]int{}, seen: map[string]bool{}}
	err := s.run(*length)
	err = errors.Join(err, s.clean())
	if err != nil {
		fmt.Fprintln(os.Stderr, "show launcher:", err)
		return 1
	}
	fmt.Println("nothing is left\npassed")
	return 0
}

func installed(names ...string) bool {
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			return false
		}
	}
	return true
}

func (s *show) run(length time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), length+form.Of(5*time.Minute, 20*time.Minute))
	defer cancel()
	if s.dir, err = os.MkdirTemp("", "skep-launcher-"); err != nil {
		return err
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if err := s.network(); err != nil {
		return err
	}
	if s.engine, err = docker.New("unix://"+s.socket(), 10*time.Second); err != nil {
		return err
	}
	if err := errors.Join(s.startRuntime(), s.startEngine(), s.ready(ctx, s.engine.Ping)); err != nil {
		return err
	}
	build := exec.Command("deploy/bot-image/build.sh", "bin/skep-bot", "skep-bot:show")
	build.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.socket())
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build image: %w: %s", err, out)
	}
	if err := s.serve(ctx); err != nil {
		return err
	}
	if err := s.settings(slots); err != nil {
		return err
	}
	if err := s.startLauncher(); err != nil {
		return err
	}
	begun := time.Now()
	if err := s.await(ctx, slots); err != nil {
		return err
	}
	fmt.Printf("%d containers run %v after the launcher's start\n", slots, time.Since(begun).Round(time.Millisecond))
	if err := s.awaitBots(ctx); err != nil {
		return err
	}
	if err := s.chaos(ctx, length); err != nil {
		return err
	}
	return s.ending(ctx)
}

func (s *show) socket() string   { return filepath.Join(s.dir, "docker.sock") }
func (s *show) hostDoor() string { return filepath.Join(s.dir, "host.sock") }

// network makes a bridge that the containers reach the server over.
func (s *show) network() error {
	s.bridge = fmt.Sprintf("sksh%d", os.Getpid()%100000)
	net := fmt.Sprintf("172.%d.%d", 20+s.rng.IntN(10), s.rng.IntN(256))
	s.address = net + ".1"
	return errors.Join(run("ip", "link", "add", "name", s.bridge, "type", "bridge"),
		run("ip", "addr", "add", s.address+"/24", "dev", s.bridge), run("ip", "link", "set", s.bridge, "up"))
}

func run(words ...string) error {
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out)
	}
	return nil
}

func (s *show) start(log string, words ...string) (*proc.Process, error) {
	path, err := exec.LookPath(words[0])
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(s.dir, log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	return proc.Start(&proc.Cmd{Path: path, Args: words, Env: os.Environ(), Files: []*os.File{nil, out, out}})
}

func (s *show) startRuntime() (err error) {
	conf := filepath.Join(s.dir, "containerd.toml")
	if err := os.WriteFile(conf, []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"), 0o600); err != nil {
		return err
	}
	s.runtime, err = s.start("containerd.log", "containerd", "--config", conf, "--root", filepath.Join(s.dir, "cd/root"), "--state", filepath.Join(s.dir, "cd/state"), "--address", s.runtimeSocket())
	return err
}

func (s *show) runtimeSocket() string { return filepath.Join(s.dir, "cd.sock") }

func (s *show) startEngine() (err error) {
	conf := filepath.Join(s.dir, "daemon.json")
	if err := os.WriteFile(conf, []byte("{}"), 0o600); err != nil {
		return err
	}
	// One that was killed leaves its own, and refuses when the id is another's now.
	if err := os.Remove(filepath.Join(s.dir, "docker.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.dockerd, err = s.start("dockerd.log", "dockerd", "--config-file", conf, "--data-root", filepath.Join(s.dir, "data"), "--exec-root", filepath.Join(s.dir, "exec"),
		"--containerd", s.runtimeSocket(), "--pidfile", filepath.Join(s.dir, "docker.pid"), "--host", "unix://"+s.socket(), "--bridge", s.bridge,
		"--iptables=false", "--ip6tables=false", "--ip-masq=false", "--live-restore")
	return err
}

func (s *show) startLauncher() (err error) {
	s.launcher, err = s.start("host.log", append([]string{s.skep, "host", "run", "--socket", s.hostDoor()}, s.flags()...)...)
	return err
}

func (s *show) flags() []string {
	return []string{
		"--engine", "unix://" + s.socket(), "--image", "skep-bot:show", "--refresh-image", "0", "--settings", filepath.Join(s.dir, "settings.json"),
		"--root", filepath.Join(s.dir, "b"), "--state-dir", filepath.Join(s.dir, "host"), "--lock-dir", filepath.Join(s.dir, "locks"),
		"--token-dir", filepath.Join(s.dir, "tokens"), "--ca-file", filepath.Join(s.dir, "state/tls/ca.pem"), "--swarming-server", s.server.URL,
		"--hostname", hostName, "--max-host-uptime", "0", "--reboot-command", "", "--engine-restart-command", "",
	}
}

func (s *show) settings(n int) error {
	tmp := filepath.Join(s.dir, "settings.tmp")
	b, err := json.Marshal(map[string]int{"num_containers": n})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(tmp, b, 0o600), os.Rename(tmp, filepath.Join(s.dir, "settings.json")))
}

func (s *show) serve(ctx context.Context) error {
	state := filepath.Join(s.dir, "state")
	token := func(args ...string) (string, error) {
		out, err := exec.Command(s.skep, append([]string{"token", "create", "--state-dir", state}, args...)...).Output()
		return strings.TrimSpace(string(out)), err
	}
	admin, err := token("--scope", "admin", "--name", "admin")
	if err != nil {
		return err
	}
	tokens := filepath.Join(s.dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return err
	}
	for i := range slots {
		id := fmt.Sprintf("%03d", i)
		tok, err := token("--scope", "bot", "--bot-id", hostName+"--"+id, "--name", "bot"+id)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tokens, id+".tok"), []byte(tok), 0o600); err != nil {
			return err
		}
	}
	if s.server, err = fleet.Start(ctx, "", s.skep, "server", "--listen", s.address+":0", "--tls-self-signed", "--state-dir", state); err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(state, "tls/ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	s.api, err = client.New(client.Options{Server: s.server.URL, Token: admin, RootCAs: roots})
	return err
}

// ready waits until ask has no error.
func (s *show) ready(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(look):
		}
	}
}

// running lists the containers that run, by slot.
func (s *show) running(ctx context.Context) (map[string]engine.Container, error) {
	list, err := s.engine.List(ctx, map[string]string{"dev.skep.launcher": "skep"})
	by := map[string]engine.Container{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range list {
		s.seen[c.ID] = true
		if c.State == engine.Running {
			by[c.Name] = c
		}
	}
	return by, err
}

func (s *show) await(ctx context.Context, n int) error {
	return s.ready(ctx, func(ctx context.Context) error {
		by, err := s.running(ctx)
		if err == nil && len(by) != n {
			err = fmt.Errorf("%d containers run, want %d", len(by), n)
		}
		return err
	})
}

func (s *show) awaitBots(ctx context.Context) error {
	return s.ready(ctx, func(ctx context.Context) error {
		res, err := s.api.ListBots(ctx, &pb.BotsRequest{IsDead: pb.NullableBool_FALSE})
		if err == nil && len(res.Items) < slots {
			err = fmt.Errorf("%d bots are connected, want %d", len(res.Items), slots)
		}
		return err
	})
}

// answers says whether the launcher does.
func (s *show) answers() bool {
	c, err := net.DialTimeout("unix", s.hostDoor(), time.Second)
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// watch measures how long slots are empty, from the moment when the slot is and
// both the engine and the launcher answer.
func (s *show) watch(ctx context.Context) {
	empty := map[string]time.Time{}
	for ctx.Err() == nil {
		asked := time.Now()
		by, err := s.running(ctx)
		both := err == nil && s.answers()
		for i := range slots {
			name := fmt.Sprintf("%03d", i)
			_, runs := by[name]
			since, was := empty[name]
			switch {
			case !both:
				delete(empty, name)
			case runs && was:
				took := time.Since(since)
				s.mu.Lock()
				s.refill = append(s.refill, took)
				s.mu.Unlock()
				if took > refillBound {
					fmt.Printf("slot %s was empty for %v until %s\n", name, took.Round(time.Millisecond), time.Now().Format(time.TimeOnly))
				}
				delete(empty, name)
			case !runs && !was:
				empty[name] = asked
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(look):
		}
	}
}

func (s *show) chaos(ctx context.Context, length time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var parts sync.WaitGroup
	parts.Go(func() { s.watch(ctx) })
	loaded, stop := context.WithTimeout(ctx, length)
	defer stop()
	var tasks []string
	var failed error
	parts.Go(func() { tasks, failed = s.load(loaded) })
	for loaded.Err() == nil {
		pause := 1500*time.Millisecond + time.Duration(s.rng.IntN(3000))*time.Millisecond
		select {
		case <-loaded.Done():
			continue
		case <-time.After(pause):
		}
		if err := s.kill(ctx); err != nil {
			return err
		}
	}
	if err := s.await(ctx, slots); err != nil {
		return err
	}
	cancel()
	parts.Wait()
	if failed != nil {
		return failed
	}
	fmt.Printf("killed: %v\n", s.kills)
	slices.Sort(s.refill)
	n := len(s.refill)
	if n == 0 {
		return errors.New("no slot was ever empty")
	}
	p99 := s.refill[(n*99+99)/100-1]
	fmt.Printf("%d refills: p50 %v, p99 %v, longest %v (bound %v)\n", n, s.refill[n/2].Round(time.Millisecond), p99.Round(time.Millisecond), s.refill[n-1].Round(time.Millisecond), refillBound)
	judged := s.judge(context.WithoutCancel(ctx), tasks)
	if p99 > refillBound {
		judged = errors.Join(judged, fmt.Errorf("refills take %v at the 99th percentile, the bound is %v", p99, refillBound))
	}
	return judged
}

// kill ends something, at random.
func (s *show) kill(ctx context.Context) error {
	switch n := s.rng.IntN(20); {
	case n == 0 || s.kills["engine"] == 0 && s.kills["container"] > 1: // once at least
		s.kills["engine"]++
		s.engines++
		_ = s.dockerd.Kill()
		s.dockerd.Wait()
		if err := s.startEngine(); err != nil {
			return err
		}
		return s.ready(ctx, s.engine.Ping)
	case n <= 3:
		s.kills["launcher"]++
		_ = s.launcher.Kill()
		s.launcher.Wait()
		return s.startLauncher()
	}
	s.killOne(ctx)
	return nil
}

// killOne ends a container or its bot, if the engine says which there are. One
// that was just started again may not; who waits for the slots tells when it
// never does.
func (s *show) killOne(ctx context.Context) {
	by, err := s.running(ctx)
	if err != nil || len(by) == 0 {
		fmt.Printf("nothing to kill: %d containers, %v\n", len(by), err)
		return
	}
	names := make([]string, 0, len(by))
	for n := range by {
		names = append(names, n)
	}
	slices.Sort(names)
	name := names[s.rng.IntN(len(names))]
	c, err := s.engine.Inspect(ctx, by[name].ID)
	if skep.KindOf(err) == skep.NotFound || err == nil && c.PID == 0 {
		return // it ended by itself
	}
	if err != nil {
		fmt.Printf("nothing to kill: %v\n", err)
		return
	}
	pid, what := c.PID, "container"
	if s.rng.IntN(2) == 0 {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, f := range strings.Fields(threads(pid, b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pid, what = n, "bot"
			}
		}
	}
	s.mu.Lock()
	s.kills[what]++
	id := hostName + "--" + name
	s.killed[id] = append(s.killed[id], time.Now())
	s.mu.Unlock()
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// threads adds the children of a process's other threads.
func threads(pid int, children []byte) string {
	all := string(children)
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all += " " + string(b)
	}
	return all
}

// task makes a task that sleeps.
func (s *show) task(ctx context.Context, seconds string) (id string, err error) {
	s.mu.Lock()
	s.loads++
	n := s.loads
	s.mu.Unlock()
	res, err := s.api.NewTask(ctx, &pb.NewTaskRequest{Name: fmt.Sprintf("load %d", n), RequestUuid: fmt.Sprintf("%d-%d", os.Getpid(), n), Priority: 100, TaskSlices: []*pb.TaskSlice{{
		ExpirationSecs: 600,
		Properties: &pb.TaskProperties{
			Command: []string{"sh", "-c", "sleep " + seconds + "; echo done"}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30,
			Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}},
		},
	}}})
	return res.GetTaskId(), err
}

// load keeps tasks coming until ctx ends, and returns those that it made.
func (s *show) load(ctx context.Context) (ids []string, err error) {
	for n := 0; ctx.Err() == nil; n++ {
		id, err := s.task(ctx, fmt.Sprintf("%d.%d", n%3, n%10))
		if err == nil {
			ids = append(ids, id)
		} else if ctx.Err() == nil {
			return ids, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
	return ids, nil
}

// judge waits for every task and says how each ended and why.
func (s *show) judge(ctx context.Context, ids []string) error {
	ends := map[string]int{}
	var bad []error
	for _, id := range ids {
		var res *pb.TaskResultResponse
		err := s.ready(ctx, func(ctx context.Context) (err error) {
			if res, err = s.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: id}); err != nil {
				return err
			}
			if res.State == pb.TaskState_PENDING || res.State == pb.TaskState_RUNNING {
				return fmt.Errorf("task %s is %s", id, res.State)
			}
			return nil
		})
		switch {
		case err != nil:
			bad = append(bad, err)
			ends["unfinished"]++
		case res.State == pb.TaskState_COMPLETED && res.ExitCode == 0:
			ends["by itself"]++
		case s.wasKilled(res):
			ends[res.State.String()+", its bot or container was killed"]++
		default:
			ends[res.State.String()+", nobody killed its bot"]++
			bad = append(bad, fmt.Errorf("task %s on %s ended as %s (exit code %d), and nobody killed its bot", id, res.BotId, res.State, res.ExitCode))
		}
	}
	fmt.Printf("%d tasks: %v\n", len(ids), ends)
	return errors.Join(bad...)
}

func (s *show) wasKilled(res *pb.TaskResultResponse) bool {
	for _, at := range s.killed[res.BotId] {
		if !at.Before(res.StartedTs.AsTime().Add(-time.Second)) && !at.After(res.ModifiedTs.AsTime()) {
			return true
		}
	}
	return false
}

// ending empties the host while its bots have tasks in hand, fills it with
// repeated single passes while containers and bots are killed, and empties it
// again.
func (s *show) ending(ctx context.Context) error {
	var tasks []string
	for range slots {
		id, err := s.task(ctx, "4")
		if err != nil {
			return err
		}
		tasks = append(tasks, id)
	}
	for _, id := range tasks {
		err := s.ready(ctx, func(ctx context.Context) error {
			res, err := s.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: id})
			if err == nil && res.State == pb.TaskState_PENDING {
				err = fmt.Errorf("task %s is %s", id, res.State)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := s.settings(0); err != nil {
		return err
	}
	begun := time.Now()
	if err := s.await(ctx, 0); err != nil {
		return fmt.Errorf("surplus: %w", err)
	}
	fmt.Printf("0 wanted, with %d tasks begun: none runs after %v\n", len(tasks), time.Since(begun).Round(time.Millisecond))
	if err := s.judge(ctx, tasks); err != nil {
		return err
	}
	_ = s.launcher.Terminate()
	s.launcher.Wait()
	return s.passes(ctx)
}

// passes is the host as cron would keep it.
func (s *show) passes(ctx context.Context) error {
	const kills = 5
	if err := s.settings(slots); err != nil {
		return err
	}
	once := func(ctx context.Context, n int) error {
		pass := exec.CommandContext(ctx, s.skep, append([]string{"host", "once", "launch"}, s.flags()...)...)
		if out, err := pass.CombinedOutput(); err != nil {
			return fmt.Errorf("once: %w: %s", err, out)
		}
		by, err := s.running(ctx)
		if err == nil && len(by) != n {
			err = fmt.Errorf("%d containers run, want %d", len(by), n)
		}
		return err
	}
	passes := 0
	repeat := func(n int) error {
		return s.ready(ctx, func(ctx context.Context) error {
			passes++
			return once(ctx, n)
		})
	}
	if err := repeat(slots); err != nil {
		return err
	}
	fmt.Printf("once launch, repeated: %d containers after %d passes\n", slots, passes)
	loaded, stop := context.WithCancel(ctx)
	defer stop()
	var load sync.WaitGroup
	var tasks []string
	var failed error
	load.Go(func() { tasks, failed = s.load(loaded) })
	passes = 0
	clear(s.kills)
	for range kills {
		for range 1 + s.rng.IntN(3) {
			s.killOne(ctx)
		}
		if err := repeat(slots); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second): // as long as bots need to have tasks in hand
		}
	}
	stop()
	load.Wait()
	if failed != nil {
		return failed
	}
	if err := repeat(slots); err != nil {
		return err
	}
	fmt.Printf("killed between passes: %v; %d passes\n", s.kills, passes)
	if err := s.judge(ctx, tasks); err != nil {
		return err
	}
	passes = 0
	if err := s.settings(0); err != nil {
		return err
	}
	err := s.ready(ctx, func(ctx context.Context) error {
		passes++
		err := once(ctx, 0)
		if list, err2 := s.engine.List(ctx, nil); err == nil && len(list) > 0 {
			err = errors.Join(err2, fmt.Errorf("%d containers are there", len(list)))
		}
		return err
	})
	if err == nil {
		fmt.Printf("once launch, repeated: 0 containers after %d passes\n", passes)
	}
	return err
}

// left says which processes and cgroups of the engine and its containers are
// there. An engine that is killed while it starts a container may forget it, and
// no launcher learns of that: one for each such kill is ended here.
func (s *show) left() error {
	var errs []error
	forgotten := map[string]bool{}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range commands {
		if b, _ := os.ReadFile(f); strings.Contains(string(b), s.dir) {
			pid := filepath.Base(filepath.Dir(f))
			errs = append(errs, fmt.Errorf("process %s is left: %q", pid, b), end(pid))
			forgotten[forgot(string(b), s.seen)] = true
		}
	}
	looked := 0
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // another's that goes
		case err != nil:
			return err
		case d.IsDir():
			looked++
			for id := range s.seen {
				if strings.Contains(d.Name(), id) { // docker-ID.scope where systemd makes them
					errs = append(errs, fmt.Errorf("cgroup %s is left", path))
					forgotten[id] = true
					b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
					for _, pid := range strings.Fields(string(b)) {
						errs = append(errs, end(pid))
					}
				}
			}
		}
		return nil
	})
	fmt.Printf("looked for %d containers in %d cgroups\n", len(s.seen), looked)
	if n := len(forgotten); err == nil && n > 0 && n <= s.engines && !forgotten[""] {
		fmt.Printf("%d containers that a killed engine forgot were left, of %d kills\n", n, s.engines)
		return nil
	}
	return errors.Join(append(errs, err)...)
}

// forgot is the container that a process is about, "" when it is about none.
func forgot(command string, ids map[string]bool) string {
	for id := range ids {
		if strings.Contains(command, id) {
			return id
		}
	}
	return ""
}

func end(pid string) error {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return err
	}
	if err := syscall.Kill(n, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// clean ends what was started, and says what is left that should not be.
func (s *show) clean() error {
	var errs []error
	if s.launcher != nil {
		_ = s.launcher.Terminate()
		s.launcher.Wait()
	}
	if s.dockerd != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		if err := s.ready(ctx, s.engine.Ping); err != nil { // else what it started cannot be ended
			_ = s.dockerd.Kill()
			s.dockerd.Wait()
			b, _ := os.ReadFile(filepath.Join(s.dir, "dockerd.log"))
			errs = append(errs, err, fmt.Errorf("%s", b[max(0, len(b)-2000):]), s.startEngine(), s.ready(ctx, s.engine.Ping))
		}
		list, _ := s.engine.List(ctx, nil)
		if len(list) > 0 {
			errs = append(errs, fmt.Errorf("%d containers are left", len(list)))
		}
		for _, c := range list {
			errs = append(errs, s.engine.Remove(ctx, c.ID))
		}
		_ = s.dockerd.Terminate()
		s.dockerd.Wait()
	}
	if s.runtime != nil {
		_ = s.runtime.Terminate()
		s.runtime.Wait()
	}
	if s.server != nil {
		errs = append(errs, s.server.Stop())
	}
	if s.dir != "" {
		errs = append(errs, s.left())
	}
	if s.bridge != "" {
		errs = append(errs, run("ip", "link", "del", s.bridge))
	}
	if s.dir != "" {
		if len(errs) > 0 && errors.Join(errs...) != nil {
			if b, err := os.ReadFile(filepath.Join(s.dir, "host.log")); err == nil {
				fmt.Fprintf(os.Stderr, "%s\n", b[max(0, len(b)-4000):])
			}
		}
		if mounts, _ := os.ReadFile("/proc/mounts"); strings.Contains(string(mounts), s.dir) {
			for line := range strings.Lines(string(mounts)) {
				if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], s.dir) {
					if !strings.Contains(f[1], "/netns/") && f[1] != filepath.Join(s.dir, "data") {
						errs = append(errs, fmt.Errorf("mount %s is left", f[1]))
					}
					_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
				}
			}
		}
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
