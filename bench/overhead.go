package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

const (
	overheadBots  = 4
	overheadTasks = 600                   // in a row on all bots, for the rate
	overheadRest  = 10 * time.Millisecond // between tasks on the one bot
)

// overhead measures what a bot adds to a task: from the claim to the final
// report, less the run time of the command, for /bin/true on one idle bot with
// its whole process tree. Extra tells how many such tasks per second four bots
// get through, from the first claim to the last end.
func overhead(ctx context.Context, r *run) (*Report, error) {
	fmt.Fprintf(r.Progress, "%d bots\n", overheadBots)
	s, err := r.fleet(ctx, overheadBots)
	if err != nil {
		return nil, err
	}
	rep, err := s.overhead(ctx, r.samples(minSamples))
	return rep, errors.Join(err, s.stop())
}

func (s *service) overhead(ctx context.Context, n int) (*Report, error) {
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	ids, err := s.botIDs(ctx)
	if err != nil {
		return nil, err
	}
	path, err := truePath()
	if err != nil {
		return nil, err
	}
	var over, total, roundTrip []float64
	for range n {
		start := time.Now()
		res, err := s.runTask(ctx, ids[0], path)
		if err != nil {
			return nil, err
		}
		roundTrip = append(roundTrip, ms(time.Since(start)))
		held := res.CompletedTs.AsTime().Sub(res.StartedTs.AsTime())
		total = append(total, ms(held))
		over = append(over, ms(held)-1000*float64(res.Duration))
		if err := rest(ctx, overheadRest); err != nil {
			return nil, err
		}
	}
	sp := spreadOf(over)
	rep := &Report{Unit: "ms", Median: sp.Median, P99: sp.P99, N: n, Extra: s.about(map[string]any{
		"claim_to_final_ms":   spreadOf(total),
		"submit_to_result_ms": spreadOf(roundTrip),
	})}
	return rep, s.throughput(ctx, path, rep.Extra)
}

// throughput gives all bots more work than they can do and measures the rate.
func (s *service) throughput(ctx context.Context, path string, extra map[string]any) error {
	pids := s.bots()
	before, err := cpuOf(pids...)
	measured := err == nil
	tasks := make([]string, overheadTasks)
	err = parallel(overheadTasks, 2*runtime.NumCPU(), func(i int) error {
		ans, err := s.client.NewTask(ctx, request("", path))
		tasks[i] = ans.GetTaskId()
		return err
	})
	if err != nil {
		return err
	}
	var first, last time.Time
	for _, id := range tasks {
		res, err := s.await(ctx, id)
		if err != nil {
			return err
		}
		if t := res.StartedTs.AsTime(); first.IsZero() || t.Before(first) {
			first = t
		}
		if t := res.CompletedTs.AsTime(); t.After(last) {
			last = t
		}
	}
	if err := s.allIdle(ctx); err != nil {
		return err
	}
	extra["tasks_per_s"] = float64(overheadTasks) / last.Sub(first).Seconds()
	extra["bots"] = len(pids)
	if after, err := cpuOf(pids...); measured && err == nil {
		extra["bot_cpu_ms_per_task"] = ms(after-before) / overheadTasks
	}
	return nil
}

// allIdle checks that no bot has anything left.
func (s *service) allIdle(ctx context.Context) error {
	res, err := s.client.CountBots(ctx, &pb.BotsCountRequest{})
	if err == nil && res.Dead > 0 {
		return fmt.Errorf("%d bots died", res.Dead)
	}
	return err
}
