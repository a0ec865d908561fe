package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

const (
	botColumns = `b.id, COALESCE(d.dimensions, '{}'), COALESCE(s.state, '{}'), b.dims, ` + whoColumns + `, b.first_seen_us, b.last_seen_us,
	b.idle_us, b.task, b.task_name, b.quarantined, b.maintenance, b.dead, b.terminated, b.last_event`
	whoColumns = `COALESCE(s.version, ''), COALESCE(s.session, ''), COALESCE(s.authenticated, ''), COALESCE(s.ip, '')`
	botTable   = `bots b LEFT JOIN bot_snapshots s ON s.id = b.snapshot LEFT JOIN dimension_sets d ON d.id = b.dims`
)

func scanBot(row scanner) (*skep.Bot, error) {
	var (
		b                 skep.Bot
		dims, state       string
		first, last, idle int64
	)
	if err := row.Scan(&b.ID, &dims, &state, &b.DimensionsKey, &b.Version, &b.SessionID, &b.Authenticated, &b.ExternalIP, &first, &last,
		&idle, &b.Task, &b.TaskName, &b.Quarantined, &b.Maintenance, flag{&b.Dead}, &b.Terminated, &b.LastEvent); err != nil {
		return nil, err
	}
	b.FirstSeen, b.LastSeen, b.IdleSince = instant(first), instant(last), instant(idle)
	b.State = json.RawMessage(state)
	if err := json.Unmarshal([]byte(dims), &b.Dimensions); err != nil {
		return nil, fmt.Errorf("stored dimensions of bot %s: %w", b.ID, err)
	}
	return &b, nil
}

func noSuchBot(id skep.BotID) error { return skep.Errorf(skep.NotFound, "no such bot: %s", id) }

// Bot returns a bot, or a NotFound error.
func (r reads) Bot(ctx context.Context, id skep.BotID) (*skep.Bot, error) {
	bs, err := r.bots(ctx, `SELECT `+botColumns+` FROM `+botTable+` WHERE b.id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("read bot %s: %w", id, err)
	}
	if len(bs) == 0 {
		return nil, noSuchBot(id)
	}
	return bs[0], nil
}

// LockBot reads a bot for changing it: on PostgreSQL other servers wait.
func (tx *Tx) LockBot(id skep.BotID) (*skep.Bot, error) {
	query := `SELECT ` + botColumns + ` FROM ` + botTable + ` WHERE b.id = $1`
	if tx.d == postgres {
		query += ` FOR UPDATE OF b`
	}
	bs, err := tx.bots(tx.ctx, query, id)
	if tx.note(err) != nil {
		return nil, fmt.Errorf("read bot %s: %w", id, err)
	}
	if len(bs) == 0 {
		return nil, noSuchBot(id)
	}
	return bs[0], nil
}

func (r reads) bots(ctx context.Context, query string, args ...any) ([]*skep.Bot, error) {
	rows, err := r.q.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*skep.Bot
	for rows.Next() {
		b, err := scanBot(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
	}
	return out, rows.Err()
}

// BotsAfter returns up to limit live records with an id above after, by id.
func (r reads) BotsAfter(ctx context.Context, after skep.BotID, limit int) ([]*skep.Bot, error) {
	bs, err := r.bots(ctx, `SELECT `+botColumns+` FROM `+botTable+` WHERE b.id > $1 ORDER BY b.id LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list bots: %w", err)
	}
	return bs, nil
}

// SilentBots returns the live bots last heard of before cutoff.
func (r reads) SilentBots(ctx context.Context, cutoff time.Time) ([]*skep.Bot, error) {
	return r.bots(ctx, `SELECT `+botColumns+` FROM `+botTable+` WHERE b.dead = 0 AND b.last_seen_us < $1`, micros(cutoff))
}

// SaveBot writes the whole record of a bot, new or known, and sets its
// DimensionsKey.
func (tx *Tx) SaveBot(b *skep.Bot) error {
	snapshot, err := tx.snapshot(b)
	if err != nil {
		return err
	}
	err = tx.write(`INSERT INTO bots (id, dims, snapshot, first_seen_us, last_seen_us,
			idle_us, task, task_name, quarantined, maintenance, dead, terminated, last_event, last_seq, last_task)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,
			COALESCE((SELECT last_seq FROM bot_history WHERE bot = $1), 0), COALESCE((SELECT last_task FROM bot_history WHERE bot = $1), 0))
		ON CONFLICT (id) DO UPDATE SET dims = excluded.dims, snapshot = excluded.snapshot,
			first_seen_us = excluded.first_seen_us, last_seen_us = excluded.last_seen_us, idle_us = excluded.idle_us, task = excluded.task,
			task_name = excluded.task_name, quarantined = excluded.quarantined, maintenance = excluded.maintenance, dead = excluded.dead,
			terminated = excluded.terminated, last_event = excluded.last_event`,
		b.ID, b.DimensionsKey, snapshot, micros(b.FirstSeen), micros(b.LastSeen),
		micros(b.IdleSince), b.Task, b.TaskName, b.Quarantined, b.Maintenance, bit(b.Dead), b.Terminated, b.LastEvent)
	if err != nil {
		return fmt.Errorf("store bot %s: %w", b.ID, err)
	}
	look := BotLook{
		DimensionsKey: b.DimensionsKey, Version: b.Version, Session: b.SessionID, IdleSince: instant(micros(b.IdleSince)),
		Task: b.Task, Terminated: b.Terminated, Quarantined: b.Quarantined, Maintenance: b.Maintenance, Dead: b.Dead,
	}
	tx.looked(b.ID, true, func(l *BotLook) bool { *l = look; return true })
	return nil
}

// snapshot stores what a bot says of itself for what refers to it, sets the
// bot's DimensionsKey, and returns the number that names the snapshot.
//
// State differs at every contact, as it holds running times. So one snapshot
// serves a bot for a day, as long as the rest stays: the state is overwritten,
// and the events of that day show the last one.
func (tx *Tx) snapshot(b *skep.Bot) (int64, error) {
	var err error
	if b.DimensionsKey, err = tx.dimensionSet(b.Dimensions); err != nil {
		return 0, err
	}
	state := string(b.State)
	if state == "" {
		state = "{}"
	}
	id := contentID(string(b.ID), tx.Now.Format(time.DateOnly), strconv.FormatInt(b.DimensionsKey, 36), b.Version, b.SessionID, b.ExternalIP, b.Authenticated)
	err = tx.write(`INSERT INTO bot_snapshots (id, dims, version, session, ip, authenticated, state, used_us) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, used_us = excluded.used_us`,
		id, b.DimensionsKey, b.Version, b.SessionID, b.ExternalIP, b.Authenticated, state, micros(tx.Now))
	if err != nil {
		return 0, fmt.Errorf("store snapshot of bot %s: %w", b.ID, err)
	}
	return id, nil
}

// dimensionSet stores dimensions for what refers to them and returns their key.
func (tx *Tx) dimensionSet(d skep.Dimensions) (int64, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return 0, err
	}
	key := contentID(string(text))
	if err := tx.write(`INSERT INTO dimension_sets (id, dimensions, used_us) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET used_us = excluded.used_us WHERE dimension_sets.used_us < excluded.used_us - 86400000000`,
		key, string(text), micros(tx.Now)); err != nil {
		return 0, fmt.Errorf("store dimensions: %w", err)
	}
	return key, nil
}

// contentID names texts by what they are.
func contentID(texts ...string) int64 {
	sum := sha256.Sum256([]byte(strings.Join(texts, "\x00")))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 1)
}

// Free says of a bot that it runs nothing.
type Free struct {
	Ill bool // its record says quarantine or maintenance
}

// FreeBots returns which of the bots run nothing, and on PostgreSQL keeps
// other servers from giving them something. It is for one caller at a time.
func (tx *Tx) FreeBots(ids []skep.BotID) (map[skep.BotID]Free, error) {
	free := make(map[skep.BotID]Free, len(ids))
	if len(ids) == 0 {
		return free, nil
	}
	var args []any
	for _, id := range slices.Sorted(slices.Values(ids)) {
		// On SQLite what is at hand is what was committed last. Since then only
		// another claim could have given the bot a task, and they are made one by one.
		if l, found := tx.known.get(id); found && tx.d == sqlite {
			if l.Task == 0 {
				free[id] = Free{l.Quarantined != "" || l.Maintenance != ""}
			}
		} else {
			args = append(args, string(id))
		}
	}
	if len(args) == 0 {
		return free, nil
	}
	args = padded(args)
	query := `SELECT b.id, CASE WHEN b.quarantined <> '' OR b.maintenance <> '' THEN 1 ELSE 0 END FROM bots b WHERE b.task = 0 AND b.id IN (` + marks(len(args)) + `)`
	if tx.d == postgres {
		query += ` ORDER BY b.id FOR UPDATE`
	}
	rows, err := tx.q.query(tx.ctx, query, args...)
	if tx.note(err) != nil {
		return nil, fmt.Errorf("read free bots: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id skep.BotID
		var f Free
		if err := rows.Scan(&id, flag{&f.Ill}); tx.note(err) != nil {
			return nil, fmt.Errorf("read free bots: %w", err)
		}
		free[id] = f
	}
	return free, tx.note(rows.Err())
}

// Occupy notes that a bot that is free took a task, without touching the rest
// of its record, and adds the event. key tells a repetition, see Bot.LastEvent.
func (tx *Tx) Occupy(b skep.BotID, task skep.TaskID, name string, event skep.EventType, key string) error {
	seq := tx.nextSeq()
	if err := tx.write(`UPDATE bots SET task = $2, task_name = $3, last_event = $4, idle_us = 0, last_seen_us = $5, dead = 0,
		prev_seq = last_seq, last_seq = $6, prev_task = last_task, last_task = $2 WHERE id = $1`,
		b, task, name, string(event)+":"+key, micros(tx.Now), seq); err != nil {
		return fmt.Errorf("store task of bot %s: %w", b, err)
	}
	tx.looked(b, false, func(l *BotLook) bool {
		l.Task, l.IdleSince, l.Dead = task, time.Time{}, false
		return true
	})
	return tx.recordEvent(b, seq, event, "", task)
}

// Release notes that a bot ended a task, and adds the event. If the bot has
// another task by now, that one stays.
func (tx *Tx) Release(b skep.BotID, task skep.TaskID, event skep.EventType, message string) error {
	seq := tx.nextSeq()
	err := tx.write(`UPDATE bots SET task_name = CASE WHEN task = $2 THEN '' ELSE task_name END, last_event = CASE WHEN task = $2 THEN $3 ELSE last_event END,
		idle_us = CASE WHEN task = $2 THEN 0 ELSE idle_us END, last_seen_us = CASE WHEN task = $2 THEN $4 ELSE last_seen_us END,
		dead = CASE WHEN task = $2 THEN 0 ELSE dead END, task = CASE WHEN task = $2 THEN 0 ELSE task END,
		prev_seq = last_seq, last_seq = $5 WHERE id = $1`,
		b, task, string(event)+":"+task.String(), micros(tx.Now), seq)
	if err != nil {
		return fmt.Errorf("store task of bot %s: %w", b, err)
	}
	tx.looked(b, false, func(l *BotLook) bool {
		if l.Task == task {
			l.Task, l.IdleSince, l.Dead = 0, time.Time{}, false
		}
		return true
	})
	return tx.recordEvent(b, seq, event, message, task)
}

// SeenBots notes when bots were last heard of.
func (tx *Tx) SeenBots(at map[skep.BotID]time.Time) error {
	for id, t := range at {
		if err := tx.write(`UPDATE bots SET last_seen_us = $2 WHERE id = $1 AND last_seen_us < $2`, id, micros(t)); err != nil {
			return fmt.Errorf("store bot %s: %w", id, err)
		}
	}
	return nil
}

// DeleteBot removes the live record; the history stays.
func (tx *Tx) DeleteBot(id skep.BotID) error {
	tx.looked(id, false, func(*BotLook) bool { return false })
	if err := tx.write(keepHistory+`WHERE id = $1`+overHistory, id); err != nil {
		return fmt.Errorf("store history of bot %s: %w", id, err)
	}
	if err := tx.write(`DELETE FROM bots WHERE id = $1`, id); err != nil {
		return fmt.Errorf("delete bot %s: %w", id, err)
	}
	return tx.ForgetMismatch(id)
}
