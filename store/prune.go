package store

import (
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// How long things are kept. spec/scheduler.md §1.1.
const (
	taskLife   = 18 * 31 * 24 * time.Hour
	eventLife  = 28 * 24 * time.Hour
	tokenLife  = 28 * 24 * time.Hour           // of bots, after it has expired
	botLife    = 28*24*time.Hour + 4*time.Hour // where nobody says another one
	maxBotLife = 3650 * 24 * time.Hour

	// After this time nothing can refer to them any more: a bot's record names
	// what was stored when it was last seen, and its events and claims copy that.
	snapshotLife = eventLife + 8*24*time.Hour // and the life of a bot
	dimsLife     = taskLife + 8*24*time.Hour  // and the life of a bot
	tagSetLife   = taskLife + 8*24*time.Hour
)

// forgotten are bots that were silent for too long. A dead one keeps showing
// the task that it died with, which has ended long ago.
const forgotten = `last_seen_us < $1 AND (task = 0 OR NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = bots.task AND t.state = 16))`

// Prune deletes up to limit of each kind of thing whose time is over, and
// reports whether there may be more. bots is how long a silent bot is
// remembered; 0 = 28 days.
func (tx *Tx) Prune(limit int, bots time.Duration) (more bool, err error) {
	if bots = min(bots, maxBotLife); bots <= 0 {
		bots = botLife
	}
	tasks, err := tx.pruneTasks(skep.FirstTaskID(tx.Now.Add(-taskLife)), limit)
	if err != nil {
		return false, fmt.Errorf("delete old tasks: %w", err)
	}
	sets, err := tx.pruneTagSets(tx.Now.Add(-tagSetLife), limit)
	if err != nil {
		return false, fmt.Errorf("delete old tags: %w", err)
	}
	more = tasks == limit || sets == limit
	tx.forget = true // some of the bots
	for _, q := range []struct {
		query string
		until time.Time
	}{
		{`DELETE FROM bot_events WHERE at_us < $1 AND seq IN (SELECT seq FROM bot_events ORDER BY seq LIMIT $2)`, tx.Now.Add(-eventLife)},
		{keepHistory + `WHERE ` + forgotten + ` ORDER BY id LIMIT $2` + overHistory, tx.Now.Add(-bots)},
		{`DELETE FROM bots WHERE id IN (SELECT id FROM bots WHERE ` + forgotten + ` ORDER BY id LIMIT $2)`, tx.Now.Add(-bots)},
		{`DELETE FROM bot_snapshots WHERE id IN (SELECT id FROM bot_snapshots WHERE used_us < $1 LIMIT $2)`, tx.Now.Add(-snapshotLife - bots)},
		{`DELETE FROM dimension_sets WHERE id IN (SELECT id FROM dimension_sets WHERE used_us < $1 LIMIT $2)`, tx.Now.Add(-dimsLife - bots)},
		// A server is closed as long as there is a token that ever closed it: of users there is one for ever.
		{`DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE expires_us > 0 AND expires_us < $1 AND (scope = 'bootstrap' OR scope = 'bot'
			AND EXISTS (SELECT 1 FROM tokens u WHERE u.scope IN ('user', 'admin'))) LIMIT $2)`, tx.Now.Add(-tokenLife)},
		{`DELETE FROM request_uuids WHERE expires_us < $1 AND uuid IN (SELECT uuid FROM request_uuids WHERE expires_us < $1 LIMIT $2)`, tx.Now},
		{`DELETE FROM queues WHERE id IN (SELECT q.id FROM queues q WHERE q.expires_us < $1
			AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.waits = 1 AND t.queue = q.id) LIMIT $2)`, tx.Now},
	} {
		n, err := tx.exec(q.query, micros(q.until), limit)
		if err != nil {
			return false, fmt.Errorf("delete what is old: %w", err)
		}
		more = more || n >= int64(limit)
	}
	n, err := tx.exec(`DELETE FROM bot_mismatches WHERE bot IN (SELECT bot FROM bot_mismatches m
		WHERE NOT EXISTS (SELECT 1 FROM bots b WHERE b.id = m.bot) LIMIT $1)`, limit)
	if err != nil {
		return false, fmt.Errorf("delete old mismatches: %w", err)
	}
	more = more || n >= int64(limit)
	n, err = tx.exec(`DELETE FROM bot_history WHERE bot IN (SELECT bot FROM bot_history WHERE last_seq < $1 AND last_task < $2 LIMIT $3)`,
		seqOf(tx.Now.Add(-eventLife)), skep.FirstTaskID(tx.Now.Add(-taskLife)), limit)
	if err != nil {
		return false, fmt.Errorf("delete old histories: %w", err)
	}
	return more || n >= int64(limit), nil
}

func (tx *Tx) pruneTasks(before skep.TaskID, limit int) (int, error) {
	rows, err := tx.q.query(tx.ctx, `SELECT id FROM task_requests WHERE id < $1 ORDER BY id LIMIT CAST($2 AS BIGINT)`, before, limit)
	if tx.note(err) != nil {
		return 0, err
	}
	defer rows.Close()
	var old []skep.TaskID
	for rows.Next() {
		var id skep.TaskID
		if err := rows.Scan(&id); err != nil {
			return 0, err
		}
		old = append(old, id)
	}
	if err := rows.Err(); err != nil {
		return 0, tx.note(err)
	}
	if err := rows.Close(); err != nil {
		return 0, tx.note(err)
	}
	for _, id := range old {
		for _, q := range []string{
			`DELETE FROM task_output WHERE task = $1`, `DELETE FROM tasks WHERE id = $1`, `DELETE FROM task_requests WHERE id = $1`,
		} {
			if err := tx.write(q, id); err != nil {
				return 0, err
			}
		}
	}
	return len(old), nil
}
