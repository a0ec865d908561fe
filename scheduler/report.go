package scheduler

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Answer tells the bot what to do with its task.
type Answer struct {
	OK       bool // the task is this bot's
	MustStop bool
	Reason   string
	Watched  bool // somebody reads the output now
}

// Reasons to stop, read by people.
const (
	reasonKill     = "Killing task"
	reasonFinished = "The task has already finished"
	reasonForeign  = "The task is not assigned to this bot"
)

// Report stores output, progress or the end of a task. Every report may be
// repeated. One for a task that has ended, or is not the bot's, changes
// nothing and is told so.
func (s *Scheduler) Report(ctx context.Context, r skep.Report) (Answer, error) {
	s.fleet.heard(r.Bot, s.o.Now())
	var ans Answer
	var err error
	if r.Ending == nil {
		ans, err = s.progress(ctx, r)
	} else {
		ans, err = s.finish(ctx, r)
	}
	if err != nil {
		return Answer{}, fmt.Errorf("report of task %s: %w", r.Task, err)
	}
	ans.Watched = s.hub.watched(r.Task)
	return ans, nil
}

// contactLag is how much later a bot may have spoken of its task than the store
// says, at most, and a sixtieth of the ping tolerance. So the report that
// follows the claim at once, and each question of the bot, are answered by a
// look: for a short task that is one commit of three.
const contactLag = time.Second

// heard answers a report of nothing new that comes soon after another. ok is
// false for any that must be written, or that is none of the bot's.
func (s *Scheduler) heard(ctx context.Context, r skep.Report) (ans Answer, ok bool, err error) {
	if len(r.Output) > 0 {
		return Answer{}, false, nil
	}
	t, found, err := s.store.TaskLook(ctx, r.Task)
	if err != nil || !found || t.State != skep.Running || t.Bot != r.Bot || s.o.Now().Sub(t.ContactAt) >= min(contactLag, t.PingTolerance/60) {
		return Answer{}, false, err
	}
	return running(t.Killing), true, nil
}

// running is the answer to the bot of a task that runs.
func running(killing bool) Answer {
	if killing {
		return Answer{OK: true, MustStop: true, Reason: reasonKill}
	}
	return Answer{OK: true}
}

func (s *Scheduler) progress(ctx context.Context, r skep.Report) (Answer, error) {
	ans, ok, err := s.heard(ctx, r)
	if ok || err != nil {
		return ans, err
	}
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		t, err := tx.LockTask(r.Task)
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		if err != nil || t.State != skep.Running || t.Bot != r.Bot {
			ans, err = s.stray(ctx, tx, r)
			return err
		}
		ans = running(t.Killing)
		if t.OutputSize, err = tx.WriteOutput(r.Task, t.OutputSize, r.Start, r.Output); err != nil {
			return err
		}
		t.CostUSD = max(t.CostUSD, r.CostUSD)
		return tx.Touch(t)
	}, store.KeyTask(r.Task))
	if err == nil && len(r.Output) > 0 {
		s.hub.notify(r.Task)
	}
	return ans, err
}

// stray answers a report for a task that the bot does not run.
func (s *Scheduler) stray(ctx context.Context, tx *store.Tx, r skep.Report) (Answer, error) {
	t, err := tx.Task(ctx, r.Task)
	switch {
	case err != nil && skep.KindOf(err) != skep.NotFound:
		return Answer{}, err
	case err != nil || t.Bot != r.Bot:
		return Answer{MustStop: r.Ending == nil, Reason: reasonForeign}, nil //nolint:nilerr // not found is the answer
	default:
		return Answer{OK: true, MustStop: r.Ending == nil, Reason: reasonFinished}, nil
	}
}

func (s *Scheduler) finish(ctx context.Context, r skep.Report) (Answer, error) {
	var ans Answer
	var done *skep.Task
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		done = nil
		t, err := tx.LockTask(r.Task)
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		if err != nil || t.State != skep.Running || t.Bot != r.Bot {
			ans, err = s.stray(ctx, tx, r)
			return err
		}
		if t.OutputSize, err = tx.WriteOutput(r.Task, t.OutputSize, r.Start, r.Output); err != nil {
			return err
		}
		ans = Answer{OK: true}
		t.CostUSD = max(t.CostUSD, r.CostUSD)
		t.ContactAt = tx.Now
		if err := t.End(*r.Ending, tx.Now); err != nil {
			return err
		}
		t.Outcome = r.Outcome
		if t.State == skep.BotDied && t.Outcome != nil {
			t.Outcome.Stats = nil
		}
		s.sign(t)
		if err := tx.SaveTask(t); err != nil {
			return err
		}
		event, message := skep.EventCompleted, ""
		switch {
		case r.Ending.Lost || r.Ending.MissingIn:
			event = skep.EventTaskError
			if r.Outcome != nil {
				message = r.Outcome.Message
			}
		case t.State == skep.Killed || t.State == skep.Canceled:
			event = skep.EventKilled
		}
		done = t
		return tx.Release(r.Bot, t.ID, event, message)
	}, store.KeyTask(r.Task))
	if err == nil && done != nil {
		s.ended(ctx, done, skep.Running)
	}
	return ans, err
}

// finishedTermination reads which task a bot's last event completed.
func finishedTermination(lastEvent string) (skep.TaskID, bool) {
	id, ok := strings.CutPrefix(lastEvent, string(skep.EventCompleted)+":")
	if !ok {
		return 0, false
	}
	t, err := skep.ParseTaskID(id)
	return t, err == nil
}

// Control answers when the bot must stop its task, when the wish to watch its
// output is no longer watched, or after wait. decisions.md 17.
func (s *Scheduler) Control(ctx context.Context, bot skep.BotID, id skep.TaskID, watched bool, wait time.Duration) (Answer, error) {
	s.fleet.heard(bot, s.o.Now())
	if ans, err := s.Report(ctx, skep.Report{Bot: bot, Task: id}); err != nil || ans.MustStop || ans.Watched != watched {
		return ans, err
	}
	timer := time.NewTimer(min(wait, MaxWait))
	defer timer.Stop()
	changed, leave := s.hub.control(id)
	defer leave()
	for {
		t, err := s.store.Task(ctx, id)
		if err != nil {
			return Answer{}, err
		}
		ans := Answer{OK: t.Bot == bot, Watched: s.hub.watched(id)}
		switch {
		case !ans.OK:
			ans.MustStop, ans.Reason = true, reasonForeign
		case t.State != skep.Running:
			ans.MustStop, ans.Reason = true, reasonFinished
		case t.Killing:
			ans.MustStop, ans.Reason = true, reasonKill
		}
		if ans.MustStop || ans.Watched != watched {
			return ans, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return ans, nil
		case <-s.hub.closed:
			return ans, nil
		case <-ctx.Done():
			return ans, ctx.Err()
		}
	}
}
