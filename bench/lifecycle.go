package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bench/simbot"
)

const (
	lifecycleBots   = 64
	lifecycleTime   = 8 * time.Second
	lifecycleWarmUp = time.Second
	lifecycleWindow = 100 * time.Millisecond
)

// The five requests of a lifecycle. decisions.md 32.
const (
	stepNewTask = iota
	stepPoll
	stepStart
	stepOutput
	stepFinal
	steps
)

var stepNames = [steps]string{"new_task", "poll", "start", "output", "final"}

// lifecycle measures how many durable lifecycles of tasks a server makes per
// second: Median is the rate in the median tenth of a second, P99 the rate
// that 99 % of them reach. Simulated bots do what a fleet does, as fast as the
// server lets them; afterwards the API is asked to agree with their count.
func lifecycle(ctx context.Context, r *run) (*Report, error) {
	fmt.Fprintln(r.Progress, "server")
	s, err := r.start(ctx, "server", nil)
	if err != nil {
		return nil, err
	}
	rep, err := r.lifecycles(ctx, s)
	return rep, errors.Join(err, s.stop())
}

func (r *run) lifecycles(ctx context.Context, s *service) (*Report, error) {
	bots := lifecycleBots
	if r.Bots > 0 {
		bots = r.Bots
	}
	began := time.Now()
	g := &generator{tag: "bench:" + rand.Text(), limit: r.N}
	if err := g.prepare(); err != nil {
		return nil, err
	}
	g.bots = make([]*simbot.Bot, bots)
	defer func() {
		for _, b := range g.bots {
			if b != nil {
				b.Close()
			}
		}
	}()
	err := parallel(bots, 16, func(i int) (err error) {
		if g.bots[i], err = simbot.Dial(s.URL, fmt.Sprintf("bench--%d", i)); err != nil {
			return err
		}
		if err := g.bots[i].Ask(0); err != nil {
			return err
		}
		_, _, err = g.bots[i].Answer()
		return err
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Progress, "%d bots\n", bots)
	cpu, _ := cpuOf(s.pid())
	res, err := g.work(ctx, lifecycleWarmUp)
	if err != nil {
		return nil, err
	}
	after, cpuErr := cpuOf(s.pid())
	fmt.Fprintln(r.Progress, "recount")
	if err := g.recount(ctx, s, began); err != nil {
		return nil, err
	}
	rep := res.report()
	rep.Extra["bots"] = bots
	if cpuErr == nil {
		rep.Extra["server_cpu_ms_per_lifecycle"] = ms(after-cpu) / float64(g.finished())
	}
	if m, err := memoryOf(s.pid()); err == nil {
		rep.Extra["server_mib"] = m
	}
	s.about(rep.Extra)
	return rep, nil
}

// generator drives the bots.
type generator struct {
	tag   string
	limit int // lifecycles to measure; 0 = as many as the time allows
	bots  []*simbot.Bot

	newTask []byte // encoded, with a place for the number
	uuidAt  int

	mu   sync.Mutex
	done int
	end  time.Time
	ids  map[string]bool // of all tasks that ended
}

// uuidPlace is patched to make each request another one.
const uuidPlace = "0508930d-1ae4-4158-8d81-000000000000"

// prepare encodes the task that the existing client sends in
// api/testdata/captures/cli_swarming.v2.Tasks_NewTask.json.
func (g *generator) prepare() (err error) {
	g.ids = map[string]bool{}
	g.newTask, err = proto.Marshal(&pb.NewTaskRequest{
		Name: "t1", Priority: 200, RequestUuid: uuidPlace, Resultdb: &pb.ResultDBCfg{}, Tags: []string{g.tag},
		TaskSlices: []*pb.TaskSlice{{ExpirationSecs: 21600, Properties: &pb.TaskProperties{
			Command:              []string{"python3", "-c", "print(1)"},
			Dimensions:           []*pb.StringPair{{Key: "os", Value: "Linux"}, {Key: "pool", Value: "default"}},
			Env:                  []*pb.StringPair{{Key: "X", Value: "Y"}},
			ExecutionTimeoutSecs: 3600, GracePeriodSecs: 30, IoTimeoutSecs: 1200,
			Containment: &pb.Containment{ContainmentType: pb.Containment_NONE},
		}}},
	})
	g.uuidAt = bytes.Index(g.newTask, []byte(uuidPlace)) + len(uuidPlace) - 12
	return err
}

// sample is one lifecycle.
type sample struct {
	end  time.Time
	took [steps]time.Duration
}

// lifecycleResult is what all bots saw.
type lifecycleResult struct {
	start   time.Time // end of the warm-up
	end     time.Time
	samples []sample
}

// work lets every bot run lifecycles, first to warm up and then until the time
// is over.
func (g *generator) work(ctx context.Context, warmUp time.Duration) (*lifecycleResult, error) {
	res := &lifecycleResult{start: time.Now().Add(warmUp)}
	g.end = res.start.Add(lifecycleTime)
	if g.limit > 0 {
		g.end = res.start.Add(patience)
	}
	perBot := make([][]sample, len(g.bots))
	ids := make([][]string, len(g.bots))
	err := parallel(len(g.bots), len(g.bots), func(i int) (err error) {
		perBot[i], ids[i], err = g.live(ctx, g.bots[i], res.start)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range perBot {
		for _, s := range perBot[i] {
			if s.end.After(res.start) {
				res.samples = append(res.samples, s)
				if s.end.After(res.end) {
					res.end = s.end
				}
			}
		}
		for _, id := range ids[i] {
			if g.ids[id] {
				return nil, fmt.Errorf("task %s was given to two bots", id)
			}
			g.ids[id] = true
		}
	}
	return res, nil
}

// sequence numbers the tasks of this process.
var sequence atomic.Uint64

// scattered turns numbers into others of 12 digits, no two into the same, so
// that ids made of them come in no order, as random ones do.
func scattered(n uint64) uint64 { return n * 618_033_988_749 % 1_000_000_000_000 }

// live is one bot: it hands in a task, polls until it gets one (its own or
// another's), and reports it to the end.
func (g *generator) live(ctx context.Context, b *simbot.Bot, warm time.Time) (out []sample, ids []string, err error) {
	newTask := bytes.Clone(g.newTask)
	var run []byte
	for ctx.Err() == nil && g.more(warm) {
		var s sample
		at := time.Now()
		lap := func(step int) {
			now := time.Now()
			s.took[step], at = now.Sub(at), now
		}
		simbot.AppendPadded(newTask[:g.uuidAt], scattered(sequence.Add(1)))
		if _, err := b.Post("/prpc/swarming.v2.Tasks/NewTask", simbot.PRPC, newTask); err != nil {
			return nil, nil, err
		}
		lap(stepNewTask)
		for run = run[:0]; len(run) == 0; {
			if err := b.Ask(20); err != nil {
				return nil, nil, err
			}
			_, got, err := b.Answer()
			if err != nil {
				return nil, nil, err
			}
			run = append(run, got...)
		}
		lap(stepPoll)
		for i, more := range [][]byte{simbot.AtStart, simbot.WithOutput, simbot.AtLast} {
			if err := b.Update(run, more); err != nil {
				return nil, nil, err
			}
			lap(stepStart + i)
		}
		s.end = at
		out, ids = append(out, s), append(ids, string(run))
	}
	return out, ids, ctx.Err()
}

// more tells a bot whether to start another lifecycle.
func (g *generator) more(warm time.Time) bool {
	now := time.Now()
	if now.After(g.end) {
		return false
	}
	if g.limit == 0 || now.Before(warm) {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done++
	return g.done <= g.limit
}

func (g *generator) finished() int { return len(g.ids) }

// recount asks the API what it knows of the tasks that the bots ended: the
// same number succeeded, none is left over, and the output of some is read
// back whole.
func (g *generator) recount(ctx context.Context, s *service, began time.Time) error {
	count := func(state pb.StateQuery) (int, error) {
		res, err := s.client.CountTasks(ctx, &pb.TasksCountRequest{
			Start: timestamppb.New(began.Add(-time.Second)), End: timestamppb.New(time.Now().Add(time.Second)),
			State: state, Tags: []string{g.tag},
		})
		return int(res.GetCount()), err
	}
	for _, state := range []pb.StateQuery{pb.StateQuery_QUERY_COMPLETED_SUCCESS, pb.StateQuery_QUERY_ALL} {
		n, err := count(state)
		if err != nil {
			return fmt.Errorf("recount: %w", err)
		}
		if n != g.finished() {
			return fmt.Errorf("the bots ended %d tasks, the server says %v of %d", g.finished(), state, n)
		}
	}
	left := 20
	for id := range maps.Keys(g.ids) {
		if left--; left < 0 {
			break
		}
		res, err := s.client.GetStdout(ctx, &pb.TaskIdWithOffsetRequest{TaskId: id})
		if err != nil {
			return fmt.Errorf("recount: %w", err)
		}
		if !bytes.Equal(res.Output, simbot.Output) {
			return fmt.Errorf("task %s printed %d bytes, the server gives back %d others", id, len(simbot.Output), len(res.Output))
		}
	}
	return nil
}

func (res *lifecycleResult) report() *Report {
	took := res.end.Sub(res.start)
	windows := make([]float64, int(took/lifecycleWindow))
	var byStep [steps][]float64
	var whole []float64
	for _, s := range res.samples {
		if i := int(s.end.Sub(res.start) / lifecycleWindow); i < len(windows) {
			windows[i] += float64(time.Second / lifecycleWindow)
		}
		var sum time.Duration
		for i, d := range s.took {
			byStep[i] = append(byStep[i], ms(d))
			sum += d
		}
		whole = append(whole, ms(sum))
	}
	stepMS := map[string]spread{}
	for i, name := range stepNames {
		stepMS[name] = spreadOf(byStep[i])
	}
	return &Report{
		Unit: "1/s", N: len(res.samples), Median: quantile(windows, 0.5), P99: quantile(windows, 0.01),
		Extra: map[string]any{
			"lifecycles_per_s": float64(len(res.samples)) / took.Seconds(),
			"lifecycle_ms":     spreadOf(whole),
			"step_ms":          stepMS,
		},
	}
}
