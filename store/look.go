package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// BotLook is what a poll compares with: enough to see that nothing changed.
// Dimensions are told by their key, see Bot.DimensionsKey.
type BotLook struct {
	DimensionsKey            int64
	Version, Session         string
	IdleSince                time.Time
	Task, Terminated         skep.TaskID
	Quarantined, Maintenance string
	Dead                     bool
}

// BotLook returns the part of a bot's record that each poll needs; found is
// false for an unknown bot. When other servers write too, it may be a second
// behind them; see BotLookNow.
func (s *Store) BotLook(ctx context.Context, id skep.BotID) (l BotLook, found bool, err error) {
	if l, found = s.looks.get(id); found {
		return l, true, nil
	}
	return s.BotLookNow(ctx, id)
}

// BotLookNow is BotLook as it is stored at this moment.
func (s *Store) BotLookNow(ctx context.Context, id skep.BotID) (l BotLook, found bool, err error) {
	var idle int64
	found, err = s.q.row(ctx, `SELECT b.dims, COALESCE(s.version, ''), COALESCE(s.session, ''), b.idle_us, b.task, b.terminated, b.quarantined, b.maintenance, b.dead
		FROM bots b LEFT JOIN bot_snapshots s ON s.id = b.snapshot WHERE b.id = $1`, []any{id},
		&l.DimensionsKey, &l.Version, &l.Session, &idle, &l.Task, &l.Terminated, &l.Quarantined, &l.Maintenance, flag{&l.Dead})
	if err != nil {
		return l, false, fmt.Errorf("read bot %s: %w", id, err)
	}
	l.IdleSince = instant(idle)
	return l, found, nil
}

// TaskLook is what a report of nothing new needs of a task.
type TaskLook struct {
	State         skep.TaskState
	Bot           skep.BotID
	ContactAt     time.Time
	PingTolerance time.Duration
	Killing       bool
}

// TaskLook returns the part of a task's record that says whether its bot may go
// on with it; found is false for an unknown task.
func (s *Store) TaskLook(ctx context.Context, id skep.TaskID) (l TaskLook, found bool, err error) {
	var contact, tolerance int64
	found, err = s.q.row(ctx, `SELECT state, bot, contact_us, tolerance_us, killing FROM tasks WHERE id = $1`, []any{id},
		&l.State, &l.Bot, &contact, &tolerance, flag{&l.Killing})
	if err != nil {
		return l, false, fmt.Errorf("read task %s: %w", id, err)
	}
	l.ContactAt, l.PingTolerance = instant(contact), time.Duration(tolerance)*time.Microsecond
	return l, found, nil
}

// looks are the bots' records as this process wrote them last. The writer
// changes them after each commit and before it answers, so that they are never
// behind what this process did. On PostgreSQL, where other servers write too,
// a record is good for a short while only.
type looks struct {
	life time.Duration // 0 = for ever: nobody else writes

	mu   sync.Mutex
	bots map[skep.BotID]look // nil = not kept
}

type look struct {
	BotLook
	at time.Time // when it was written
}

func (ls *looks) get(id skep.BotID) (BotLook, bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l, ok := ls.bots[id]
	return l.BotLook, ok && (ls.life == 0 || time.Since(l.at) < ls.life)
}

// lookChange is what a statement did to a bot's record. change returns false
// when the record is gone; of a record that is not at hand it is not asked.
type lookChange struct {
	bot    skep.BotID
	whole  bool // change makes the record, whatever it was
	change func(*BotLook) bool
}

// apply does what a transaction did.
func (ls *looks) apply(changes []lookChange) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.bots == nil {
		return
	}
	now := time.Now()
	for _, c := range changes {
		l, ok := ls.bots[c.bot]
		switch {
		case !ok && !c.whole:
		case c.change(&l.BotLook):
			l.at = now
			ls.bots[c.bot] = l
		default:
			delete(ls.bots, c.bot)
		}
	}
}

// forget drops everything: it will be read again.
func (ls *looks) forget() {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	clear(ls.bots)
}

// looked notes what this change does to a bot's record once it is committed.
func (tx *Tx) looked(bot skep.BotID, whole bool, change func(*BotLook) bool) {
	tx.looks = append(tx.looks, lookChange{bot, whole, change})
}
