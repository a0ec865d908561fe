package content

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/disk"
	"github.com/skepdev/skep/cas/reapi"
	"github.com/skepdev/skep/cas/remote"
)

// evicting has a bot fetch from a storage of 16 MiB that evicts what it is to
// fetch because others upload: the one that skep servers have, with the
// server's code, whose clock is ours, as what was answered is kept for an hour.
func evicting(ctx context.Context, o options, failed *[]string) (err error) {
	dir, err := os.MkdirTemp("", "skep-evict-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var ahead atomic.Int64
	store, err := disk.Open(ctx, disk.Options{
		Dir: dir, MaxBytes: 16 << 20, MinFree: 1 << 20,
		Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	url, stop, err := serveStore(reapi.OnDisk(store))
	if err != nil {
		return err
	}
	defer stop()
	return attackWith(ctx, o, []string{"--cas", url}, failed, func(ctx context.Context, a *attack) error {
		to, err := remote.New(remote.Options{URL: url, Patience: 2 * time.Second})
		if err != nil {
			return err
		}
		defer to.Close()
		a.to = to
		const large = 6 << 20
		old, err := a.good(ctx, "old", 1, large)
		if err != nil {
			return err
		}
		gone, err := largeFile(ctx, to, old)
		if err != nil {
			return err
		}
		here := func() (bool, error) {
			missing, err := to.Missing(ctx, []cas.Digest{gone})
			return len(missing) == 0, err
		}
		ahead.Add(int64(2 * time.Hour))
		for n := range 4 { // 24 MiB, two hours apart
			if _, err := a.good(ctx, fmt.Sprint("new-", n), uint64(2+n), large); err != nil {
				return err
			}
			ahead.Add(int64(2 * time.Hour))
		}
		if is, err := here(); err != nil || is {
			return errors.Join(err, errors.New("24 MiB more evict nothing from a storage of 16 MiB"))
		}
		if err := a.try(ctx, "a blob that was evicted meanwhile", old.Root, "CLIENT_ERROR: missing_cas"); err != nil {
			return err
		}
		if _, err := archive.Upload(ctx, to, a.path("made", "old"), archive.Options{}); err != nil {
			return err
		}
		return a.try(ctx, "the same, archived again", old.Root, "COMPLETED")
	})
}
