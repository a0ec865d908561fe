package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/skepdev/skep"
)

// BotTaskOrder is the instant that a listing of a bot's tasks is sorted by.
type BotTaskOrder uint8

// The orders.
const (
	ByCreated BotTaskOrder = iota
	ByStarted
	ByCompleted
)

// BotTaskFilter selects what a bot ran. Start and End are compared with the
// instant of Order; After is the cursor: the sort value and id of the last
// item seen.
type BotTaskFilter struct {
	Bot        skep.BotID
	State      StateFilter
	Order      BotTaskOrder
	Start, End time.Time
	AfterKey   int64
	AfterID    skep.TaskID
	Limit      int
}

// SortKey returns the value that t is sorted by in f's order.
func (f *BotTaskFilter) SortKey(t *skep.Task) int64 {
	switch f.Order {
	case ByStarted:
		return micros(t.StartedAt)
	case ByCompleted:
		return micros(t.EndedAt)
	default:
		return int64(t.ID)
	}
}

// key is the instant t in f's order.
func (f *BotTaskFilter) key(t time.Time) int64 {
	if f.Order == ByCreated {
		return int64(skep.FirstTaskID(t))
	}
	return micros(t)
}

// botTask is one link of the chain of a bot's tasks.
type botTask struct {
	id, prev       skep.TaskID
	key            int64 // in the order of the listing
	state          skep.TaskState
	failure        bool
	started, ended int64
}

// selects reports whether a listing holds t.
func (f *BotTaskFilter) selects(t *botTask) bool {
	switch s := &f.State; {
	case len(s.States) > 0 && !slices.Contains(s.States, t.state),
		s.Failure != nil && *s.Failure != t.failure,
		!f.Start.IsZero() && t.key < f.key(f.Start),
		!f.End.IsZero() && t.key >= f.key(f.End):
		return false
	}
	return f.AfterID == 0 || t.key < f.AfterKey || (t.key == f.AfterKey && t.id < f.AfterID)
}

// ListBotTasks returns what a bot ran, newest first.
//
// A bot's tasks are a chain in the order of their starts. A bot takes a task
// when it has ended the one before: so what comes later in the chain was
// created, started and ended before this one started, and the walk ends as
// soon as nothing of that can be in the listing.
func (r reads) ListBotTasks(ctx context.Context, f BotTaskFilter) ([]Listed, error) {
	if f.State.NoMatch || f.Limit <= 0 {
		return nil, nil
	}
	_, next, err := r.chains(ctx, f.Bot)
	if err != nil {
		return nil, err
	}
	var found []botTask
	for next != 0 {
		var last int64 // when the last one of this part started
		if next, last, err = r.taskChain(ctx, &f, next, &found); err != nil {
			return nil, fmt.Errorf("list tasks of bot %s: %w", f.Bot, err)
		}
		slices.SortFunc(found, func(a, b botTask) int { return cmp.Or(cmp.Compare(b.key, a.key), cmp.Compare(b.id, a.id)) })
		found = found[:min(len(found), f.Limit)]
		bound := f.key(instant(last).Add(skew)) // of what is left, but for what is running
		if (len(found) == f.Limit && found[f.Limit-1].key >= bound) || (!f.Start.IsZero() && bound < f.key(f.Start)) {
			break
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	ids := make([]skep.TaskID, len(found))
	for i, t := range found {
		ids[i] = t.id
	}
	whole, err := r.Find(ctx, ids...)
	if err != nil {
		return nil, fmt.Errorf("list tasks of bot %s: %w", f.Bot, err)
	}
	out := make([]Listed, 0, len(found))
	for _, id := range ids {
		if l, ok := whole[id]; ok { // else it was deleted meanwhile
			out = append(out, l)
		}
	}
	return out, nil
}

// taskChain appends what f selects of a part of a chain, and returns where the
// chain goes on and when the last task of this part started.
func (r reads) taskChain(ctx context.Context, f *BotTaskFilter, from skep.TaskID, found *[]botTask) (next skep.TaskID, last int64, err error) {
	steps := chainStep
	rows, err := r.q.query(ctx, `WITH RECURSIVE chain (id, prev, state, failure, started_us, ended_us, n) AS (
			SELECT t.id, t.bot_prev, t.state, t.failure, t.started_us, t.ended_us, CAST(1 AS BIGINT) FROM tasks t WHERE t.id = $1
			UNION ALL SELECT t.id, t.bot_prev, t.state, t.failure, t.started_us, t.ended_us, c.n + 1 FROM chain c JOIN tasks t ON t.id = c.prev WHERE c.n < $2)
		SELECT id, prev, state, failure, started_us, ended_us FROM chain ORDER BY n`, from, steps)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close()
	for n := 1; rows.Next(); n++ {
		var t botTask
		if err := rows.Scan(&t.id, &t.prev, &t.state, flag{&t.failure}, &t.started, &t.ended); err != nil {
			return 0, 0, err
		}
		if last = t.started; n == steps {
			next = t.prev
		}
		switch t.key = int64(t.id); f.Order {
		case ByCreated:
		case ByStarted:
			t.key = t.started
		case ByCompleted:
			t.key = t.ended
		}
		if f.selects(&t) {
			*found = append(*found, t)
		}
	}
	return next, last, rows.Err()
}
