package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/runner/named"
)

// evictor is a cache that gives up what was unused longest.
type evictor interface {
	Oldest() (time.Time, bool)
	Evict() (freed int64, err error)
	Enforce() error
}

const (
	maxCacheAge = 21 * 24 * time.Hour
	trimReserve = 2 << 30 // what a task gets to work with, beyond MinFree
)

// trim removes from all caches together what is too old, and the longest
// unused until minFree bytes of the disk are free; then each keeps its own
// limits. spec bot.md §5.8.
func trim(now time.Time, free, minFree int64, caches ...evictor) error {
	for {
		var oldest evictor
		var used time.Time
		for _, c := range caches {
			if t, ok := c.Oldest(); ok && (oldest == nil || t.Before(used)) {
				oldest, used = c, t
			}
		}
		if oldest == nil || free >= minFree && now.Sub(used) <= maxCacheAge {
			break
		}
		freed, err := oldest.Evict()
		if err != nil {
			return err
		}
		free += freed
	}
	var errs []error
	for _, c := range caches {
		errs = append(errs, c.Enforce())
	}
	return errors.Join(errs...)
}

// trimCaches makes room before a task. A cache that cannot be trimmed is no
// reason not to run the task.
func (r *isolatedRun) trimCaches() {
	began := time.Now()
	defer func() { r.res.Stats.TrimCaches = &botapi.OperationStats{Duration: seconds(began)} }()
	minFree := r.Storage.MinFree
	if minFree == 0 {
		minFree = 2 << 30
	}
	minFree += trimReserve
	var names []string
	for _, c := range r.job.Caches {
		names = append(names, c.Name)
		if n, err := strconv.ParseInt(c.Hint, 10, 64); err == nil && n > 0 && r.named != nil && !r.named.Has(c.Name) {
			minFree += n
		}
	}
	free, err := cache.Free(r.BotDir)
	if err != nil {
		free = minFree
	}
	var list []evictor
	if r.named != nil && r.named.Len() > 0 {
		err := r.named.Touch(names...)
		if err != nil {
			r.log.Warn("named caches not marked as used", "task", r.job.TaskID, "err", err)
		}
		list = append(list, r.named.Trim(names...))
	}
	// A task without inputs need not read the state of all contents to learn
	// that there is room.
	if _, err := os.Lstat(r.Storage.Cache); err == nil && r.cas == nil && free < minFree {
		if r.cas, err = openStorage(r.Storage, r.log); err != nil {
			r.log.Warn("content cache cannot be read", "err", err)
			r.cas = nil
		}
	}
	if r.cas != nil && (r.job.wantsInputs() || free < minFree) && !r.cas.Within(minFree) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		t, err := r.cas.Trim(ctx)
		if err != nil {
			r.log.Info("content cache not trimmed: others use it", "task", r.job.TaskID, "err", err)
		} else {
			defer func() {
				if err := t.Close(); err != nil {
					r.log.Warn("content cache", "task", r.job.TaskID, "err", err)
				}
			}()
			list = append(list, t)
		}
	}
	if err := trim(time.Now(), free, minFree, list...); err != nil {
		r.log.Warn("caches not trimmed", "task", r.job.TaskID, "err", err)
	}
}

// settleCache trims what one task needed beyond the limits of the cache.
func (r *isolatedRun) settleCache() {
	if r.cas == nil || r.inputs == nil || r.cas.Within(0) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	t, err := r.cas.Trim(ctx)
	if err == nil {
		err = errors.Join(t.Enforce(), t.Close())
	}
	if err != nil {
		r.log.Info("content cache not trimmed: others use it, or it cannot be", "task", r.job.TaskID, "err", err)
	}
}

// openCaches opens what the job needs of them.
func (r *isolatedRun) openCaches() (err error) {
	dir := filepath.Join(r.BotDir, "c")
	if r.named, err = named.Open(named.Options{Dir: dir, Log: r.log}); err != nil {
		if len(r.job.Caches) > 0 {
			return err
		}
		r.log.Warn("named caches cannot be read", "err", err)
		r.named = nil
	}
	if r.job.wantsInputs() && r.cas == nil {
		r.cas, err = openStorage(r.Storage, r.log)
		return err
	}
	return nil
}
