package scheduler

import (
	"context"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Cancel gives up a waiting task, or with kill asks the bot of a running one
// to stop it. canceled tells whether this call changed anything.
// spec/api-v2.md §6.9.
func (s *Scheduler) Cancel(ctx context.Context, id skep.TaskID, kill bool) (canceled, wasRunning bool, err error) {
	var t *skep.Task
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		canceled, wasRunning = false, false
		var err error
		if t, err = tx.LockTask(id); err != nil {
			return err
		}
		switch t.State {
		case skep.Pending:
			if err := t.Move(skep.Canceled, tx.Now); err != nil {
				return err
			}
			t.AbandonAt, t.Fault = tx.Now, skep.FaultUser
		case skep.Running:
			wasRunning = true
			if !kill || t.Killing {
				return nil
			}
			t.Killing, t.AbandonAt, t.ModifiedAt = true, tx.Now, tx.Now
		default:
			return nil
		}
		canceled = true
		s.sign(t)
		return tx.SaveTask(t)
	}, store.KeyTask(id))
	if err != nil || !canceled {
		return false, wasRunning, err
	}
	if wasRunning {
		s.hub.notify(id)
		s.o.Log.InfoContext(ctx, "task is being killed", "task", id.String(), "bot", string(t.Bot))
		s.cancelChildren(ctx, t)
	} else {
		s.ended(ctx, t, skep.Pending)
	}
	return true, wasRunning, nil
}

// ended does what follows the end of a task: it tells those who watch, and
// cancels the tasks that it started.
func (s *Scheduler) ended(ctx context.Context, t *skep.Task, from skep.TaskState) {
	s.moved(ctx, t, from)
	s.hub.notify(t.ID)
	s.cancelChildren(ctx, t)
}

// cancelChildren ends the tasks that a task started. It runs with the context
// of the caller but does not end with it: the parent has ended for good.
func (s *Scheduler) cancelChildren(ctx context.Context, t *skep.Task) {
	if !t.HasChildren {
		return
	}
	ctx = context.WithoutCancel(ctx)
	children, err := s.store.Children(ctx, t.ID)
	if err != nil {
		s.o.Log.ErrorContext(ctx, "read children", "task", t.ID.String(), "err", err)
		return
	}
	for _, c := range children {
		if _, _, err := s.Cancel(ctx, c, true); err != nil {
			s.o.Log.ErrorContext(ctx, "cancel child", "task", c.String(), "err", err)
		}
	}
}

// orphans cancels what cancelChildren did not get to: the server may have been
// killed in between, or a child came in as its parent ended.
func (s *Scheduler) orphans(ctx context.Context) error {
	ids, err := s.store.Orphans(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, _, err := s.Cancel(ctx, id, true); err != nil {
			return err
		}
	}
	return nil
}
