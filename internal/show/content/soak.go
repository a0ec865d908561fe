package content

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/specimen"
)

// load is what a soak works with.
type load struct {
	fleet  int
	inputs int64 // bytes of all trees
	trees  int
	limit  int64 // of each bot's cache
	stored int64 // of the server's storage
	time   time.Duration
}

func soakLoad(o options) load {
	l := load{fleet: 8, inputs: 2 << 30, trees: 32, limit: 1 << 30, stored: 8 << 30, time: o.time}
	if o.short {
		l.inputs, l.limit, l.stored = 256<<20, 128<<20, 1<<30
	}
	return l
}

// each is the size of one tree.
func (l load) each() int64 { return l.inputs / int64(l.trees) }

// soaking is the demonstration under way.
type soaking struct {
	*site
	load
	roots []cas.Digest

	mu        sync.Mutex
	tasks     int
	cold, hot int64 // bytes
	looks     []look
	most      int64 // bytes of a bot's cache, seen
	mostCAS   int64 // bytes of the server's storage, seen
}

// look is the memory at one moment, in MiB.
type look struct{ server, bots float64 }

// soak keeps bots busy with inputs that do not fit into their caches, and
// looks at limits and memory all the while.
func soak(ctx context.Context, o options) (err error) {
	l := soakLoad(o)
	s, err := plan{bin: o.bin, cacheSize: l.limit, server: []string{"--cas-max-size", fmt.Sprint(l.stored)}}.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if free, err := cache.Free(s.root); err != nil {
		return err
	} else if need := l.inputs + int64(l.fleet)*(l.limit+2*l.each()) + 3<<30; free < need {
		return fmt.Errorf("%d MiB are free in %s and %d MiB are needed", free>>20, s.root, need>>20)
	}
	k := &soaking{site: s, load: l}
	if err := k.archive(ctx, o.seed); err != nil {
		return err
	}
	for n := range l.fleet {
		if _, err := s.addBot(ctx, fmt.Sprint("soak-", n+1)); err != nil {
			return err
		}
	}
	fmt.Printf("%d bots, %d trees of %d MiB, cache limit %d MiB, storage limit %d MiB, for %v\n",
		l.fleet, l.trees, l.each()>>20, l.limit>>20, l.stored>>20, l.time)
	working, stop := context.WithTimeout(ctx, l.time)
	defer stop()
	g, gctx := errgroup.WithContext(working)
	for n := range 2 * l.fleet {
		g.Go(func() error { return k.work(gctx, ctx, rand.New(rand.NewPCG(o.seed, uint64(n)))) })
	}
	g.Go(func() error { return k.watch(gctx) })
	began := time.Now()
	if err := g.Wait(); err != nil {
		return fmt.Errorf("%w\nthe server: %s\na bot: %s", err, tail(s.path("server.log")), tail(s.bots[0].log))
	}
	return k.judge(time.Since(began))
}

// archive makes the trees on the server.
func (k *soaking) archive(ctx context.Context, seed uint64) error {
	to, err := remote.New(remote.Options{URL: k.url})
	if err != nil {
		return err
	}
	defer to.Close()
	for n := range k.trees {
		dir := k.path("tree")
		size := k.each()
		if err := specimen.Small(dir, specimen.Shape{Files: 100, Bytes: size / 2, Seed: seed + uint64(n)}); err != nil {
			return err
		}
		if err := specimen.Large(filepath.Join(dir, "large"), size/2, seed+uint64(n)); err != nil {
			return err
		}
		t, err := archive.Upload(ctx, to, dir, archive.Options{})
		if err != nil {
			return err
		}
		k.roots = append(k.roots, t.Root)
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// work runs one task after the other until ctx ends; the last one may end
// after it. A quarter of the trees are wanted five times out of eight.
func (k *soaking) work(ctx, last context.Context, rng *rand.Rand) error {
	for ctx.Err() == nil {
		n := rng.IntN(len(k.roots))
		if rng.IntN(2) == 0 {
			n = rng.IntN(max(1, len(k.roots)/4))
		}
		r, err := k.run(last, job{
			command: []string{"sh", "-c", `find . -type f | wc -l; head -c 50000 /dev/urandom > "$0/noise"`, "${ISOLATED_OUTDIR}"},
			inputs:  k.roots[n],
		})
		if err != nil {
			return err
		}
		if err := r.good(); err != nil {
			return err
		}
		if got := strings.TrimSpace(r.output); got != "101" {
			return fmt.Errorf("task %s saw %s files, want 101", r.TaskId, got)
		}
		d := r.download()
		if d == nil {
			return fmt.Errorf("task %s says nothing of its inputs", r.TaskId)
		}
		k.mu.Lock()
		k.tasks++
		k.cold += d.TotalBytesItemsCold
		k.hot += d.TotalBytesItemsHot
		k.mu.Unlock()
	}
	return nil
}

// watch looks at memory and sizes every half second.
func (k *soaking) watch(ctx context.Context) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var l look
		l.server, _ = resident(k.server.Pid)
		for _, b := range k.bots {
			m, _ := proportional(b.p.Pid)
			l.bots += m
		}
		b := k.bots[n%len(k.bots)]
		used := sizeOf(filepath.Join(b.dir, "cas_cache"), isContent)
		var stored int64
		if n%10 == 0 {
			stored = sizeOf(k.path("state", "cas"), func(string) bool { return true })
		}
		k.mu.Lock()
		if l.server > 0 {
			k.looks = append(k.looks, l)
		}
		k.most, k.mostCAS = max(k.most, used), max(k.mostCAS, stored)
		k.mu.Unlock()
	}
}

// isContent is for the names of blobs in a bot's cache, whole or on their way.
// What lies deeper are more names of the same files.
func isContent(path string) bool {
	name := filepath.Base(path)
	return filepath.Base(filepath.Dir(path)) == "cas_cache" && (len(name) >= 64 || strings.HasPrefix(name, "tmp-"))
}

// sizeOf adds up those files below dir that count.
func sizeOf(dir string, counts func(path string) bool) (bytes int64) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has gone meanwhile
		}
		if !counts(path) {
			return nil
		}
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			bytes += fi.Size()
		}
		return nil
	})
	return bytes
}

// flat is how much more memory may be in use in the last third than in the
// first: some of what a heap has once taken stays.
const (
	flatShare = 1.25
	flatMiB   = 16 // on top
)

func (k *soaking) judge(took time.Duration) error {
	fmt.Printf("%d tasks in %v, %.1f a second; hit rate %.0f %% of %.1f GiB\n", k.tasks, took.Round(time.Second),
		float64(k.tasks)/took.Seconds(), 100*float64(k.hot)/float64(max(1, k.hot+k.cold)), float64(k.hot+k.cold)/(1<<30))
	var errs []error
	bound := k.limit + k.each() // it is kept before a task; then the task's inputs come
	fmt.Printf("largest cache of a bot seen: %d MiB, limit %d MiB and the inputs of one task\n", k.most>>20, k.limit>>20)
	if k.most > bound {
		errs = append(errs, fmt.Errorf("a bot's cache had %d bytes, want at most %d", k.most, bound))
	}
	if k.most < k.limit/2 && k.inputs > k.limit {
		fmt.Printf("note: no cache was full: too few tasks in %v\n", took.Round(time.Second))
	}
	fmt.Printf("largest storage of the server seen: %d MiB, limit %d MiB\n", k.mostCAS>>20, k.stored>>20)
	if k.mostCAS > k.stored {
		errs = append(errs, fmt.Errorf("the server's storage had %d bytes, want at most %d", k.mostCAS, k.stored))
	}
	if len(k.looks) < 9 {
		return errors.Join(append(errs, errors.New("memory could not be looked at often enough"))...)
	}
	third := len(k.looks) / 3
	of := func(get func(look) float64, part []look) float64 {
		var all []float64
		for _, l := range part {
			all = append(all, get(l))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	for _, m := range []struct {
		name string
		get  func(look) float64
	}{
		{"server, resident", func(l look) float64 { return l.server }},
		{fmt.Sprintf("%d bots, proportional", k.fleet), func(l look) float64 { return l.bots }},
	} {
		first, last := of(m.get, k.looks[:third]), of(m.get, k.looks[len(k.looks)-third:])
		fmt.Printf("memory, %s: %.1f MiB in the first third, %.1f MiB in the last\n", m.name, first, last)
		if last > flatShare*first+flatMiB {
			errs = append(errs, fmt.Errorf("memory of %s grew from %.1f to %.1f MiB", m.name, first, last))
		}
	}
	return errors.Join(errs...)
}
