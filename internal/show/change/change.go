// Package change shows that a fleet under load takes a changed hook without
// losing a task, and that a build which crashes at start reaches the canary
// share at most and is taken back without hands. Issue 3, must show 2.
package change

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/show/form"
	"github.com/skepdev/skep/internal/stage/fleet"
	"github.com/skepdev/skep/rollout"
)

const canaryPercent = 10

// backBound is from the offer of the bad build to the whole fleet on the old one.
var backBound = form.Of(time.Minute, 3*time.Minute)

type show struct {
	dir, skep, exe, listen, url string
	sims, reals, tasks          int

	server *fleet.Fleet
	api    *client.Client
	bots   []*sim
	real   []string // ids

	interrupted atomic.Int64
	failed      chan error
	stop        context.CancelFunc
	running     sync.WaitGroup
}

// Main runs the demonstration and returns an exit code. SKEP_SHOW=short takes
// fewer bots and tasks.
func Main(args []string) int {
	flags := flag.NewFlagSet("change", flag.ExitOnError)
	s := &show{failed: make(chan error, 1)}
	flags.IntVar(&s.sims, "sims", 200, "simulated bots")
	flags.IntVar(&s.reals, "bots", 8, "real bots")
	flags.IntVar(&s.tasks, "tasks", 4000, "tasks that run meanwhile, at least")
	_ = flags.Parse(args)
	if os.Getenv("SKEP_SHOW") == "short" {
		s.sims, s.reals, s.tasks = 40, 2, 200
	}
	dir, err := os.MkdirTemp("", "skep-change-")
	if err == nil {
		defer os.RemoveAll(dir)
		s.dir = dir
		err = s.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show change:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func (s *show) run() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), form.Of(10*time.Minute, 30*time.Minute))
	defer cancel()
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // tasks run as another user
		return err
	}
	if s.skep, err = filepath.Abs("bin/skep"); err != nil {
		return err
	}
	if s.exe, err = filepath.Abs("bin/skep-bot"); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.listen = l.Addr().String()
	s.url = "http://" + s.listen
	if err := l.Close(); err != nil {
		return err
	}
	if err := s.configure("# the first\n"); err != nil {
		return err
	}
	good, err := s.builds("good", "")
	if err != nil {
		return err
	}
	if err := s.serve(ctx, good); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()
	if s.api, err = client.New(client.Options{Server: s.url}); err != nil {
		return err
	}
	if err := s.populate(ctx); err != nil {
		return err
	}
	load := s.load(ctx)
	if err := s.hookChange(ctx); err != nil {
		return err
	}
	if err := s.badBuild(ctx); err != nil {
		return err
	}
	if err := load.judge(ctx); err != nil {
		return err
	}
	return s.after(ctx)
}

// configure writes the configuration with a base script of hooks.
func (s *show) configure(script string) error {
	dir := filepath.Join(s.dir, "config", "scripts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	settings := fmt.Sprintf("rollout { canary_percent: %d soak_secs: 2 }\n", canaryPercent)
	if err := os.WriteFile(filepath.Join(s.dir, "config", "settings.cfg"), []byte(settings), 0o600); err != nil {
		return err
	}
	tmp := filepath.Join(s.dir, "script.tmp")
	if err := os.WriteFile(tmp, []byte(script), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "bot_config.star"))
}

// builds makes a --bot-dir: a real executable for this platform and a small
// one for that of simulated bots. crash, a directory, makes both end at their
// start; the real one leaves a file with its bot's name there.
func (s *show) builds(name, crash string) (string, error) {
	dir := filepath.Join(s.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	exe, err := os.ReadFile(s.exe)
	if err != nil {
		return "", err
	}
	small := "#!/bin/sh\n# simulated\n"
	if crash != "" {
		exe = []byte("#!/bin/sh\ncase $1 in is_fine) exit 0;; esac\n: > " + crash + "/$(basename $(dirname $0))\nexit 1\n")
		small += crashMark + "\n"
	}
	small += "exit 0\n"
	if err := os.WriteFile(filepath.Join(dir, "skep-bot"), exe, 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "skep-bot-"+runtime.GOOS+"-"+simArch()), []byte(small), 0o755)
}

func (s *show) serve(ctx context.Context, builds string) (err error) {
	if s.server != nil {
		if err := s.server.Stop(); err != nil {
			return err
		}
	}
	s.server, err = fleet.Start(ctx, "", s.skep, "server", "--listen", s.listen, "--state-dir", filepath.Join(s.dir, "state"),
		"--config", filepath.Join(s.dir, "config"), "--bot-dir", builds, "--log-level", "warn")
	return err
}

// offered is the digest of the code for a bot.
func (s *show) offered(ctx context.Context, bot, arch string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/bot_code?bot_id=%s&os=%s&arch=%s", s.url, bot, runtime.GOOS, arch), nil)
	if err != nil {
		return "", err
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusFound {
		return "", fmt.Errorf("/bot_code answers %s", res.Status)
	}
	return path.Base(res.Header.Get("Location")), nil
}

func (s *show) fetch(ctx context.Context, id, arch string) ([]byte, error) {
	digest, err := s.offered(ctx, id, arch)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/swarming/api/v1/bot/bot_code/"+digest, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return readAll(res)
}

// populate brings up the fleet.
func (s *show) populate(ctx context.Context) error {
	living, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	small, err := s.fetch(ctx, "x", simArch())
	if err != nil {
		return err
	}
	for i := range s.sims {
		b := &sim{id: fmt.Sprintf("sim-%03d", i), url: s.url, interrupted: &s.interrupted}
		b.dir = filepath.Join(s.dir, b.id)
		if err := b.install(small); err != nil {
			return err
		}
		s.bots = append(s.bots, b)
		s.running.Go(func() { s.fail(b.live(living)) })
	}
	large, err := s.fetch(ctx, "x", runtime.GOARCH)
	if err != nil {
		return err
	}
	for i := range s.reals {
		id := fmt.Sprintf("real-%d", i)
		for n := 0; i == 0 && rollout.Canary(skep.BotID(id)) >= canaryPercent; n++ { // one of them is to be tried on
			id = fmt.Sprintf("real-0-%d", n)
		}
		s.real = append(s.real, id)
		dir := filepath.Join(s.dir, id)
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // as a bot's directory
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "swarming_bot"), large, 0o755); err != nil { //nolint:gosec // an executable
			return err
		}
	}
	for _, id := range s.real { // not sooner: what forks while a file is written keeps it from being run
		s.running.Go(func() { s.fail(s.supervise(living, id, filepath.Join(s.dir, id))) })
	}
	took, err := s.converge(ctx, backBound, time.Time{})
	if err != nil {
		return err
	}
	fmt.Printf("%d simulated and %d real bots are there after %v\n", s.sims, s.reals, took.Round(time.Millisecond))
	return nil
}

func (s *show) fail(err error) {
	if err != nil {
		select {
		case s.failed <- err:
		default:
		}
	}
}

// supervise is the service manager of a real bot.
func (s *show) supervise(ctx context.Context, id, dir string) error {
	for ctx.Err() == nil {
		p, err := proc.Start(&proc.Cmd{
			Path: filepath.Join(dir, "swarming_bot"), Args: []string{filepath.Join(dir, "swarming_bot"), "start_bot"}, Dir: dir, NewGroup: true,
			Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "SWARMING_BOT_ID=" + id, "SKEP_REBOOT=none"},
		})
		if err != nil {
			return err
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			if pid, ok := bot.Running(dir); ok && pid > 0 {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Signal(syscall.SIGTERM)
				}
			}
			_ = p.Terminate()
			select {
			case <-p.Done():
			case <-time.After(20 * time.Second):
				_ = p.Kill()
				return fmt.Errorf("%s did not end", id)
			}
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartAfter):
		}
	}
	return nil
}

// converge waits until every bot polls with the digest that is stable now, and
// was heard of since.
func (s *show) converge(ctx context.Context, patience time.Duration, since time.Time) (time.Duration, error) {
	start := time.Now()
	for {
		want := map[string]string{}
		var err error
		for _, arch := range []string{runtime.GOARCH, simArch()} {
			if want[arch], err = s.offered(ctx, "x", arch); err != nil {
				return 0, err
			}
		}
		bots, err := s.all(ctx)
		if err != nil {
			return 0, err
		}
		late := ""
		for _, id := range s.ids() {
			b, arch := bots[id], runtime.GOARCH
			if strings.HasPrefix(id, "sim-") {
				arch = simArch()
			}
			switch {
			case b == nil:
				late = id + " is not there"
			case b.IsDead || b.Quarantined:
				late = fmt.Sprintf("%s: dead %v, quarantined %v", id, b.IsDead, b.Quarantined)
			case b.Version != want[arch]:
				late = fmt.Sprintf("%s runs %.8s, want %.8s", id, b.Version, want[arch])
			case b.LastSeenTs.AsTime().Before(since):
				late = id + " is silent"
			}
		}
		if late == "" {
			return time.Since(start), nil
		}
		select {
		case err := <-s.failed:
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(start) > patience {
			return 0, fmt.Errorf("after %v: %s", patience, late)
		}
	}
}

func (s *show) ids() []string {
	ids := append([]string{}, s.real...)
	for _, b := range s.bots {
		ids = append(ids, b.id)
	}
	return ids
}

func (s *show) all(ctx context.Context) (map[string]*pb.BotInfo, error) {
	out := map[string]*pb.BotInfo{}
	for cursor := ""; ; {
		res, err := s.api.ListBots(ctx, &pb.BotsRequest{Limit: 1000, Cursor: cursor})
		if err != nil {
			return nil, err
		}
		for _, b := range res.Items {
			out[b.BotId] = b
		}
		if cursor = res.Cursor; cursor == "" {
			return out, nil
		}
	}
}

// hookChange changes the base script and waits for the fleet.
func (s *show) hookChange(ctx context.Context) error {
	before, err := s.offered(ctx, "x", runtime.GOARCH)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := s.configure("def get_state(bot):\n    s = bot.default_state()\n    s[\"hook\"] = \"second\"\n    return s\n"); err != nil {
		return err
	}
	var stages []string
	for { // until it is everybody's
		r, err := s.rollout(ctx)
		if err != nil {
			return err
		}
		now, err := s.offered(ctx, "x", runtime.GOARCH)
		if err != nil {
			return err
		}
		if r.Stage != "" && (len(stages) == 0 || stages[len(stages)-1] != r.Stage) {
			stages = append(stages, r.Stage)
		}
		if r.Halted != "" {
			return fmt.Errorf("the hooks are taken back: %s", r.Halted)
		}
		if now != before && r.NextRelease == "" {
			break
		}
		if time.Since(start) > 2*backBound {
			return fmt.Errorf("the hooks are not everybody's after %v: %v", 2*backBound, r)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := s.converge(ctx, backBound, time.Time{}); err != nil {
		return err
	}
	fmt.Printf("a changed hook: all bots have it after %v; stages %v\n", time.Since(start).Round(time.Millisecond), stages)
	for _, id := range s.real {
		b, err := s.api.GetBot(ctx, &pb.BotRequest{BotId: id})
		if err != nil {
			return err
		}
		if !strings.Contains(strings.ReplaceAll(b.State, " ", ""), `"hook":"second"`) {
			return fmt.Errorf("%s says nothing of the hook: %.300s", id, b.State)
		}
	}
	return nil
}

func (s *show) rollout(ctx context.Context) (*skeppb.Rollout, error) { return s.api.GetRollout(ctx) }

// badBuild offers a build that crashes at start, and touches nothing until the
// fleet is as before.
func (s *show) badBuild(ctx context.Context) error {
	before, err := s.offered(ctx, "x", simArch())
	if err != nil {
		return err
	}
	marks := filepath.Join(s.dir, "crashed")
	if err := os.Mkdir(marks, 0o755); err != nil {
		return err
	}
	bad, err := s.builds("bad", marks)
	if err != nil {
		return err
	}
	if err := s.serve(ctx, bad); err != nil {
		return err
	}
	start := time.Now()
	var halted string
	for halted == "" {
		r, err := s.rollout(ctx)
		if err != nil {
			return err
		}
		if halted = r.Halted; time.Since(start) > backBound {
			return fmt.Errorf("the rollout goes on after %v: %v", backBound, r)
		}
		time.Sleep(50 * time.Millisecond)
	}
	at := time.Now()
	fmt.Printf("a build that crashes: halted by itself after %v: %s\n", at.Sub(start).Round(time.Millisecond), halted)
	if _, err := s.converge(ctx, backBound, at.Add(-25*time.Second)); err != nil {
		return err
	}
	ran, err := s.ran(marks)
	if err != nil {
		return err
	}
	// Those who crashed are back: told by a handshake of theirs, not by a record of before.
	if err := s.returned(ctx, ran, start); err != nil {
		return err
	}
	back := time.Since(start)
	if now, err := s.offered(ctx, "x", simArch()); err != nil || now != before {
		return fmt.Errorf("the stable digest is %s, want %s; %w", now, before, err)
	}
	fmt.Printf("%d of %d bots ran it (%d are canaries); the fleet is back after %v   bound %v\n",
		len(ran), len(s.ids()), s.canaries(), back.Round(time.Millisecond), backBound)
	if back > backBound {
		return fmt.Errorf("back after %v, want %v", back, backBound)
	}
	return nil
}

// after looks once more when all tasks have ended: a canary that was slow to
// update may have come to it after the rollout was halted.
func (s *show) after(ctx context.Context) error {
	if _, err := s.converge(ctx, backBound, time.Time{}); err != nil {
		return err
	}
	ran, err := s.ran(filepath.Join(s.dir, "crashed"))
	if err != nil {
		return err
	}
	real := slices.DeleteFunc(slices.Clone(ran), func(id string) bool { return strings.HasPrefix(id, "sim-") })
	fmt.Printf("in the end %d bots had run it, of them real: %v   bound %d\n", len(ran), real, s.canaries())
	if len(ran) > s.canaries() || len(ran) == 0 {
		return fmt.Errorf("%d bots ran the bad build, want 1 to %d", len(ran), s.canaries())
	}
	return nil
}

// ran returns the bots that ran the bad build.
func (s *show) ran(marks string) (ids []string, err error) {
	entries, err := os.ReadDir(marks)
	for _, e := range entries {
		ids = append(ids, e.Name())
	}
	for _, b := range s.bots {
		if b.crashed.Load() {
			ids = append(ids, b.id)
		}
	}
	return ids, err
}

// canaries is the canary share of this fleet, in bots; without any, one is
// chosen.
func (s *show) canaries() (n int) {
	for _, id := range s.ids() {
		if rollout.Canary(skep.BotID(id)) < canaryPercent {
			n++
		}
	}
	return max(n, 1)
}

// returned waits until each of bots has shaken hands since.
func (s *show) returned(ctx context.Context, bots []string, since time.Time) error {
	for _, id := range bots {
		for {
			ev, err := s.api.ListBotEvents(ctx, &pb.BotEventsRequest{BotId: id, Start: timestamppb.New(since), Limit: 100})
			if err != nil {
				return err
			}
			if slices.ContainsFunc(ev.Items, func(e *pb.BotEventResponse) bool { return e.EventType == "bot_connected" }) {
				break
			}
			if time.Since(since) > backBound {
				return fmt.Errorf("%s has not come back", id)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// end stops all.
func (s *show) end() error {
	if s.stop != nil {
		s.stop()
		s.running.Wait()
	}
	err := s.server.Stop()
	select {
	case e := <-s.failed:
		err = errors.Join(err, e)
	default:
	}
	return err
}
