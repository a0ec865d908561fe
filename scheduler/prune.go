package scheduler

import (
	"context"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// pruneEvery is how often old tasks, events and bots are deleted.
const pruneEvery = 10 * time.Minute

// pruneLoop deletes what is too old to be kept, a little at a time, so that
// nobody waits long for the writer.
func (s *Scheduler) pruneLoop(ctx context.Context) error {
	tick := time.NewTicker(pruneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.queues.forget(s.o.Now())
		if err := s.forgetBots(ctx); err != nil && ctx.Err() == nil {
			s.o.Log.ErrorContext(ctx, "read bots", "err", err)
		}
		for more := true; more && ctx.Err() == nil; {
			err := s.store.Update(ctx, func(tx *store.Tx) (err error) {
				more, err = tx.Prune(100, s.o.BotLife())
				return err
			})
			if err != nil {
				if ctx.Err() == nil {
					s.o.Log.ErrorContext(ctx, "delete what is old", "err", err)
				}
				break
			}
		}
	}
}

// forgetBots drops from memory the bots that the store does not have any more.
func (s *Scheduler) forgetBots(ctx context.Context) error {
	begun := s.o.Now()
	known := map[skep.BotID]bool{}
	for after, more := skep.BotID(""), true; more; {
		bots, err := s.store.BotsAfter(ctx, after, 1000)
		if err != nil {
			return err
		}
		for _, b := range bots {
			known[b.ID] = true
			after = b.ID
		}
		more = len(bots) == 1000
	}
	s.fleet.keep(known, begun)
	return nil
}
