package scheduler

import (
	"context"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// expiresAt makes the expiry loop look at t if it would sleep longer.
func (s *Scheduler) expiresAt(t time.Time) {
	for {
		select {
		case s.expiry <- t:
			return
		case other := <-s.expiry: // keep the earlier of two
			if other.Before(t) {
				t = other
			}
		}
	}
}

// expireLoop ends slices whose time is over. It sleeps until the first of them
// expires, and a minute at most.
func (s *Scheduler) expireLoop(ctx context.Context) error {
	var timer *time.Timer
	for {
		next, err := s.expire(ctx)
		if err != nil && ctx.Err() == nil {
			s.o.Log.ErrorContext(ctx, "expire", "err", err)
			next = s.o.Now().Add(resync)
		}
		wake := s.o.Now().Add(time.Minute)
		if !next.IsZero() && next.Before(wake) {
			wake = next
		}
		timer = time.NewTimer(max(0, wake.Sub(s.o.Now())))
	sleep:
		for {
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case t := <-s.expiry:
				if t.Before(wake) {
					wake = t
					timer.Reset(max(0, wake.Sub(s.o.Now())))
				}
			case <-timer.C:
				break sleep
			}
		}
	}
}

// expire ends what is over now and returns when to look next, zero for never.
func (s *Scheduler) expire(ctx context.Context) (time.Time, error) {
	const page = 100
	for {
		var ended, again []*skep.Task
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			ended, again = nil, nil
			ts, err := tx.ExpiredTasks(page)
			if err != nil {
				return err
			}
			for _, t := range ts {
				req, err := tx.Request(ctx, t.ID)
				if err != nil {
					return err
				}
				last := t.Slice+1 == len(req.Slices)
				s.sign(t)
				if last || !s.place(t, req, t.Slice+1) {
					to := skep.Expired
					if !last { // the later slices were refused for lack of bots
						to = skep.NoResource
					}
					if err := t.Move(to, tx.Now); err != nil {
						return err
					}
					t.AbandonAt, t.Fault = tx.Now, skep.FaultServer
					ended = append(ended, t)
				} else {
					t.ModifiedAt = tx.Now
					again = append(again, t)
					q := store.Queue{ID: t.Queue, Dimensions: req.Slices[t.Slice].Properties.Dimensions, Expires: t.ExpiresAt.Add(queueLife)}
					if err := tx.SaveQueue(q); err != nil {
						return err
					}
				}
				if err := tx.SaveTask(t); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return time.Time{}, err
		}
		for _, t := range ended {
			s.ended(ctx, t, skep.Pending)
		}
		for _, t := range again {
			s.tell(store.NewsQueue, strconv.FormatInt(int64(t.Queue), 10))
		}
		if len(again) > 0 {
			if err := s.refreshQueues(ctx); err != nil {
				return time.Time{}, err
			}
		}
		if len(ended)+len(again) < page {
			return s.store.NextExpiry(ctx)
		}
	}
}

// lostLoop keeps the heartbeat of the fleet, writes down when bots were last
// heard of, marks silent bots dead, and ends tasks whose bot has been silent
// for longer than the task tolerates.
func (s *Scheduler) lostLoop(ctx context.Context) error {
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return s.seen(context.WithoutCancel(ctx))
		case <-tick.C:
		}
		steps := []func(context.Context) error{
			func(ctx context.Context) error { return s.beat(ctx, false) }, s.seen, s.missing, s.lost,
		}
		if n%12 == 0 { // every minute; this net rarely catches anything
			steps = append(steps, s.orphans)
		}
		for _, step := range steps {
			if err := step(ctx); err != nil && ctx.Err() == nil {
				s.o.Log.ErrorContext(ctx, "look after bots", "err", err)
			}
		}
	}
}

// DefaultPingTolerance is the silence of a bot that ends its run when the
// request names none. spec/api-v2.md §6.1.
const DefaultPingTolerance = 1200 * time.Second

func (s *Scheduler) seen(ctx context.Context) error {
	at := s.fleet.unwritten()
	if len(at) == 0 {
		return nil
	}
	return s.store.Update(ctx, func(tx *store.Tx) error { return tx.SeenBots(at) })
}

// missing marks bots dead that were silent for too long. What such a bot runs
// stays visible: its task has its own tolerance.
func (s *Scheduler) missing(ctx context.Context) error {
	cutoff := s.o.Now().Add(-s.o.BotDeath())
	silent, err := s.store.SilentBots(ctx, cutoff)
	if err != nil {
		return err
	}
	for _, b := range silent {
		if s.fleet.served(b.LastSeen).After(cutoff) {
			continue
		}
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			b, err := tx.LockBot(b.ID)
			if err != nil {
				return err
			}
			if b.Dead || b.LastSeen.After(cutoff) {
				return nil
			}
			b.Dead, b.IdleSince, b.LastEvent = true, tx.Now, string(skep.EventMissing)
			if err := tx.SaveBot(b); err != nil {
				return err
			}
			return tx.AddEvent(b.ID, skep.EventMissing, "", b.Task)
		})
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		s.happened(b.ID)
	}
	return nil
}

// lost ends running tasks whose bot has not spoken of them for longer than
// their ping tolerance.
func (s *Scheduler) lost(ctx context.Context) error {
	running, err := s.store.RunningTasks(ctx)
	if err != nil {
		return err
	}
	late := func(t *skep.Task) bool {
		tolerance := t.PingTolerance
		if tolerance == 0 { // a termination task
			tolerance = DefaultPingTolerance
		}
		return t.State == skep.Running && s.o.Now().Sub(s.fleet.served(t.ContactAt)) > tolerance
	}
	for _, t := range running {
		if !late(t) {
			continue
		}
		var lost *skep.Task
		err := s.store.Update(ctx, func(tx *store.Tx) error {
			lost = nil
			now, err := tx.LockTask(t.ID)
			if err != nil || !late(now) {
				return err
			}
			if lost, err = s.lose(tx, t.ID, now.Bot); err != nil || lost == nil {
				return err
			}
			b, err := tx.LockBot(now.Bot)
			if err != nil {
				if skep.KindOf(err) == skep.NotFound {
					return nil
				}
				return err
			}
			if b.Task == t.ID && !b.Dead { // a dead bot's page keeps showing what it ran
				b.Task, b.TaskName = 0, ""
				return tx.SaveBot(b)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if lost != nil {
			s.ended(ctx, lost, skep.Running)
		}
	}
	return nil
}
