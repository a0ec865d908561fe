// Package machines shows that pools of machines become what is declared, and
// stay it whatever fails meanwhile.
package machines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
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

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// laptop is issue 6, show 1: the whole cycle with machines that are processes
// of this host.
type laptop struct {
	dir, skep, listen string
	lifetime          time.Duration
	serves            string // pool of tasks that all machines are in; "" = default
	server            *fleet.Fleet
	api               *client.Client
	load              *load
}

// firstBound is from the start of skep up to the end of a first task.
var firstBound = form.Of(5*time.Second, 20*time.Second)

// patience is how long a pool may take to be as declared, besides the tasks
// that it finishes first.
var patience = form.Of(30*time.Second, 2*time.Minute)

// Laptop runs the demonstration and returns an exit code. SKEP_SHOW=short lets
// machines live 8 s instead of 60 s.
func Laptop() int {
	dir, err := os.MkdirTemp("", "skep-machines-")
	if err == nil {
		defer os.RemoveAll(dir)
		s := &laptop{dir: dir, lifetime: time.Minute}
		if form.Short() {
			s.lifetime = 8 * time.Second
		}
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show machines laptop:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *laptop) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(5*time.Minute, 20*time.Minute)+20*s.lifetime)
	defer cancel()
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // tasks run as another user
		return err
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if err := s.first(ctx); err != nil {
		return fmt.Errorf("the first task: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listen = l.Addr().String()
	if err := errors.Join(l.Close(), os.Mkdir(s.config(), 0o755)); err != nil { //nolint:gosec // no secret
		return err
	}
	defer func() {
		if s.server != nil {
			s.server.Kill()
		}
		err = errors.Join(err, s.sweep())
	}()
	if err := s.declare(pool{prefix: "demo", amount: 5, lifetime: time.Hour}); err != nil {
		return err
	}
	if err := s.up(ctx); err != nil {
		return err
	}
	s.load = startLoad(ctx, s.api, "default")
	defer s.load.stop()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"5 machines", func(ctx context.Context) error { return s.become(ctx, map[string]int{"demo": 5}) }},
		{"8 machines", func(ctx context.Context) error { return s.resize(ctx, 8) }},
		{"3 machines", func(ctx context.Context) error { return s.resize(ctx, 3) }},
		{fmt.Sprintf("a lifetime of %v", s.lifetime), s.lifetimes},
		{"the server killed", s.killServer},
		{"a killed bot", s.killBot},
		{"a lost instance", s.loseInstance},
		{"a deleted bot", s.deleteBot},
		{"a removed Config", s.remove},
	} {
		start := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w\n%s", step.name, err, s.server.Log())
		}
		fmt.Printf("%-20s converged after %v\n", step.name, time.Since(start).Round(100*time.Millisecond))
	}
	if !form.Short() { // it takes minutes without work
		if err := s.queue(ctx); err != nil {
			return fmt.Errorf("a pool that follows the queue: %w\n%s", err, s.server.Log())
		}
	}
	done, cut := s.load.stop()
	fmt.Printf("%d tasks, %d cut\n", done, len(cut))
	if len(cut) > 0 || done < 20 {
		return fmt.Errorf("%d tasks done; cut: %v", done, cut)
	}
	if err := s.server.Stop(); err != nil {
		return err
	}
	return s.nothingLeft()
}

// first is what a reader of the documentation tries.
func (s *laptop) first(ctx context.Context) error {
	state := filepath.Join(s.dir, "first")
	start := time.Now()
	f, err := fleet.Start(ctx, "", append([]string{s.skep, "up", "--bots", "0", "--config", "examples/provider"}, fleet.Flags(state)...)...)
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, s.skep, "run", "-S", f.URL, "--", "echo", "ok").CombinedOutput()
	took := time.Since(start)
	err = errors.Join(err, f.Stop())
	if err != nil || string(out) != "ok\n" {
		return fmt.Errorf("skep run said %q: %w", out, err)
	}
	fmt.Printf("skep up --config examples/provider, skep run -- echo ok: %v, bound %v\n", took.Round(time.Millisecond), firstBound)
	if took > firstBound {
		return fmt.Errorf("it took %v", took)
	}
	if left := processes(state); len(left) > 0 {
		return fmt.Errorf("processes %v are left", left)
	}
	return nil
}

func (s *laptop) config() string { return filepath.Join(s.dir, "config") }
func (s *laptop) state() string  { return filepath.Join(s.dir, "state") }

type pool struct {
	prefix   string
	amount   int
	most     int // if demand may want more than amount
	lifetime time.Duration
	provider string // in vms.cfg; "" = processes of this host
}

// declare writes vms.cfg.
func (s *laptop) declare(pools ...pool) error {
	var text strings.Builder
	for _, p := range pools {
		fmt.Fprintf(&text, "vms { prefix: %q provider { %s } amount { min: %d max: %d } lifetime { seconds: %d } swarming_pools: %q }\n",
			p.prefix, cmp.Or(p.provider, "process {}"), p.amount, max(p.amount, p.most), int(p.lifetime.Seconds()), cmp.Or(s.serves, "default"))
	}
	tmp := filepath.Join(s.dir, "vms.cfg")
	if err := os.WriteFile(tmp, []byte(text.String()), 0o644); err != nil { //nolint:gosec // no secret
		return err
	}
	return os.Rename(tmp, filepath.Join(s.config(), "vms.cfg"))
}

func (s *laptop) up(ctx context.Context) (err error) {
	s.server, err = fleet.Start(ctx, "", s.skep, "up", "--bots", "0", "--config", s.config(), "--state-dir", s.state(), "--listen", s.listen)
	if err == nil && s.api == nil {
		s.api, err = client.New(client.Options{Server: s.server.URL})
	}
	return err
}

// alive are the bots that the server takes for alive, by the prefix of their
// machine; all are its records.
func (s *laptop) alive(ctx context.Context) (alive map[string][]string, all int, err error) {
	res, err := s.api.ListBots(ctx, &pb.BotsRequest{Limit: 1000})
	if err != nil {
		return nil, 0, err
	}
	alive = map[string][]string{}
	for _, b := range res.Items {
		if !b.IsDead {
			prefix, _, _ := strings.Cut(b.BotId, "-")
			alive[prefix] = append(alive[prefix], b.BotId)
		}
	}
	return alive, len(res.Items), nil
}

// become waits until there are so many machines by prefix and no other: bots
// alive, records of bots, and instances on disk.
func (s *laptop) become(ctx context.Context, want map[string]int) error {
	sum := 0
	for _, n := range want {
		sum += n
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		alive, all, err := s.alive(ctx)
		if err != nil && time.Now().After(end) {
			return err
		}
		instances, _ := filepath.Glob(filepath.Join(s.state(), "machines", "*.json"))
		right := err == nil && all == sum && len(instances) == sum
		for prefix, n := range want {
			right = right && len(alive[prefix]) == n
		}
		if right {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("want %v machines; bots alive %v, %d records, %d instances", want, alive, all, len(instances))
		}
	}
}

func (s *laptop) resize(ctx context.Context, n int) error {
	if err := s.declare(pool{prefix: "demo", amount: n, lifetime: time.Hour}); err != nil {
		return err
	}
	return s.become(ctx, map[string]int{"demo": n})
}

// lifetimes sees two machines replaced twice, under load.
func (s *laptop) lifetimes(ctx context.Context) error {
	if err := s.declare(pool{prefix: "demo", amount: 3, lifetime: time.Hour}, pool{prefix: "brief", amount: 2, lifetime: s.lifetime}); err != nil {
		return err
	}
	seen := map[string]bool{}
	for end := time.Now().Add(3*s.lifetime + patience); len(seen) < 6; time.Sleep(100 * time.Millisecond) {
		alive, _, err := s.alive(ctx)
		if err != nil {
			return err
		}
		for _, id := range alive["brief"] {
			seen[id] = true
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d machines followed each other, want 6: %v", len(seen), seen)
		}
	}
	if err := s.declare(pool{prefix: "demo", amount: 3, lifetime: time.Hour}); err != nil {
		return err
	}
	return s.become(ctx, map[string]int{"demo": 3})
}

// killServer kills the server under load; the next one takes the machines over.
func (s *laptop) killServer(ctx context.Context) error {
	before, _, err := s.alive(ctx)
	if err != nil {
		return err
	}
	s.server.Kill()
	if err := s.up(ctx); err != nil {
		return err
	}
	if err := s.become(ctx, map[string]int{"demo": 3}); err != nil {
		return err
	}
	after, _, err := s.alive(ctx)
	if err == nil && !slices.Equal(before["demo"], after["demo"]) {
		err = fmt.Errorf("%v became %v", before, after)
	}
	return err
}

// victim is the bot of one machine, without a task: what kills a machine ends
// its task too.
func (s *laptop) victim(ctx context.Context) (id string, pid int, err error) {
	s.load.pause() // whoever has a victim resumes it
	defer func() {
		if err != nil {
			s.load.resume()
		}
	}()
	alive, _, err := s.alive(ctx)
	if err != nil {
		return "", 0, err
	}
	if len(alive["demo"]) == 0 {
		return "", 0, errors.New("no bot is alive")
	}
	id = alive["demo"][0]
	b, err := os.ReadFile(filepath.Join(s.state(), "machines", id, "swarming.lck"))
	if err != nil {
		return "", 0, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	return id, pid, err
}

// killBot kills a machine's bot: its machine starts it again.
func (s *laptop) killBot(ctx context.Context) error {
	id, pid, err := s.victim(ctx)
	if err != nil {
		return err
	}
	defer s.load.resume()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: id})
		if err == nil && !strings.HasSuffix(b.SessionId, "/"+strconv.Itoa(pid)) && !b.IsDead {
			return s.become(ctx, map[string]int{"demo": 3})
		}
		if time.Now().After(end) {
			return fmt.Errorf("bot %s did not come back: %w", id, err)
		}
	}
}

// loseInstance takes a machine away, bot and record, as a cloud may.
func (s *laptop) loseInstance(ctx context.Context) error {
	id, pid, err := s.victim(ctx)
	if err != nil {
		return err
	}
	defer s.load.resume()
	err = errors.Join(os.Remove(filepath.Join(s.state(), "machines", id+".json")), syscall.Kill(pid, syscall.SIGKILL))
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(s.state(), "machines", id)); os.IsNotExist(err) {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the directory of %s is left", id)
		}
	}
	if err := s.become(ctx, map[string]int{"demo": 3}); err != nil {
		return err
	}
	alive, _, err := s.alive(ctx)
	if err == nil && slices.Contains(alive["demo"], id) {
		err = fmt.Errorf("%s is still there", id)
	}
	return err
}

// deleteBot has the server forget a bot that is alive.
func (s *laptop) deleteBot(ctx context.Context) error {
	id, _, err := s.victim(ctx)
	if err != nil {
		return err
	}
	defer s.load.resume()
	if _, err := s.api.DeleteBot(ctx, &pb.BotRequest{BotId: id}); err != nil {
		return err
	}
	return s.become(ctx, map[string]int{"demo": 3})
}

// remove takes the pool out under load, beside one that does its tasks then.
func (s *laptop) remove(ctx context.Context) error {
	if err := s.declare(pool{prefix: "other", amount: 1, lifetime: time.Hour}); err != nil {
		return err
	}
	if err := s.become(ctx, map[string]int{"other": 1}); err != nil {
		return err
	}
	s.load.stop()
	if err := s.declare(); err != nil {
		return err
	}
	return s.become(ctx, nil)
}

// nothingLeft looks for what machines were.
func (s *laptop) nothingLeft() error {
	entries, err := os.ReadDir(filepath.Join(s.state(), "machines"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains([]string{".gone", ".home", ".lock"}, e.Name()) { // which name no machine
			return fmt.Errorf("%s is left", e.Name())
		}
	}
	if left := processes(s.state()); len(left) > 0 {
		return fmt.Errorf("processes %v are left", left)
	}
	return nil
}

// sweep ends what a demonstration that failed left.
func (s *laptop) sweep() error {
	for _, pid := range processes(s.dir) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return nil
}

// processes are those whose working directory or executable lies below dir.
func processes(dir string) (pids []int) {
	for _, link := range []string{"cwd", "exe"} {
		links, _ := filepath.Glob("/proc/[0-9]*/" + link)
		for _, l := range links {
			to, err := os.Readlink(l)
			pid, _ := strconv.Atoi(strings.Split(l, "/")[2])
			if err == nil && strings.HasPrefix(to, dir+"/") && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// load is tasks that go on all the time, a few more than one machine can do.
type load struct {
	api  *client.Client
	pool string
	quit chan struct{}
	once sync.Once
	wg   sync.WaitGroup

	gate sync.RWMutex // held for writing while it pauses

	mu   sync.Mutex
	done int
	by   map[string]int // done, by the prefix of the machine
	cut  []string
}

func startLoad(ctx context.Context, api *client.Client, pool string) *load {
	l := &load{api: api, pool: pool, quit: make(chan struct{}), by: map[string]int{}}
	for i := range 4 {
		l.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-l.quit:
					return
				default:
				}
				l.gate.RLock()
				l.one(ctx, fmt.Sprintf("load-%d-%d", i, n), 0.3+0.7*float64((i+n)%4))
				l.gate.RUnlock()
			}
		})
	}
	return l
}

// pause returns when no task runs any more.
func (l *load) pause()  { l.gate.Lock() }
func (l *load) resume() { l.gate.Unlock() }

// stop returns when no task runs any more, for good.
func (l *load) stop() (done int, cut []string) {
	l.once.Do(func() { close(l.quit) })
	l.wg.Wait()
	return l.done, l.cut
}

// one runs a task of so many seconds and keeps how it ended.
func (l *load) one(ctx context.Context, name string, seconds float64) {
	var res *pb.TaskRequestMetadataResponse
	for {
		var err error
		res, err = l.api.NewTask(ctx, &pb.NewTaskRequest{
			Name: name, Priority: 100, RequestUuid: name,
			TaskSlices: []*pb.TaskSlice{{
				ExpirationSecs: 600, WaitForCapacity: true,
				Properties: &pb.TaskProperties{
					Command: []string{"sleep", fmt.Sprint(seconds)}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 30,
					Dimensions: []*pb.StringPair{{Key: "pool", Value: l.pool}},
				},
			}},
		})
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	for ctx.Err() == nil {
		st, err := l.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: res.TaskId})
		if err == nil && st.State != pb.TaskState_PENDING && st.State != pb.TaskState_RUNNING {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.done++
			prefix, _, _ := strings.Cut(st.BotId, "-")
			l.by[prefix]++
			if st.State != pb.TaskState_COMPLETED || st.ExitCode != 0 || st.Failure {
				l.cut = append(l.cut, fmt.Sprintf("%s (%s) on %s is %s, exit code %d", name, res.TaskId, st.BotId, st.State, st.ExitCode))
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
