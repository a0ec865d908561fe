package warm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/show/fleet"
)

// dearest is what a clean room may add to a task at the median.
const dearest = 10 * time.Millisecond

// showCleanRoom runs the same task beside a bot and in clean rooms, and then
// tasks that leave marks wherever they can, each followed by one that looks for
// them.
func showCleanRoom(ctx context.Context, dir string) (err error) {
	skep, err := filepath.Abs("bin/skep")
	if err != nil {
		return err
	}
	im, err := makeImage(dir, nil)
	if err != nil {
		return err
	}
	s := &service{skep: skep, dir: filepath.Join(dir, "pool"), runtime: "oci", image: im}
	if _, err := s.start(ctx, "--min", "4", "--max", "8"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop(ctx)) }()
	if _, err := s.await(ctx, time.Minute, "stocked", quiet(4)); err != nil {
		return err
	}
	outside, err := startFleet(ctx, skep, filepath.Join(dir, "outside"), "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, outside.f.Stop()) }()
	inside, err := startFleet(ctx, skep, filepath.Join(dir, "inside"), s.socket())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inside.f.Stop()) }()
	if err := cost(ctx, s, outside, inside); err != nil {
		return err
	}
	return canaries(ctx, s, inside)
}

// bots is a fleet of one bot.
type bots struct {
	f   *fleet.Fleet
	api *client.Client
}

func startFleet(ctx context.Context, skep, dir, socket string) (*bots, error) {
	scripts := filepath.Join(dir, "config", "scripts")
	if err := os.MkdirAll(scripts, 0o755); err != nil {
		return nil, err
	}
	script := "def get_settings(bot):\n    return {}\n"
	if socket != "" {
		script = fmt.Sprintf("def get_settings(bot):\n    return {'task': {'pool': %q}}\n", socket)
	}
	if err := os.WriteFile(filepath.Join(scripts, "bot_config.star"), []byte(script), 0o600); err != nil {
		return nil, err
	}
	flags := append(fleet.Flags(filepath.Join(dir, "state")), "--bots", "1", "--config", filepath.Join(dir, "config"), "--log-level", "error")
	f, err := fleet.Start(ctx, "", append([]string{skep, "up"}, flags...)...)
	if err != nil {
		return nil, err
	}
	api, err := client.New(client.Options{Server: f.URL})
	if err != nil {
		return nil, errors.Join(err, f.Stop())
	}
	return &bots{f, api}, nil
}

// run runs a shell script as a task and returns what it wrote, and how long the
// bot had it.
func (b *bots) run(ctx context.Context, script string) (string, time.Duration, error) {
	p := &pb.TaskProperties{
		Command: []string{"sh", "-c", script}, ExecutionTimeoutSecs: 60, GracePeriodSecs: 1,
		Dimensions: []*pb.StringPair{{Key: "pool", Value: "default"}},
		Caches:     []*pb.CacheEntry{{Name: "shared", Path: "cache"}},
	}
	t, err := b.api.NewTask(ctx, &pb.NewTaskRequest{
		Name: "room", Priority: 100,
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 600, WaitForCapacity: true, Properties: p}},
	})
	if err != nil {
		return "", 0, err
	}
	for began := time.Now(); ; {
		r, err := b.api.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: t.GetTaskId()})
		if err != nil {
			return "", 0, err
		}
		if r.GetState() != pb.TaskState_PENDING && r.GetState() != pb.TaskState_RUNNING {
			out, err := b.api.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: t.GetTaskId(), Length: 1 << 20})
			if err != nil {
				return "", 0, err
			}
			if r.GetState() != pb.TaskState_COMPLETED || r.GetExitCode() != 0 {
				return "", 0, fmt.Errorf("task %s is %v, exit code %d: %s\n%s", t.GetTaskId(), r.GetState(), r.GetExitCode(), out.GetOutput(), b.f.Log())
			}
			return string(out.GetOutput()), r.GetCompletedTs().AsTime().Sub(r.GetStartedTs().AsTime()), nil
		}
		if time.Since(began) > 2*time.Minute {
			return "", 0, fmt.Errorf("task %s is still %v\n%s", t.GetTaskId(), r.GetState(), b.f.Log())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// cost compares, task by task in turns, how long a bot had them.
func cost(ctx context.Context, s *service, outside, inside *bots) error {
	n := scale(300, 40)
	var out, in []time.Duration
	for i := range n + 3 {
		_, o, err := outside.run(ctx, "true")
		if err != nil {
			return err
		}
		if _, err := s.await(ctx, time.Minute, "stocked", quiet(4)); err != nil {
			return err
		}
		_, r, err := inside.run(ctx, "true")
		if err != nil {
			return err
		}
		if i >= 3 { // the first of a bot are dearer
			out, in = append(out, o), append(in, r)
		}
	}
	more := quantile(in, 0.5) - quantile(out, 0.5)
	fmt.Printf("a task outside     p50 %8v  p99 %8v   n %d\n", round(quantile(out, 0.5)), round(quantile(out, 0.99)), n)
	fmt.Printf("in a clean room    p50 %8v  p99 %8v   %v more at the median   bound %v\n", round(quantile(in, 0.5)), round(quantile(in, 0.99)), round(more), dearest)
	if more > dearest {
		return fmt.Errorf("a clean room costs %v at the median, want %v", more, dearest)
	}
	return nil
}

// leaver leaves the mark wherever a task may write, and lets processes that
// have left its session and group run on. A place that refuses is no leak.
const leaver = `
M=$MARK
for d in / /tmp /var /root /etc /run /bin /dev /dev/shm /dev/mqueue /proc/sys/kernel /sys /.skep "$PWD" "$PWD/.." "$TMPDIR" "$HOME"; do
  echo $M > "$d/$M" 2>/dev/null && echo "left $d"
done
mkdir -p cache && echo left-in-cache > cache/own
echo $M > /proc/sys/kernel/hostname 2>/dev/null && echo left hostname
echo $M > /proc/sys/kernel/domainname 2>/dev/null
mount -t tmpfs $M /tmp 2>/dev/null && echo left mount
ip route add 192.0.2.0/24 dev lo 2>/dev/null && echo left route
(setsid sleep 98$NUMBER >/dev/null 2>&1 &) ; (setsid sh -c 'while :; do sleep 98$0; done' $NUMBER >/dev/null 2>&1 &)
echo done
`

// looker looks for marks: it writes the places where it finds one.
const looker = `
find / -xdev -name 'mark-*' 2>/dev/null
find /tmp /dev /dev/shm /dev/mqueue "$PWD" "$TMPDIR" -name 'mark-*' 2>/dev/null
ps | grep 'sleep [9]8' ; grep mark- /proc/mounts /proc/sys/kernel/hostname /proc/sys/kernel/domainname /proc/net/unix 2>/dev/null
ip route 2>/dev/null | grep 192.0.2
ipcs 2>/dev/null | grep 0x
grep . /proc/keys 2>/dev/null | grep mark-
ls -A /.skep | grep -v '^room$'
test -e cache/own && cat cache/own | grep -v left-in-cache
true
`

func canaries(ctx context.Context, s *service, inside *bots) error {
	n := scale(200, 8)
	places := map[string]int{}
	for i := range n {
		mark := fmt.Sprintf("mark-%06d", i)
		env := fmt.Sprintf("MARK=%s NUMBER=%d\nTMPDIR=${TMPDIR:-/tmp} HOME=${HOME:-/root}\n", mark, i%10)
		out, _, err := inside.run(ctx, env+leaver)
		if err != nil {
			return err
		}
		if !strings.Contains(out, "done") {
			return fmt.Errorf("round %d: the task that leaves marks wrote %q", i, out)
		}
		for line := range strings.Lines(out) {
			if where, ok := strings.CutPrefix(strings.TrimSpace(line), "left "); ok {
				if strings.Contains(where, "/w/") {
					where = "the work directory"
				}
				places[where]++
			}
		}
		seen, _, err := inside.run(ctx, env+looker)
		if err != nil {
			return err
		}
		if strings.TrimSpace(seen) != "" {
			return fmt.Errorf("round %d: the next task found %q", i, seen)
		}
		if err := onHost(mark, s); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	if len(places) < 3 {
		return fmt.Errorf("marks were left in %v only: the canary sees too little to say anything", places)
	}
	st, err := s.await(ctx, time.Minute, "quiet", func(st *pool.Status) bool { return st.Used+st.Leased+st.Ending == 0 })
	if err != nil {
		return err
	}
	fmt.Printf("%d canary rounds, marks left in %v: none found by the next task or on the host; %d rooms served\n", n, places, st.Totals.Served)
	return nil
}

// onHost looks for a mark where the host could have it.
func onHost(mark string, s *service) error {
	for _, pattern := range []string{"/tmp/" + mark, "/dev/shm/" + mark, "/dev/mqueue/" + mark, "/" + mark, "/var/" + mark, "/run/" + mark, filepath.Join(s.dir, mark), filepath.Join(s.dir, "*", mark), filepath.Join(s.dir, "bases", "*", "root", mark), filepath.Join(s.dir, "bases", "*", "root", "*", mark)} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return fmt.Errorf("the host has %v", found)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if strings.HasPrefix(string(b), "sleep\x0098") {
			return fmt.Errorf("process %s of the task runs on", filepath.Base(filepath.Dir(p)))
		}
	}
	name, _ := os.Hostname()
	mounts, _ := os.ReadFile("/proc/self/mounts")
	unix, _ := os.ReadFile("/proc/net/unix")
	if strings.Contains(name+string(mounts)+string(unix), mark) {
		return errors.New("the host's name, mounts or sockets have the mark")
	}
	return nil
}
