package store

import (
	"context"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// Illness is a bot of a pool with a circuit breaker that says it is ill.
type Illness struct {
	Bot   skep.BotID
	Pool  string
	Held  bool      // it is not believed
	Why   string    // what it says, where it is held
	Since time.Time // zero = it was ill before anybody counted
}

const illnessColumns = `bot, pool, held, why, since_us`

func (r reads) illnesses(ctx context.Context, where string, args ...any) ([]Illness, error) {
	rows, err := r.q.query(ctx, `SELECT `+illnessColumns+` FROM bot_illness `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read ill bots: %w", err)
	}
	defer rows.Close()
	var out []Illness
	for rows.Next() {
		var i Illness
		var since int64
		if err := rows.Scan(&i.Bot, &i.Pool, flag{&i.Held}, &i.Why, &since); err != nil {
			return nil, fmt.Errorf("read ill bots: %w", err)
		}
		i.Since = instant(since)
		out = append(out, i)
	}
	return out, rows.Err()
}

// Illnesses returns all of them, by bot.
func (r reads) Illnesses(ctx context.Context) ([]Illness, error) {
	return r.illnesses(ctx, `ORDER BY bot`)
}

// LockIllness keeps other servers from judging bots until this change is made,
// and returns what is noted of a bot, nil for nothing.
func (tx *Tx) LockIllness(bot skep.BotID) (*Illness, error) {
	if _, err := tx.LockMeta("illness"); err != nil {
		return nil, err
	}
	is, err := tx.illnesses(tx.ctx, `WHERE bot = $1`, bot)
	if tx.note(err) != nil || len(is) == 0 {
		return nil, err
	}
	return &is[0], nil
}

// CountIllness returns how many bots of a pool are believed to have fallen ill
// after a time, and how many are held.
func (tx *Tx) CountIllness(pool string, after time.Time) (fell, held int, err error) {
	_, err = tx.q.row(tx.ctx, `SELECT COUNT(CASE WHEN held = 0 AND since_us >= $2 AND since_us > 0 THEN 1 END), COUNT(CASE WHEN held <> 0 THEN 1 END)
		FROM bot_illness WHERE pool = $1`, []any{pool, micros(after)}, &fell, &held)
	if tx.note(err) != nil {
		return 0, 0, fmt.Errorf("count ill bots: %w", err)
	}
	return fell, held, nil
}

// SaveIllness notes that a bot says it is ill.
func (tx *Tx) SaveIllness(i Illness) error {
	err := tx.write(`INSERT INTO bot_illness (`+illnessColumns+`) VALUES ($1,$2,$3,$4,$5)
		ON CONFLICT (bot) DO UPDATE SET pool = excluded.pool, held = excluded.held, why = excluded.why, since_us = excluded.since_us`,
		i.Bot, i.Pool, bit(i.Held), i.Why, micros(i.Since))
	if err != nil {
		return fmt.Errorf("note that bot %s is ill: %w", i.Bot, err)
	}
	return nil
}

// DropIllness forgets that a bot was ill.
func (tx *Tx) DropIllness(bot skep.BotID) error {
	return tx.write(`DELETE FROM bot_illness WHERE bot = $1`, bot)
}
