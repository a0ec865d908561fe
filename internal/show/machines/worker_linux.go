package machines

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/store"
)

// worker is a provider that the demonstrations kill: the reconciler and the
// client of Compute Engine as skep server has them, over a store and a
// simulated cloud, and the bots of the cloud's machines. These are in the
// store too, and so outlive it.
type worker struct {
	store *store.Store
	cloud provider.Provider
	cut   string // file to which a busy machine that is taken away is written
	rec   *machine.Reconciler
}

// Worker runs it until it is killed.
func Worker(args []string) int {
	flags := flag.NewFlagSet("worker", flag.ExitOnError)
	dsn := flags.String("db", "", "of the store")
	endpoint := flags.String("gce", "", "of the cloud")
	dir := flags.String("dir", "", "with pools.json, and where cut machines are written")
	_ = flags.Parse(args)
	if err := work(*dsn, *endpoint, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

func work(dsn, endpoint, dir string) error {
	ctx := context.Background()
	st, err := store.Open(ctx, dsn, store.Options{})
	if err != nil {
		return err
	}
	cloud, err := gce.New(ctx, gce.Options{Endpoint: endpoint, Timeout: 2 * time.Second})
	if err != nil {
		return err
	}
	w := &worker{store: st, cloud: cloud, cut: filepath.Join(dir, "cut")}
	w.rec, err = machine.New(ctx, st, w, func(string, []string) (provider.Provider, error) { return watched{cloud, w}, nil }, machine.Options{
		Server: "https://skep.example.com", Patience: machine.Patience{Silence: 3 * time.Second}, Resync: time.Second, Audit: 2 * time.Second,
		LeaseLife: 2 * time.Second, Pause: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.rec.Run(ctx) })
	g.Go(func() error { return w.follow(ctx, filepath.Join(dir, "pools.json")) })
	g.Go(func() error { return w.bots(ctx) })
	return g.Wait()
}

// follow takes what is declared.
func (w *worker) follow(ctx context.Context, path string) error {
	for {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var configs []provider.Config
		if err := json.Unmarshal(b, &configs); err != nil {
			return err
		}
		if err := w.rec.Import(ctx, configs, nil); err != nil && !transient(err) {
			return err
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func transient(err error) bool {
	k := skep.KindOf(err)
	return k == skep.Unavailable || k == skep.Conflict || errors.Is(err, context.DeadlineExceeded)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// bots lets the bots of all machines live a little: they come, take tasks, end
// them, and leave when they were told to and have none.
func (w *worker) bots(ctx context.Context) error {
	for {
		vms, err := w.store.VMsAfter(ctx, "", 10000)
		if err != nil {
			return err
		}
		for i := range vms {
			v := &vms[i]
			if v.URL == "" || !v.Deleting.IsZero() || v.Bot.Dead {
				continue
			}
			if err := w.live(ctx, v); err != nil && ctx.Err() == nil && !transient(err) {
				return err
			}
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func (w *worker) live(ctx context.Context, v *store.VM) error {
	id := skep.BotID(v.Hostname)
	changed := false
	err := w.store.Update(ctx, func(tx *store.Tx) error {
		changed = false
		now, err := tx.LockVM(v.ID)
		if skep.KindOf(err) == skep.NotFound {
			err = nil
		}
		if err != nil || now == nil || now.Hostname != v.Hostname || !now.Deleting.IsZero() {
			return err
		}
		b, err := tx.LockBot(id)
		switch {
		case skep.KindOf(err) == skep.NotFound && err != nil:
			b = &skep.Bot{ID: id, FirstSeen: tx.Now, Dimensions: skep.Dimensions{"id": {v.Hostname}}}
			changed = true
		case err != nil:
			return err
		case b.Dead:
			return nil
		case b.Task != 0 && rand.IntN(4) == 0:
			b.Task = 0
		case b.Task == 0:
			leave, err := tx.Meta(ctx, "leave "+v.Hostname)
			if err != nil {
				return err
			}
			switch {
			case leave != "":
				b.Dead, b.Terminated, changed = true, 0x120, true
			case rand.IntN(4) == 0:
				b.Task = 0x7770
			default:
				return nil
			}
		default:
			return nil
		}
		b.LastSeen = tx.Now
		return tx.SaveBot(b)
	})
	if err == nil && changed {
		w.rec.Rouse(id)
	}
	return err
}

// Terminate implements machine.Fleet.
func (w *worker) Terminate(ctx context.Context, bot skep.BotID, _, _ string) (skep.TaskID, error) {
	return 0, w.store.Update(ctx, func(tx *store.Tx) error { return tx.SetMeta("leave "+string(bot), "1") })
}

// Cancel implements machine.Fleet.
func (w *worker) Cancel(context.Context, skep.TaskID, bool) (bool, bool, error) {
	return false, false, nil
}

// Delete implements machine.Fleet.
func (w *worker) Delete(ctx context.Context, bot skep.BotID) error {
	return w.store.Update(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockBot(bot); err != nil {
			return err
		}
		return tx.DeleteBot(bot)
	})
}

// watched is a cloud that tells when a machine with a task is taken away.
type watched struct {
	provider.Provider
	w *worker
}

func (c watched) Delete(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	if b, err := c.w.store.Bot(ctx, skep.BotID(r.Name)); err == nil && b.Task != 0 && !b.Dead {
		f, err := os.OpenFile(c.w.cut, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return false, err
		}
		fmt.Fprintln(f, r.Name)
		if err := f.Close(); err != nil {
			return false, err
		}
	}
	return c.Provider.Delete(ctx, r, requestID)
}
