package store

import (
	"context"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// AddPart keeps a part of bot code under its hash. It may be repeated.
func (tx *Tx) AddPart(hash string, data []byte) error {
	if err := tx.write(`INSERT INTO bot_code_parts (hash, data) VALUES ($1, $2) ON CONFLICT DO NOTHING`, hash, data); err != nil {
		return fmt.Errorf("store part of bot code: %w", err)
	}
	return nil
}

// Part returns a part of bot code as AddPart got it; found is false for an
// unknown one.
func (r reads) Part(ctx context.Context, hash string) (data []byte, found bool, err error) {
	found, err = r.q.row(ctx, `SELECT data FROM bot_code_parts WHERE hash = $1`, []any{hash}, &data)
	if err != nil {
		return nil, false, fmt.Errorf("read part of bot code: %w", err)
	}
	return data, found, nil
}

// HasPart reports whether a part of bot code is kept.
func (r reads) HasPart(ctx context.Context, hash string) (bool, error) {
	var one int
	found, err := r.q.row(ctx, `SELECT 1 FROM bot_code_parts WHERE hash = $1`, []any{hash}, &one)
	if err != nil {
		return false, fmt.Errorf("look for part of bot code: %w", err)
	}
	return found, nil
}

// AddRelease keeps a release and reports whether it is a new one.
func (tx *Tx) AddRelease(id, parts string) (fresh bool, err error) {
	n, err := tx.exec(`INSERT INTO bot_releases (id, parts, made_us) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, id, parts, micros(tx.Now))
	if err != nil {
		return false, fmt.Errorf("store release of bot code: %w", err)
	}
	return n > 0, nil
}

// ReleaseText returns the parts of a release, "" for an unknown one.
func (r reads) ReleaseText(ctx context.Context, id string) (parts string, err error) {
	if _, err := r.q.row(ctx, `SELECT parts FROM bot_releases WHERE id = $1`, []any{id}, &parts); err != nil {
		return "", fmt.Errorf("read release of bot code: %w", err)
	}
	return parts, nil
}

// Releases returns the ids of all releases, newest first.
func (r reads) Releases(ctx context.Context) ([]string, error) {
	rows, err := r.q.query(ctx, `SELECT id FROM bot_releases ORDER BY made_us DESC, id`)
	if err != nil {
		return nil, fmt.Errorf("read releases of bot code: %w", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read releases of bot code: %w", err)
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// DropRelease forgets a release.
func (tx *Tx) DropRelease(id string) error {
	return tx.write(`DELETE FROM bot_releases WHERE id = $1`, id)
}

// DropParts forgets the parts of bot code that are not in keep.
func (tx *Tx) DropParts(keep map[string]bool) error {
	all, err := tx.parts()
	if tx.note(err) != nil {
		return fmt.Errorf("read parts of bot code: %w", err)
	}
	for _, h := range all {
		if keep[h] {
			continue
		}
		if err := tx.write(`DELETE FROM bot_code_parts WHERE hash = $1`, h); err != nil {
			return fmt.Errorf("delete part of bot code: %w", err)
		}
	}
	return nil
}

func (tx *Tx) parts() (out []string, err error) {
	rows, err := tx.q.query(tx.ctx, `SELECT hash FROM bot_code_parts`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var h string
		if err := rows.Scan(&h); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, rows.Err()
}

// RolloutBot is a bot that was told to run a release.
type RolloutBot struct {
	Bot     skep.BotID
	Release string
	Digest  string // of the code that it should run
	Told    time.Time
	Result  string // "" = not back yet

	Tasks, Failed int  // ended on it since; of those, by its own fault
	Ill           bool // it is in quarantine
}

// TellBot notes that a bot was told to update. A bot that was told already
// keeps its time, and its result.
func (tx *Tx) TellBot(b RolloutBot) error {
	err := tx.write(`INSERT INTO rollout_bots (bot, release, digest, told_us, result) VALUES ($1,$2,$3,$4,'')
		ON CONFLICT (bot) DO UPDATE SET release = excluded.release, digest = excluded.digest, told_us = excluded.told_us, result = '',
			tasks = 0, failed = 0, ill = 0
		WHERE rollout_bots.release <> excluded.release OR rollout_bots.digest <> excluded.digest`,
		b.Bot, b.Release, b.Digest, micros(b.Told))
	if err != nil {
		return fmt.Errorf("note the update of bot %s: %w", b.Bot, err)
	}
	return nil
}

// SettleBot notes what became of a bot that was told to update to release, if
// that is not known yet or better than what is: a bot that came late has come.
func (tx *Tx) SettleBot(bot skep.BotID, release, result string) error {
	if err := tx.write(`UPDATE rollout_bots SET result = $3 WHERE bot = $1 AND release = $2`, bot, release, result); err != nil {
		return fmt.Errorf("note the update of bot %s: %w", bot, err)
	}
	return nil
}

// AddRolloutTasks notes what happened on a bot that was told to update to
// release since the last time: b's Tasks and Failed are added, Ill replaces.
func (tx *Tx) AddRolloutTasks(b RolloutBot) error {
	err := tx.write(`UPDATE rollout_bots SET tasks = tasks + $3, failed = failed + $4, ill = $5 WHERE bot = $1 AND release = $2`,
		b.Bot, b.Release, b.Tasks, b.Failed, bit(b.Ill))
	if err != nil {
		return fmt.Errorf("note tasks of bot %s: %w", b.Bot, err)
	}
	return nil
}

// NoteMismatch notes that a bot downloaded other code than it was told to.
func (tx *Tx) NoteMismatch(bot skep.BotID) error {
	if err := tx.write(`INSERT INTO bot_mismatches (bot) VALUES ($1) ON CONFLICT (bot) DO NOTHING`, bot); err != nil {
		return fmt.Errorf("note the download of bot %s: %w", bot, err)
	}
	return nil
}

// ForgetMismatch forgets what NoteMismatch noted.
func (tx *Tx) ForgetMismatch(bot skep.BotID) error {
	return tx.write(`DELETE FROM bot_mismatches WHERE bot = $1`, bot)
}

// Mismatches returns the bots of NoteMismatch.
func (r reads) Mismatches(ctx context.Context) ([]skep.BotID, error) {
	rows, err := r.q.query(ctx, `SELECT bot FROM bot_mismatches ORDER BY bot`)
	if err != nil {
		return nil, fmt.Errorf("read mismatches: %w", err)
	}
	defer rows.Close()
	var out []skep.BotID
	for rows.Next() {
		var id skep.BotID
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read mismatches: %w", err)
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// ForgetRollout drops what is known of bots and any release but one.
func (tx *Tx) ForgetRollout(but string) error {
	return tx.write(`DELETE FROM rollout_bots WHERE release <> $1`, but)
}

// RolloutBots returns the bots that were told to run a release.
func (r reads) RolloutBots(ctx context.Context, release string) ([]RolloutBot, error) {
	rows, err := r.q.query(ctx, `SELECT bot, release, digest, told_us, result, tasks, failed, ill FROM rollout_bots WHERE release = $1 ORDER BY bot`, release)
	if err != nil {
		return nil, fmt.Errorf("read rollout: %w", err)
	}
	defer rows.Close()
	var out []RolloutBot
	for rows.Next() {
		var b RolloutBot
		var told int64
		if err := rows.Scan(&b.Bot, &b.Release, &b.Digest, &told, &b.Result, &b.Tasks, &b.Failed, flag{&b.Ill}); err != nil {
			return nil, fmt.Errorf("read rollout: %w", err)
		}
		b.Told = instant(told)
		out = append(out, b)
	}
	return out, rows.Err()
}
