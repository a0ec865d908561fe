package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skepdev/skep"
)

// seqOf returns the lower bound of the events at t and later.
func seqOf(t time.Time) int64 { return t.UnixMicro() << 11 }

// nextSeq names an event. Names rise with time, so that new ones are stored
// side by side and old ones are found; two servers give the same one at the
// same moment with a chance of 1 in 2048, and then one of them tries again.
func (tx *Tx) nextSeq() int64 {
	for {
		last := tx.lastSeq.Load()
		next := max(last+1, seqOf(tx.Now)|rand.Int64N(1<<11))
		if tx.lastSeq.CompareAndSwap(last, next) {
			return next
		}
	}
}

// AddEvent appends to the history of a bot, with what its record says now. Of
// a bot without a record it does nothing.
func (tx *Tx) AddEvent(bot skep.BotID, typ skep.EventType, message string, task skep.TaskID) error {
	seq := tx.nextSeq()
	if err := tx.write(`UPDATE bots SET prev_seq = last_seq, last_seq = $2 WHERE id = $1`, bot, seq); err != nil {
		return fmt.Errorf("store event of bot %s: %w", bot, err)
	}
	return tx.recordEvent(bot, seq, typ, message, task)
}

// recordEvent stores the event that the bot's record names as its last. That
// was written before: whoever does it holds the row, and nobody else can name
// the same event as the one before his.
func (tx *Tx) recordEvent(bot skep.BotID, seq int64, typ skep.EventType, message string, task skep.TaskID) error {
	err := tx.write(tx.d.insertSure+`bot_events (seq, prev, bot, at_us, type, message, task, snapshot, quarantined, maintenance)
		SELECT last_seq, prev_seq, id, CAST($2 AS BIGINT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), snapshot, quarantined, maintenance FROM bots WHERE id = $1`,
		bot, micros(tx.Now), typ, message, task)
	if err != nil {
		return fmt.Errorf("store event of bot %s: %w", bot, err)
	}
	return nil
}

// AddStrayEvent is AddEvent for a bot that has no record: b is all that is
// known of it.
func (tx *Tx) AddStrayEvent(b *skep.Bot, typ skep.EventType, message string) error {
	snapshot, err := tx.snapshot(b)
	if err != nil {
		return err
	}
	seq := tx.nextSeq()
	if err := tx.write(`INSERT INTO bot_history (bot, last_seq, prev_seq, last_task) VALUES ($1, $2, 0, 0)
		ON CONFLICT (bot) DO UPDATE SET prev_seq = bot_history.last_seq, last_seq = excluded.last_seq`, b.ID, seq); err != nil {
		return fmt.Errorf("store event of bot %s: %w", b.ID, err)
	}
	err = tx.write(tx.d.insertSure+`bot_events (seq, prev, bot, at_us, type, message, task, snapshot, quarantined, maintenance)
		SELECT last_seq, prev_seq, bot, CAST($2 AS BIGINT), CAST($3 AS TEXT), CAST($4 AS TEXT), 0, CAST($5 AS BIGINT), CAST($6 AS TEXT), CAST($7 AS TEXT) FROM bot_history WHERE bot = $1`,
		b.ID, micros(tx.Now), typ, message, snapshot, b.Quarantined, b.Maintenance)
	if err != nil {
		return fmt.Errorf("store event of bot %s: %w", b.ID, err)
	}
	return nil
}

// What copies the beginnings of a bot's chains when its record goes.
const (
	keepHistory = `INSERT INTO bot_history (bot, last_seq, prev_seq, last_task) SELECT id, last_seq, 0, last_task FROM bots `
	overHistory = ` ON CONFLICT (bot) DO UPDATE SET last_seq = excluded.last_seq, last_task = excluded.last_task`
)

// chains returns the last event and the last task of a bot, 0 for none.
func (r reads) chains(ctx context.Context, bot skep.BotID) (seq int64, task skep.TaskID, err error) {
	found, err := r.q.row(ctx, `SELECT last_seq, last_task FROM bots WHERE id = $1`, []any{bot}, &seq, &task)
	if err == nil && !found {
		_, err = r.q.row(ctx, `SELECT last_seq, last_task FROM bot_history WHERE bot = $1`, []any{bot}, &seq, &task)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("read history of bot %s: %w", bot, err)
	}
	return seq, task, nil
}

// EventFilter selects events of one bot, newest first.
type EventFilter struct {
	Bot        skep.BotID
	Start, End time.Time // at or after; before
	From       int64     // cursor: this one and older ones; 0 = from the newest
	Limit      int
}

// chainStep is how many links of a chain one query follows; a test makes it less.
var chainStep = 1000

// skew is how much later the clock of one server may be than that of another:
// within a chain, times go down but for this.
const skew = time.Minute

// BotEvents returns the history of a bot, newest first, and where it goes on,
// 0 at its end.
func (r reads) BotEvents(ctx context.Context, f EventFilter) (events []*skep.BotEvent, next int64, err error) {
	if next = f.From; next == 0 {
		if next, _, err = r.chains(ctx, f.Bot); err != nil {
			return nil, 0, err
		}
	}
	for next != 0 && len(events) < f.Limit {
		if next, err = r.eventChain(ctx, &f, next, &events); err != nil {
			return nil, 0, fmt.Errorf("read events of bot %s: %w", f.Bot, err)
		}
	}
	return events, next, nil
}

// eventChain appends what f selects of a part of a chain, and returns where
// the chain goes on.
func (r reads) eventChain(ctx context.Context, f *EventFilter, from int64, events *[]*skep.BotEvent) (next int64, err error) {
	steps := min(chainStep, f.Limit-len(*events))
	if !f.End.IsZero() {
		steps = chainStep // perhaps none of them
	}
	rows, err := r.q.query(ctx, `WITH RECURSIVE chain (seq, prev, n) AS (
			SELECT e.seq, e.prev, CAST(1 AS BIGINT) FROM bot_events e WHERE e.seq = $1 AND e.bot = $2
			UNION ALL SELECT e.seq, e.prev, c.n + 1 FROM chain c JOIN bot_events e ON e.seq = c.prev WHERE c.n < $3)
		SELECT e.seq, e.prev, e.at_us, e.type, e.message, e.task, COALESCE(d.dimensions, '{}'), COALESCE(s.state, '{}'),
			`+whoColumns+`, e.quarantined, e.maintenance
		FROM chain c JOIN bot_events e ON e.seq = c.seq LEFT JOIN bot_snapshots s ON s.id = e.snapshot LEFT JOIN dimension_sets d ON d.id = s.dims ORDER BY c.n`,
		from, f.Bot, steps)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for n := 1; rows.Next(); n++ {
		var (
			e           skep.BotEvent
			at, prev    int64
			dims, state string
		)
		if err := rows.Scan(&e.Seq, &prev, &at, &e.Type, &e.Message, &e.Task, &dims, &state, &e.Version, &e.SessionID, &e.Authn, &e.ExternalIP, &e.Quarantined, &e.Maintenance); err != nil {
			return 0, err
		}
		next = 0
		if n == steps {
			next = prev
		}
		e.At, e.State = instant(at), json.RawMessage(state)
		if e.At.Before(f.Start.Add(-skew)) {
			return 0, nil
		}
		if len(*events) == f.Limit {
			return e.Seq, nil
		}
		if e.At.Before(f.Start) || (!f.End.IsZero() && !e.At.Before(f.End)) {
			continue
		}
		if err := json.Unmarshal([]byte(dims), &e.Dimensions); err != nil {
			return 0, fmt.Errorf("stored event: %w", err)
		}
		*events = append(*events, &e)
	}
	return next, rows.Err()
}
