package scheduler

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// matchLoop gathers the polls that wait on this process and claims work for
// all of them in one change of the store. Under no load a poll or a new task
// starts a round at once; under load, what came in during a round is served
// together by the next.
func (s *Scheduler) matchLoop(ctx context.Context) error {
	defer s.Drain()
	tick := time.NewTicker(resync)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.queues.wake:
		case <-tick.C: // other servers may have filled a queue
			if err := s.refreshQueues(ctx); err != nil && ctx.Err() == nil {
				s.o.Log.ErrorContext(ctx, "read queues", "err", err)
			}
		}
		s.match(ctx)
	}
}

func (s *Scheduler) match(ctx context.Context) {
	r := s.queues.begin()
	if len(r.waiters) == 0 {
		return
	}
	var (
		emptied []roundQueue
		claims  map[*waiter]Command
	)
	err := s.store.Update(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		emptied, claims = nil, map[*waiter]Command{}
		var waiting []store.Waiting
		left := map[skep.QueueID]int{}
		for _, q := range r.queues {
			ws, err := tx.WaitingTasks(q.id, len(q.waiters))
			if err != nil {
				return err
			}
			left[q.id] = len(ws)
			if len(ws) == len(q.waiters) {
				left[q.id]++ // there may be more
			}
			waiting = append(waiting, ws...)
		}
		pairs := assign(waiting, r.queues)
		ids := make([]skep.BotID, len(pairs))
		for i, m := range pairs {
			ids[i] = m.waiter.bot.ID
		}
		free, err := tx.FreeBots(ids)
		if err != nil {
			return err
		}
		for _, m := range pairs {
			// An earlier poll of the bot may have got a task since this one came in.
			// Then this poll gets nothing, and the next one tells what became of it.
			if !free[m.waiter.bot.ID] {
				claims[m.waiter] = Command{}
				continue
			}
			if claims[m.waiter], err = s.claim(tx, m.task, m.waiter); err != nil {
				return err
			}
			free[m.waiter.bot.ID] = false
			left[m.task.Task.Queue]--
		}
		for _, q := range r.queues {
			if left[q.id] == 0 {
				emptied = append(emptied, q)
			}
		}
		return nil
	})
	if err != nil {
		s.o.Log.ErrorContext(ctx, "claim", "err", err)
		claims = nil
		emptied = nil
	}
	s.queues.finish(r, emptied, claims, err)
	for _, c := range claims {
		if c.Task != nil {
			s.moved(ctx, c.Task, skep.Pending)
			s.hub.notify(c.Task.ID)
		}
	}
}

type pair struct {
	task   store.Waiting
	waiter *waiter
}

// assign gives each task, best priority and then oldest first, to the poll of
// its queue that has waited longest and whose connection still stands.
func assign(tasks []store.Waiting, queues []roundQueue) []pair {
	slices.SortFunc(tasks, func(a, b store.Waiting) int {
		return cmp.Or(cmp.Compare(a.Task.Priority, b.Task.Priority), cmp.Compare(a.Task.ID, b.Task.ID))
	})
	byQueue := make(map[skep.QueueID][]*waiter, len(queues))
	for _, q := range queues {
		byQueue[q.id] = q.waiters
	}
	taken := map[*waiter]bool{}
	var out []pair
	for _, t := range tasks {
		ws := byQueue[t.Task.Queue]
		for len(ws) > 0 && (taken[ws[0]] || ws[0].ctx.Err() != nil) {
			ws = ws[1:]
		}
		if len(ws) > 0 {
			taken[ws[0]] = true
			out = append(out, pair{t, ws[0]})
			ws = ws[1:]
		}
		byQueue[t.Task.Queue] = ws
	}
	return out
}

// claim makes a waiting task the bot's.
func (s *Scheduler) claim(tx *store.Tx, m store.Waiting, w *waiter) (Command, error) {
	t, b := m.Task, w.bot
	if err := t.Move(skep.Running, tx.Now); err != nil {
		return Command{}, err
	}
	idle := b.IdleSince
	if idle.IsZero() {
		idle = tx.Now
	}
	t.StartedAt, t.ContactAt = tx.Now, tx.Now
	t.Bot, t.ClaimKey = b.ID, w.key
	t.Claim = &skep.Claim{Dimensions: b.Dimensions, Version: b.Version, IdleSince: idle, Authenticated: b.Authenticated}
	s.sign(t)
	event := skep.EventTask
	if m.Request.IsTermination() {
		event = skep.EventTerminate
	}
	if err := tx.Occupy(b.ID, t.ID, m.Request.Name, string(event)+":"+w.key); err != nil {
		return Command{}, err
	}
	if err := tx.ClaimTask(t, b.DimensionsKey); err != nil {
		return Command{}, err
	}
	if err := tx.AddTaskEvent(b.ID, event, "", t.ID); err != nil {
		return Command{}, err
	}
	return Command{Task: t, Request: m.Request, Secret: m.Secret}, nil
}

// sign notes on a task that this version of the server wrote it.
func (s *Scheduler) sign(t *skep.Task) {
	if i, ok := slices.BinarySearch(t.ServerVersions, s.o.Version); !ok {
		t.ServerVersions = slices.Insert(t.ServerVersions, i, s.o.Version)
	}
}
