package scheduler

import (
	"context"
	"fmt"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// MaxWait bounds how long a poll or a watch is held. decisions.md 16.
const MaxWait = 50 * time.Second

// Command is the answer to a poll. Without a Task there is nothing to do.
type Command struct {
	Task    *skep.Task
	Request *skep.TaskRequest
	Secret  []byte
	Err     error // the store did not answer; the poll may be repeated
}

// Poll is a bot that asks for work.
type Poll struct {
	Bot  *skep.Bot     // as it says it is, with the dimensions that the server assigns
	Key  string        // idempotency key; "" makes the call not repeatable
	Wait time.Duration // 0 to MaxWait

	Changes uint64 // Scheduler.Changes, before the rules of this poll were read; 0 = they never change

	Source Source // of the bot's dimensions; zero = not to be remembered
	NoWork bool   // no new work: the bot is about to be told something else
	End    bool   // it may be told to end although it is ill: it is not ending yet
}

// Connect notes the handshake of a bot's process. A task that the bot still
// holds is lost with its earlier process. The dimensions of a known bot are
// kept: only polls change them. spec/scheduler.md §8.2.
func (s *Scheduler) Connect(ctx context.Context, b *skep.Bot) error {
	key := string(skep.EventConnected) + ":" + b.SessionID
	s.queues.drop(b.ID) // nobody listens to what an earlier process asked
	_, err := s.note(ctx, b, skep.EventConnected, key, "", true, nil)
	return err
}

// note brings the record of a bot up to date and adds an event. A task that the
// bot still holds is lost, unless keep says that it is not: then nothing is
// noted and held is that task.
func (s *Scheduler) note(ctx context.Context, b *skep.Bot, event skep.EventType, key, message string, handshake bool, keep func(*skep.Task) bool) (held skep.TaskID, err error) {
	var lost *skep.Task
	var saved *skep.Bot
	came := false
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		lost, saved, held = nil, nil, 0
		old, err := tx.LockBot(b.ID)
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		came = old == nil || old.Dead
		n := *b
		orders, err := tx.OthersOrders(b.ID)
		if err != nil {
			return err
		}
		Obey(&n, orders)
		n.LastSeen, n.FirstSeen, n.Dead, n.Terminated = tx.Now, tx.Now, false, 0
		if old != nil {
			n.FirstSeen = old.FirstSeen
			n.IdleSince, n.LastEvent = old.IdleSince, old.LastEvent
			if handshake {
				n.Dimensions = old.Dimensions
			}
			if n.State == nil { // let go while the bot waited
				n.State = old.State
			}
			if old.Task != 0 && keep != nil {
				t, err := tx.LockTask(old.Task)
				if err != nil && skep.KindOf(err) != skep.NotFound {
					return err
				}
				if err == nil && t.State == skep.Running && t.Bot == b.ID && keep(t) {
					held = t.ID
					return nil
				}
			}
			if old.Task != 0 {
				if lost, err = s.lose(tx, old.Task, b.ID); err != nil {
					return err
				}
				if lost != nil {
					message = lines(message, "Abandoned "+old.Task.RunID())
				}
			}
		}
		switch {
		case event == skep.EventIdle || event == skep.EventSleep:
			if n.Quarantined != "" || n.Maintenance != "" {
				n.IdleSince = time.Time{}
			} else if n.IdleSince.IsZero() {
				n.IdleSince = tx.Now
			}
		case !handshake:
			n.IdleSince = time.Time{}
		}
		if message == "" {
			message = n.Maintenance
		}
		if message == "" {
			message = n.Quarantined
		}
		repeated := key != "" && old != nil && old.LastEvent == key
		if key == "" {
			key = string(event)
		}
		n.LastEvent = key
		if err := tx.SaveBot(&n); err != nil {
			return err
		}
		saved = &n
		if repeated || (frequent(event) && old != nil && lost == nil && same(old, &n)) {
			return nil
		}
		return tx.AddEvent(n.ID, event, message, 0)
	})
	if err != nil {
		return 0, fmt.Errorf("note %s of bot %s: %w", event, b.ID, err)
	}
	if held != 0 {
		return held, nil
	}
	s.fleet.put(saved)
	if came {
		s.happened(b.ID)
	}
	if !handshake {
		b.Dimensions, b.DimensionsKey, b.IdleSince = saved.Dimensions, saved.DimensionsKey, saved.IdleSince
		b.Quarantined, b.Maintenance = saved.Quarantined, saved.Maintenance
	}
	if lost != nil {
		s.ended(ctx, lost, skep.Running)
	}
	return 0, nil
}

func lines(a, b string) string {
	if a == "" {
		return b
	}
	return a + "\n" + b
}

// frequent events are stored only when they tell something new.
func frequent(e skep.EventType) bool {
	return e == skep.EventIdle || e == skep.EventSleep || e == skep.EventTaskUpdate
}

// same reports whether nothing that people look for changed.
func same(a, b *skep.Bot) bool {
	return a.Dead == b.Dead && a.Quarantined == b.Quarantined && a.Maintenance == b.Maintenance &&
		a.Idle() == b.Idle() && a.Dimensions.Equal(b.Dimensions)
}

// Poll returns work for a healthy bot, waiting for it up to p.Wait. A bot in
// quarantine or maintenance gets none. The same key gets the same task again
// until the bot sends another one: an answer may have been lost. A later poll
// of the same bot ends this one with nothing; when a claim for this one is
// under way and the later one has the same key, that one gets its outcome.
func (s *Scheduler) Poll(ctx context.Context, p Poll) (Command, error) {
	w, cmd, err := s.arrive(ctx, &p)
	if w == nil || err != nil {
		return cmd, err
	}
	return s.await(ctx, w, p.Wait)
}

// arrive notes the bot of a poll and puts it among those that wait. Without a
// waiter, the poll has its answer.
func (s *Scheduler) arrive(ctx context.Context, p *Poll) (*waiter, Command, error) {
	b := p.Bot
	again := p.Key != "" && s.queues.waits(b.ID, p.Key) // before the store is read
	old, known, err := s.store.BotLook(ctx, b.ID)
	if err != nil {
		return nil, Command{}, err
	}
	if old.Task != 0 && p.Key != "" {
		if cmd, found, err := s.repeat(ctx, old.Task, b.ID, p.Key); err != nil || found {
			return nil, cmd, err
		}
	}
	if b.SessionID == "" {
		b.SessionID = old.Session // it speaks without a session of ours
	}
	due := s.fleet.heard(b.ID, s.o.Now())
	if old.Task == 0 {
		b.IdleSince = old.IdleSince
	}
	if due || !known || differs(&old, b) || !s.fleet.same(b, old.DimensionsKey, p.Source) {
		mine := func(t *skep.Task) bool { return p.Key != "" && t.ClaimKey == p.Key }
		held, err := s.note(ctx, b, skep.EventIdle, "", "", false, mine)
		if err != nil {
			return nil, Command{}, err
		}
		if held != 0 {
			cmd, _, err := s.repeat(ctx, held, b.ID, p.Key)
			return nil, cmd, err
		}
	}
	s.fleet.read(b, p.Source)
	ill := b.Quarantined != "" || b.Maintenance != "" || p.NoWork
	mine := *b // b itself goes on changing here
	mine.State = nil
	if mine.IdleSince.IsZero() {
		mine.IdleSince = s.o.Now()
	}
	w := &waiter{ctx: ctx, bot: &mine, key: p.Key, once: p.Wait <= 0 || ill, ill: ill, end: p.End, changes: p.Changes, reply: make(chan Command, 1)}
	work := s.queues.enter(w)
	if again { // the claim for the first one may have ended since
		if cmd, found, err := s.held(ctx, b.ID, p.Key); err != nil || found {
			s.queues.leave(w)
			return nil, cmd, err
		}
	}
	if w.once && !work && s.queues.leave(w) {
		return nil, Command{}, s.idle(ctx, b, skep.EventSleep)
	}
	if !work {
		if err := s.idle(ctx, b, skep.EventIdle); err != nil {
			s.queues.leave(w)
			return nil, Command{}, err
		}
		b.State = nil // it is stored, and thousands may wait
	} else {
		w.unnoted = b
	}
	return w, Command{}, nil
}

// await returns the answer to a poll that waits, at the latest after wait.
// Thousands may be here at once: its frame, and those below it, must be small
// enough for a stack of 8 KiB.
func (s *Scheduler) await(ctx context.Context, w *waiter, wait time.Duration) (Command, error) {
	timer := time.NewTimer(min(wait, MaxWait))
	defer timer.Stop()
	expired := timer.C
	if w.once {
		expired = nil
	}
	for gone := ctx.Done(); ; {
		select {
		case cmd := <-w.reply:
			return s.replied(ctx, w, cmd)
		case <-expired:
			expired = nil
		case <-gone:
			gone = nil
		}
		if s.queues.leave(w) {
			if ctx.Err() != nil {
				return Command{}, ctx.Err()
			}
			cmd, _, err := s.held(ctx, w.bot.ID, w.key) // as in replied
			return cmd, err
		}
	}
}

// replied turns what the matchmaker replied into the answer of a poll.
func (s *Scheduler) replied(ctx context.Context, w *waiter, cmd Command) (Command, error) {
	if cmd.Task != nil || cmd.Err != nil {
		return cmd, cmd.Err
	}
	// Another server may have claimed for an earlier sending of this poll.
	if cmd, found, err := s.held(ctx, w.bot.ID, w.key); err != nil || found {
		return cmd, err
	}
	if w.unnoted != nil {
		return cmd, s.idle(ctx, w.unnoted, skep.EventSleep)
	}
	return cmd, nil
}

// differs reports whether the record of a bot must be written because of what
// it says now, dimensions apart.
func differs(old *store.BotLook, b *skep.Bot) bool {
	return old.Task != 0 || old.Dead || old.Terminated != 0 || old.Session != b.SessionID || old.Version != b.Version ||
		old.Quarantined != b.Quarantined || old.Maintenance != b.Maintenance
}

// idle notes that a bot found no work, once until it gets some. It may get
// some at this very moment; then there is nothing to note.
func (s *Scheduler) idle(ctx context.Context, b *skep.Bot, event skep.EventType) error {
	if !b.IdleSince.IsZero() {
		return nil
	}
	b.IdleSince = s.o.Now()
	_, err := s.note(ctx, b, event, "", "", false, func(*skep.Task) bool { return true })
	return err
}

// held returns the task that the bot has by a poll with this key, if it has
// one.
func (s *Scheduler) held(ctx context.Context, bot skep.BotID, key string) (Command, bool, error) {
	if key == "" {
		return Command{}, false, nil
	}
	b, _, err := s.store.BotLookNow(ctx, bot)
	if err != nil || b.Task == 0 {
		return Command{}, false, err
	}
	return s.repeat(ctx, b.Task, bot, key)
}

// repeat answers a poll whose answer was lost.
func (s *Scheduler) repeat(ctx context.Context, id skep.TaskID, bot skep.BotID, key string) (Command, bool, error) {
	t, err := s.store.Task(ctx, id)
	if err != nil || t.State != skep.Running || t.Bot != bot || t.ClaimKey != key {
		if skep.KindOf(err) == skep.NotFound {
			err = nil
		}
		return Command{}, false, err
	}
	req, err := s.store.Request(ctx, id)
	if err != nil {
		return Command{}, false, err
	}
	secret, err := s.store.Secret(ctx, id)
	return Command{Task: t, Request: req, Secret: secret}, err == nil, err
}

// lose ends a task whose bot does not run it any more. It returns nil when
// there was nothing to end.
func (s *Scheduler) lose(tx *store.Tx, id skep.TaskID, bot skep.BotID) (*skep.Task, error) {
	t, err := tx.LockTask(id)
	if skep.KindOf(err) == skep.NotFound && err != nil {
		return nil, nil //nolint:nilerr // nothing to end
	}
	if err != nil {
		return nil, err
	}
	if t.State != skep.Running || t.Bot != bot {
		return nil, nil
	}
	if err := t.End(skep.Ending{Lost: true}, tx.Now); err != nil {
		return nil, err
	}
	s.sign(t)
	return t, tx.SaveTask(t)
}

// Drain ends every wait, of bots and of readers, and lets nobody wait any
// more, so that the server can close its listener. It may be called twice.
func (s *Scheduler) Drain() {
	s.queues.close()
	s.hub.close()
}

// eventKeyLife is how long a bot may take to repeat an event: it keeps what it
// could not deliver on its disk.
const eventKeyLife = 7 * 24 * time.Hour

// Event notes something that a bot reports of itself. key, when not empty,
// makes a repetition of the call harmless, also by a later process of the bot.
func (s *Scheduler) Event(ctx context.Context, b *skep.Bot, event skep.EventType, message, key string) error {
	var lost *skep.Task
	if key != "" {
		key = string(event) + ":" + key
	}
	if event == skep.EventShutdown || event == skep.EventRebooting {
		s.queues.drop(b.ID)
	}
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		lost = nil
		if key != "" {
			if first, err := tx.Once("event:"+string(b.ID), key, eventKeyLife); err != nil || !first {
				return err
			}
		}
		old, err := tx.LockBot(b.ID)
		if skep.KindOf(err) == skep.NotFound && err != nil {
			return tx.AddStrayEvent(b, event, message) // it never polled: the event is all there is
		}
		if err != nil {
			return err
		}
		if b.SessionID != "" && old.SessionID != "" && b.SessionID != old.SessionID {
			// An earlier process of the bot: it says nothing about the present one.
			return tx.AddEvent(b.ID, event, message, 0)
		}
		old.LastSeen = tx.Now
		if event == skep.EventShutdown || event == skep.EventRebooting {
			if old.Task != 0 {
				if lost, err = s.lose(tx, old.Task, b.ID); err != nil {
					return err
				}
				if lost != nil {
					message = lines(message, "Abandoned "+old.Task.RunID())
				}
			}
			old.Task, old.TaskName = 0, ""
			old.Terminated = 0
			if event == skep.EventShutdown {
				old.Dead, old.IdleSince = true, tx.Now
				if id, ok := finishedTermination(old.LastEvent); ok && old.SessionID == b.SessionID {
					old.Terminated = id
				}
			}
		}
		if key == "" {
			key = string(event)
		}
		old.LastEvent = key
		if err := tx.SaveBot(old); err != nil {
			return err
		}
		return tx.AddEvent(b.ID, event, message, 0)
	})
	if err != nil {
		return fmt.Errorf("note %s of bot %s: %w", event, b.ID, err)
	}
	if event == skep.EventShutdown {
		s.happened(b.ID)
	}
	if lost != nil {
		s.ended(ctx, lost, skep.Running)
	}
	return nil
}

// Delete forgets a bot; its history stays, its task is lost. An unknown bot is
// a NotFound error.
func (s *Scheduler) Delete(ctx context.Context, id skep.BotID) error {
	var lost *skep.Task
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		lost = nil
		b, err := tx.LockBot(id)
		if err != nil {
			return err
		}
		if b.Task != 0 {
			if lost, err = s.lose(tx, b.Task, id); err != nil {
				return err
			}
		}
		if err := tx.AddEvent(id, skep.EventDeleted, "", 0); err != nil {
			return err
		}
		return tx.DeleteBot(id)
	})
	if err != nil {
		return err
	}
	s.deleted(id)
	s.tell(store.NewsDeleted, string(id))
	if lost != nil {
		s.ended(ctx, lost, skep.Running)
	}
	return nil
}
