package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/skepdev/skep/host/pool"
	"github.com/skepdev/skep/internal/stage/ownpool"
)

// roomStock is how many containers lie ready in the cases of warm containers.
const roomStock = 8

// pool starts a pool with a stock.
func (r *run) pool(ctx context.Context) (*ownpool.Service, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a pool of containers needs root")
	}
	exe, err := r.exe()
	if err != nil {
		return nil, err
	}
	im, err := ownpool.MakeImage(r.dir, nil)
	if err != nil {
		return nil, err
	}
	s := &ownpool.Service{Skep: exe, Dir: filepath.Join(r.dir, "pool"), Runtime: "oci", Image: im}
	fmt.Fprintln(r.Progress, "a pool of", roomStock)
	if _, err := s.Start(ctx, "--min", fmt.Sprint(roomStock), "--max", fmt.Sprint(roomStock)); err != nil {
		return nil, err
	}
	if _, err := s.Await(ctx, time.Minute, "stocked", ownpool.Quiet(roomStock)); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// warmPool measures a get with stock, the connection included.
func warmPool(ctx context.Context, r *run) (rep *Report, err error) {
	s, err := r.pool(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	n := r.samples(minSamples)
	l, err := s.Latency(ctx, roomStock, n)
	if err != nil {
		return nil, err
	}
	made, st, err := r.made(ctx, s)
	if err != nil {
		return nil, err
	}
	whole := spreadOf(inMS(l.Whole))
	return &Report{Unit: "ms", Median: whole.Median, P99: whole.P99, N: n, Extra: map[string]any{
		"runtime": st.Runtime, "echo_ms": spreadOf(inMS(l.Echo)), "get_alone_ms": spreadOf(inMS(l.Get)), "exec_true_ms": spreadOf(inMS(l.Exec)),
		"release_ms": spreadOf(inMS(l.Release)), "made_per_s": made,
	}}, nil
}

// made is how many containers a second the pool makes when its stock is gone.
func (r *run) made(ctx context.Context, s *ownpool.Service) (float64, *pool.Status, error) {
	c, err := pool.Dial(ctx, s.At())
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	before, err := c.Status(ctx)
	if err != nil {
		return 0, nil, err
	}
	const n = 3 * roomStock
	began := time.Now()
	for range n {
		if _, err := c.Get(ctx, pool.Get{For: "bench", TimeoutMS: 10_000}); err != nil {
			return 0, nil, err
		}
	}
	after, err := c.Status(ctx)
	if err != nil {
		return 0, nil, err
	}
	return float64(after.Totals.Made-before.Totals.Made) / time.Since(began).Seconds(), after, nil
}

// cleanRoom measures what a clean room adds to a task: the difference of the
// medians of the same task with and without, in turns.
func cleanRoom(ctx context.Context, r *run) (rep *Report, err error) {
	s, err := r.pool(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Stop(context.WithoutCancel(ctx))) }()
	var both [2]*ownpool.Bots
	for i, socket := range []string{"", s.At()} {
		fmt.Fprintln(r.Progress, "a bot", socket)
		if both[i], err = ownpool.StartBots(ctx, s.Skep, filepath.Join(r.dir, fmt.Sprint("fleet", i)), socket); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, both[i].Fleet.Stop()) }()
	}
	n := r.samples(slowCases["cleanroom"])
	out, in, err := s.RoomCost(ctx, roomStock, both[0], both[1], n)
	if err != nil {
		return nil, err
	}
	more := make([]float64, n)
	for i := range more { // neighbours in time
		more[i] = ms(in[i] - out[i])
	}
	outside, inside := spreadOf(inMS(out)), spreadOf(inMS(in))
	return &Report{Unit: "ms", Median: inside.Median - outside.Median, P99: spreadOf(more).P99, N: n, Extra: map[string]any{"outside_ms": outside, "inside_ms": inside}}, nil
}

func inMS(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = ms(d)
	}
	return out
}
