package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"maps"
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
		emptied, claims = nil, nil
		var waiting []*skep.Task
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
		reqs, err := s.requests(ctx, tx, pairs)
		if err != nil {
			return err
		}
		if claims, err = s.claimAll(ctx, tx, pairs, reqs); err != nil {
			return err
		}
		for _, c := range claims {
			if c.Task != nil {
				left[c.Task.Queue]--
			}
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
	s.claimed(ctx, claims)
}

// claimed tells whoever cares of claims that are committed, and returns how
// many tasks were given away.
func (s *Scheduler) claimed(ctx context.Context, claims map[*waiter]Command) (n int) {
	for _, c := range claims {
		if c.Task != nil {
			n++
			s.recent.drop(c.Task.ID)
			s.moved(ctx, c.Task, skep.Pending)
			s.hub.notify(c.Task.ID)
		}
	}
	return n
}

type pair struct {
	task   *skep.Task
	waiter *waiter
}

// assign gives each task, best priority and then oldest first, to the poll of
// its queue that has waited longest and whose connection still stands.
func assign(tasks []*skep.Task, queues []roundQueue) []pair {
	slices.SortFunc(tasks, func(a, b *skep.Task) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.ID, b.ID))
	})
	byQueue := make(map[skep.QueueID][]*waiter, len(queues))
	for _, q := range queues {
		byQueue[q.id] = q.waiters
	}
	taken := map[*waiter]bool{}
	var out []pair
	for _, t := range tasks {
		ws := byQueue[t.Queue]
		for len(ws) > 0 && (taken[ws[0]] || ws[0].ctx.Err() != nil) {
			ws = ws[1:]
		}
		if len(ws) > 0 {
			taken[ws[0]] = true
			out = append(out, pair{t, ws[0]})
			ws = ws[1:]
		}
		byQueue[t.Queue] = ws
	}
	return out
}

// requests returns what the tasks of pairs ask for.
func (s *Scheduler) requests(ctx context.Context, tx *store.Tx, pairs []pair) (map[skep.TaskID]*skep.TaskRequest, error) {
	ids := make([]skep.TaskID, len(pairs))
	for i, m := range pairs {
		ids[i] = m.task.ID
	}
	reqs, missing := s.recent.get(ids)
	more, err := tx.Requests(ctx, missing...)
	if err != nil {
		return nil, err
	}
	maps.Copy(reqs, more)
	for _, id := range missing {
		if reqs[id] == nil {
			return nil, fmt.Errorf("task %s waits without a request", id)
		}
	}
	return reqs, nil
}

// claimAll claims for each poll its task.
func (s *Scheduler) claimAll(ctx context.Context, tx *store.Tx, pairs []pair, reqs map[skep.TaskID]*skep.TaskRequest) (map[*waiter]Command, error) {
	ids := make([]skep.BotID, len(pairs))
	for i, m := range pairs {
		ids[i] = m.waiter.bot.ID
	}
	free, err := tx.FreeBots(ids)
	if err != nil {
		return nil, err
	}
	claims := make(map[*waiter]Command, len(pairs))
	for _, m := range pairs {
		// An earlier poll of the bot may have got a task since this one came in.
		// Then this poll gets nothing, and the next one tells what became of it. So
		// does one whose bot another server told to drain while it waited here.
		bot, ok := free[m.waiter.bot.ID]
		if !ok || bot.Ill && !m.waiter.ill {
			claims[m.waiter] = Command{}
			continue
		}
		if claims[m.waiter], err = s.claim(ctx, tx, m.task, reqs[m.task.ID], m.waiter); err != nil {
			return nil, err
		}
		delete(free, m.waiter.bot.ID)
	}
	return claims, nil
}

// claim makes a waiting task the bot's.
func (s *Scheduler) claim(ctx context.Context, tx *store.Tx, t *skep.Task, req *skep.TaskRequest, w *waiter) (Command, error) {
	b := w.bot
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
	if req.IsTermination() {
		event = skep.EventTerminate
	}
	if err := tx.Occupy(b.ID, t.ID, req.Name, event, w.key); err != nil {
		return Command{}, err
	}
	if err := tx.ClaimTask(t, b.DimensionsKey); err != nil {
		return Command{}, err
	}
	cmd := Command{Task: t, Request: req}
	var err error
	if req.HasSecret {
		cmd.Secret, err = tx.Secret(ctx, t.ID)
	}
	return cmd, err
}

// sign notes on a task that this version of the server wrote it.
func (s *Scheduler) sign(t *skep.Task) {
	if i, ok := slices.BinarySearch(t.ServerVersions, s.o.Version); !ok {
		t.ServerVersions = slices.Insert(t.ServerVersions, i, s.o.Version)
	}
}
