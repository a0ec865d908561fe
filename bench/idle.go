package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/bench/simbot"
)

const (
	idleBots     = 10_000
	idleInterval = 10 * time.Millisecond // between two looks at the server's memory
	idleSettle   = 4 * time.Second       // until a server at rest has given back what it needed to come there
)

// idle measures what waiting costs: the resident memory of a server on which
// many bots wait for work, each on its own connection with an open poll, its
// processor time meanwhile; and the memory of one idle real bot, which is the
// proportional share of all its processes.
func idle(ctx context.Context, r *run) (*Report, error) {
	bots := idleBots
	if r.Bots > 0 {
		bots = r.Bots
	}
	if err := allowFiles(uint64(bots) + 512); err != nil {
		return nil, err
	}
	fmt.Fprintln(r.Progress, "server")
	s, err := r.start(ctx, "server", nil)
	if err != nil {
		return nil, err
	}
	rep, err := r.waiting(ctx, s, bots)
	if err := errors.Join(err, s.stop()); err != nil {
		return nil, err
	}
	fmt.Fprintln(r.Progress, "one real bot")
	alone, err := r.oneBot(ctx)
	if err != nil {
		return nil, err
	}
	for k, v := range alone {
		rep.Extra[k] = v
	}
	return rep, nil
}

// waiting makes bots wait and looks at the server.
func (r *run) waiting(ctx context.Context, s *service, bots int) (*Report, error) {
	empty, err := memoryOf(s.pid())
	if err != nil {
		return nil, err
	}
	all := make([]*simbot.Bot, bots)
	defer func() {
		for _, b := range all {
			if b != nil {
				b.Close()
			}
		}
	}()
	began := time.Now()
	err = parallel(bots, 64, func(i int) (err error) {
		if all[i], err = simbot.Dial(s.URL, fmt.Sprintf("bench--%d", i)); err != nil {
			return err
		}
		return all[i].Ask(50)
	})
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(r.Progress, "%d bots wait\n", bots)
	if err := quiet(ctx, s); err != nil {
		return nil, err
	}
	settled := time.Since(began)
	if err := rest(ctx, idleSettle); err != nil {
		return nil, err
	}
	n := r.samples(minSamples)
	rss := make([]float64, n)
	cpu, err := cpuOf(s.pid())
	if err != nil {
		return nil, err
	}
	start := time.Now()
	for i := range rss {
		if rss[i], err = rssOf(s.pid()); err != nil {
			return nil, err
		}
		select {
		case <-time.After(idleInterval):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	after, err := cpuOf(s.pid())
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	full, err := memoryOf(s.pid())
	if err != nil {
		return nil, err
	}
	if err := allKnown(ctx, s, bots); err != nil {
		return nil, err
	}
	sp := spreadOf(rss)
	return &Report{Unit: "MiB", Median: sp.Median, P99: sp.P99, N: n, Extra: s.about(map[string]any{
		"waiting_bots":        bots,
		"server_mib":          full,
		"server_empty_mib":    empty,
		"kib_per_bot":         (full.PSS - empty.PSS) * 1024 / float64(bots),
		"server_cpu_percent":  100 * float64(after-cpu) / float64(took),
		"time_to_all_wait_ms": ms(settled),
	})}, nil
}

// quiet waits until the server has taken in all that it was sent. It asks the
// system and not the server, which an answer about thousands of bots would
// cost memory.
func quiet(ctx context.Context, s *service) error {
	const look = 250 * time.Millisecond
	before, err := cpuOf(s.pid())
	for err == nil {
		if err = rest(ctx, look); err != nil {
			break
		}
		var now time.Duration
		if now, err = cpuOf(s.pid()); err == nil && now-before <= look/10 {
			return nil
		}
		before = now
	}
	return fmt.Errorf("wait until all bots wait: %w", err)
}

// allKnown checks that the server had all bots waiting.
func allKnown(ctx context.Context, s *service, bots int) error {
	res, err := s.client.CountBots(ctx, &pb.BotsCountRequest{})
	if err != nil {
		return err
	}
	if int(res.Count) != bots || res.Busy != 0 || res.Dead != 0 {
		return fmt.Errorf("%d bots wait, the server knows %d, %d of them busy, %d dead", bots, res.Count, res.Busy, res.Dead)
	}
	return nil
}

// oneBot looks at a real bot that has nothing to do, with the processes that
// it starts ahead.
func (r *run) oneBot(ctx context.Context) (map[string]any, error) {
	s, err := r.fleet(ctx, 1)
	if err != nil {
		return nil, err
	}
	extra, err := r.lookAtBot(ctx, s)
	return extra, errors.Join(err, s.stop())
}

func (r *run) lookAtBot(ctx context.Context, s *service) (map[string]any, error) {
	if err := s.settle(ctx); err != nil {
		return nil, err
	}
	pids := s.bots()
	if len(pids) != 1 {
		return nil, fmt.Errorf("want one bot, there are %d", len(pids))
	}
	tree := treeOf(pids[0])
	m, err := memoryOf(tree...)
	if err != nil {
		return nil, err
	}
	cpu, err := cpuOf(tree...)
	if err != nil {
		return nil, err
	}
	const look = 2 * time.Second
	select {
	case <-time.After(look):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	after, err := cpuOf(tree...)
	if err != nil {
		return nil, err
	}
	size, err := botSize(s.stateDir)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"idle_bot_mib":         m,
		"idle_bot_processes":   len(tree),
		"idle_bot_cpu_percent": 100 * float64(after-cpu) / float64(look),
		"skep_bot_size_mib":    size,
	}, nil
}

// botSize returns the size in MiB of the executable that a bot runs, its zip
// included.
func botSize(stateDir string) (float64, error) {
	found, err := filepath.Glob(filepath.Join(stateDir, "bots", "*", "swarming_bot*"))
	if err != nil || len(found) == 0 {
		return 0, fmt.Errorf("no bot executable below %s", stateDir)
	}
	info, err := os.Stat(found[0])
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / (1 << 20), nil
}
