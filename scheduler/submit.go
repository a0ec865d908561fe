package scheduler

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Submit stores a validated request and queues its first slice that some bot
// could run. req gets its ID and CreatedAt here. A repeated call (same caller
// and UUID) returns what the first one made. When no slice can ever run the
// task is NO_RESOURCE at once.
func (s *Scheduler) Submit(ctx context.Context, req *skep.TaskRequest, secret []byte) (*skep.TaskRequest, *skep.Task, error) {
	for {
		r, t, err := s.submit(ctx, req, secret)
		if err == nil || skep.KindOf(err) != skep.Conflict { // Conflict: the id is taken
			return r, t, err
		}
	}
}

func (s *Scheduler) submit(ctx context.Context, req *skep.TaskRequest, secret []byte) (*skep.TaskRequest, *skep.Task, error) {
	now := s.o.Now().UTC().Truncate(time.Microsecond)
	req.ID, req.CreatedAt = skep.NewTaskID(now), now
	t := &skep.Task{
		ID: req.ID, State: skep.Pending, Priority: req.Priority, ModifiedAt: now, PingTolerance: req.PingTolerance,
	}
	if req.Parent != "" {
		parent, err := skep.ParseTaskID(req.Parent)
		if err != nil {
			return nil, nil, err
		}
		t.Parent = parent
	}
	s.sign(t)
	if !s.place(t, req, 0) {
		if err := t.Move(skep.NoResource, now); err != nil {
			return nil, nil, err
		}
		t.AbandonAt, t.Fault = now, skep.FaultServer
	}
	q := store.Queue{ID: t.Queue, Dimensions: req.Slices[t.Slice].Properties.Dimensions, Expires: now.Add(queueLife).Add(t.ExpiresAt.Sub(now))}
	known := s.queues.knows(q.ID, t.ExpiresAt)
	ready, err := store.Prepare(req, t, secret)
	if err != nil {
		return nil, nil, err
	}
	var r round
	if t.State == skep.Pending {
		r = s.queues.direct(t.Queue)
	}
	var earlier skep.TaskID
	var claims map[*waiter]Command
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		earlier, claims = 0, nil
		if req.UUID != "" {
			var err error
			if earlier, err = tx.TaskByUUID(req.Authenticated, req.UUID); err != nil || earlier != 0 {
				return err
			}
		}
		if req.IsTermination() { // one is enough, whoever else asks at this moment
			if _, err := tx.LockBot(skep.BotID(q.Dimensions[0].Values[0])); err != nil && skep.KindOf(err) != skep.NotFound {
				return err
			}
			if ts, err := tx.WaitingTasks(q.ID, 1); err != nil {
				return err
			} else if len(ts) > 0 {
				earlier = ts[0].ID
				return nil
			}
		}
		if !known {
			if err := tx.SaveQueue(q); err != nil {
				return err
			}
		}
		if err := tx.CreateTask(ready); err != nil {
			return err
		}
		claims, err = s.handOver(ctx, tx, t, req, r)
		return err
	})
	s.handedOver(r, claims, err)
	if err != nil {
		return nil, nil, err
	}
	if earlier != 0 {
		return s.Find(ctx, earlier)
	}
	s.moved(ctx, t, 0)
	if s.claimed(ctx, claims) == 0 && t.State == skep.Pending {
		s.tell(store.NewsQueue, strconv.FormatInt(int64(t.Queue), 10))
		if s.o.NoPolls {
			return req, t, nil
		}
		s.recent.put(req)
		s.queues.add(q)
		s.queues.filled(t.Queue)
		s.expiresAt(t.ExpiresAt)
	}
	return req, t, nil
}

// handOver claims a task that was just stored for the poll of r, if there is
// one: then one commit takes the task in and gives it away. t stays as it came
// in, which is what its sender is told.
func (s *Scheduler) handOver(ctx context.Context, tx *store.Tx, t *skep.Task, req *skep.TaskRequest, r round) (map[*waiter]Command, error) {
	mine := *t
	mine.ServerVersions = slices.Clone(t.ServerVersions)
	pairs := assign([]*skep.Task{&mine}, r.queues)
	return s.claimAll(ctx, tx, pairs, map[skep.TaskID]*skep.TaskRequest{t.ID: req})
}

// handedOver ends the round of handOver. A poll that got nothing goes on
// waiting, unless nobody knows whether it did.
func (s *Scheduler) handedOver(r round, claims map[*waiter]Command, err error) {
	if len(r.waiters) == 0 {
		return
	}
	if err != nil {
		claims = nil
	}
	if skep.KindOf(err) != skep.Unavailable {
		err = nil
	}
	s.queues.finish(r, nil, claims, err)
}

// queueLife is how long a queue is remembered after its last task expired.
const queueLife = 4 * time.Hour

// Find returns a task with its request, or a NotFound error.
func (s *Scheduler) Find(ctx context.Context, id skep.TaskID) (*skep.TaskRequest, *skep.Task, error) {
	found, err := s.store.Find(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	l, ok := found[id]
	if !ok {
		return nil, nil, skep.Errorf(skep.NotFound, "no such task: %s", id)
	}
	return l.Request, l.Task, nil
}

// place queues the first slice from i on that may wait or that some bot could
// run, which is known or would be made for it, and reports whether there is one.
func (s *Scheduler) place(t *skep.Task, req *skep.TaskRequest, i int) bool {
	for ; i < len(req.Slices); i++ {
		sl := &req.Slices[i]
		if sl.WaitForCapacity || req.IsTermination() || s.fleet.canRun(sl.Properties.Dimensions) || s.o.MayCome != nil && s.o.MayCome(sl.Properties.Dimensions) {
			t.Slice, t.ExpiresAt = i, req.ExpiresAt(i)
			t.Queue = sl.Properties.Dimensions.Queue()
			return true
		}
	}
	t.Slice = len(req.Slices) - 1
	t.Queue = req.Slices[t.Slice].Properties.Dimensions.Queue()
	t.ExpiresAt = req.ExpiresAt(t.Slice)
	return false
}

// Terminate asks a bot to end after its present task and returns the
// termination task; one that waits already is returned again.
func (s *Scheduler) Terminate(ctx context.Context, bot skep.BotID, caller, reason string) (skep.TaskID, error) {
	name := fmt.Sprintf("Terminate %s", bot)
	if reason != "" {
		name += ": " + reason
	}
	req := &skep.TaskRequest{
		Name: name, Authenticated: caller, ServiceAccount: "none",
		Tags: []string{
			"authenticated:" + caller, "id:" + string(bot), "priority:0", "realm:none", "service_account:none",
			"swarming.pool.template:no_pool", "swarming.terminate:1", "user:none",
		},
		Slices: []skep.Slice{{
			Expiration: 5 * 24 * time.Hour, WaitForCapacity: true,
			Properties: skep.Properties{Dimensions: skep.Constraints{{Key: "id", Values: []string{string(bot)}}}},
		}},
	}
	_, t, err := s.Submit(ctx, req, nil)
	if err != nil {
		return 0, err
	}
	return t.ID, nil
}
