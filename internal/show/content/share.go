package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/specimen"
)

// Of the trees that two bots with one cache have as inputs. Half of the bytes
// of all fit.
const (
	shareTrees = 4
	shareSmall = 3 << 20
	shareLarge = 5 << 20
	shareLimit = shareTrees * (shareSmall + shareLarge) / 2
)

// share shows that two bots whose setting caches.isolated.dir names one
// directory run tasks with inputs at the same time: each task has its tree byte
// for byte, neither bot waits for the other for long, both find what the other
// has fetched, and the limit holds.
func share(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "skep-shared-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	cacheDir := filepath.Join(dir, "cache")
	s, err := plan{bin: o.bin, cacheSize: shareLimit, cacheDir: cacheDir}.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	to, err := remote.New(remote.Options{URL: s.url})
	if err != nil {
		return err
	}
	defer to.Close()
	type tree struct {
		root cas.Digest
		walk string
	}
	var trees []tree
	for n := range shareTrees {
		at := s.path(fmt.Sprint("tree-", n))
		if err := specimen.Small(at, specimen.Shape{Files: 150, Bytes: shareSmall, Seed: uint64(n)}); err != nil {
			return err
		}
		if err := specimen.Large(filepath.Join(at, "large"), shareLarge, uint64(n)); err != nil {
			return err
		}
		up, err := archive.Upload(ctx, to, at, archive.Options{})
		if err != nil {
			return err
		}
		w, err := walkHere(ctx, at)
		if err != nil {
			return err
		}
		trees = append(trees, tree{up.Root, w})
	}
	tasks := 40
	if o.short {
		tasks = 10
	}
	var mu sync.Mutex
	var cold, hot int64
	longest := map[string]time.Duration{}
	g, tctx := errgroup.WithContext(ctx)
	for b := range 2 {
		bot, err := s.addBot(ctx, fmt.Sprint("shares-", b+1))
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			for n := range tasks {
				t := trees[(n*(b+1)+n/shareTrees)%shareTrees] // now the same as the other's, now another
				r, err := s.run(tctx, job{bot: bot.id, command: []string{"sh", "-c", walk}, inputs: t.root})
				if err == nil {
					err = r.good()
				}
				if err != nil {
					return fmt.Errorf("%s: %w\n%s", bot.id, err, tail(bot.log))
				}
				if r.output != t.walk {
					return fmt.Errorf("task %s on %s had other inputs: %s, want %s", r.TaskId, bot.id, r.output, t.walk)
				}
				d := r.download()
				mu.Lock()
				cold, hot = cold+d.GetTotalBytesItemsCold(), hot+d.GetTotalBytesItemsHot()
				longest[bot.id] = max(longest[bot.id], time.Duration(float64(d.GetDuration())*float64(time.Second)))
				mu.Unlock()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.stop(); err != nil { // what a task needed beyond the limit goes with it
		return err
	}
	_, kept, err := specimen.Size(cacheDir)
	if err != nil {
		return err
	}
	fmt.Printf("one cache of %d MiB for two bots: %d tasks each, %d MiB fetched and %d MiB there, %d MiB kept; the longest wait for inputs: %s\n",
		shareLimit>>20, tasks, cold>>20, hot>>20, kept>>20, strings.Trim(fmt.Sprint(longest), "map[]"))
	for _, m := range []string{"shares-1", "shares-2"} {
		if own, _ := filepath.Glob(s.path("bots", m, "cas_cache", "*")); len(own) > 2 {
			return fmt.Errorf("%s has a cache of its own: %q", m, own)
		}
		if longest[m] > 30*time.Second {
			return fmt.Errorf("%s waited %v for inputs of 8 MiB", m, longest[m])
		}
	}
	if hot == 0 || cold < shareTrees*(shareSmall+shareLarge)/2 {
		return errors.New("the two did not share")
	}
	// State and locks are beside the entries; one tree may stand ready twice.
	if kept > shareLimit+shareSmall+shareLarge {
		return fmt.Errorf("%d bytes are kept, %d is the limit", kept, shareLimit)
	}
	return nil
}
