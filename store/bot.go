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
	botColumns = `b.id, COALESCE(d.dimensions, '{}'), COALESCE(s.state, '{}'), b.dims, b.version, b.session, b.authenticated, b.ip, b.first_seen_us, b.last_seen_us,
	b.idle_us, b.task, b.task_name, b.quarantined, b.maintenance, b.dead, b.terminated, b.last_event`
	botTable = `bots b LEFT JOIN bot_snapshots s ON s.id = b.snapshot LEFT JOIN dimension_sets d ON d.id = b.dims`
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
	err = tx.write(`INSERT INTO bots (id, dims, snapshot, version, session, authenticated, ip, first_seen_us, last_seen_us,
			idle_us, task, task_name, quarantined, maintenance, dead, terminated, last_event)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17)
		ON CONFLICT (id) DO UPDATE SET dims = excluded.dims, snapshot = excluded.snapshot,
			version = excluded.version, session = excluded.session, authenticated = excluded.authenticated, ip = excluded.ip,
			first_seen_us = excluded.first_seen_us, last_seen_us = excluded.last_seen_us, idle_us = excluded.idle_us, task = excluded.task,
			task_name = excluded.task_name, quarantined = excluded.quarantined, maintenance = excluded.maintenance, dead = excluded.dead,
			terminated = excluded.terminated, last_event = excluded.last_event`,
		b.ID, b.DimensionsKey, snapshot, b.Version, b.SessionID, b.Authenticated, b.ExternalIP, micros(b.FirstSeen), micros(b.LastSeen),
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

// snapshot stores a bot's dimensions and state for what refers to them, sets
// its DimensionsKey, and returns the number that names the pair.
//
// State differs at every contact, as it holds running times. So one snapshot
// serves a bot for a day, as long as its dimensions stay: it is overwritten,
// and the events of that day show the last state.
func (tx *Tx) snapshot(b *skep.Bot) (int64, error) {
	var err error
	if b.DimensionsKey, err = tx.dimensionSet(b.Dimensions); err != nil {
		return 0, err
	}
	state := string(b.State)
	if state == "" {
		state = "{}"
	}
	id := contentID(string(b.ID), tx.Now.Format(time.DateOnly), strconv.FormatInt(b.DimensionsKey, 36))
	err = tx.write(`INSERT INTO bot_snapshots (id, dims, state, used_us) VALUES ($1, $2, $3, $4)
		ON CONFLICT (id) DO UPDATE SET state = excluded.state, used_us = excluded.used_us`,
		id, b.DimensionsKey, state, micros(tx.Now))
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

// FreeBots returns which of the bots run nothing, and on PostgreSQL keeps
// other servers from giving them something. It is for one caller at a time.
func (tx *Tx) FreeBots(ids []skep.BotID) (map[skep.BotID]bool, error) {
	free := make(map[skep.BotID]bool, len(ids))
	if len(ids) == 0 {
		return free, nil
	}
	var args []any
	for _, id := range slices.Sorted(slices.Values(ids)) {
		// On SQLite what is at hand is what was committed last. Since then only
		// another claim could have given the bot a task, and they are made one by one.
		if l, found := tx.known.get(id); found && tx.d == sqlite {
			free[id] = l.Task == 0
		} else {
			args = append(args, string(id))
		}
	}
	if len(args) == 0 {
		return free, nil
	}
	args = padded(args)
	query := `SELECT b.id FROM bots b WHERE b.task = 0 AND b.id IN (` + marks(len(args)) + `)`
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
		if err := rows.Scan(&id); tx.note(err) != nil {
			return nil, fmt.Errorf("read free bots: %w", err)
		}
		free[id] = true
	}
	return free, tx.note(rows.Err())
}

// Occupy notes that a bot that is free took a task, without touching the rest
// of its record.
func (tx *Tx) Occupy(b skep.BotID, task skep.TaskID, name, event string) error {
	if err := tx.write(`UPDATE bots SET task = $2, task_name = $3, last_event = $4, idle_us = 0, last_seen_us = $5, dead = 0 WHERE id = $1`,
		b, task, name, event, micros(tx.Now)); err != nil {
		return fmt.Errorf("store task of bot %s: %w", b, err)
	}
	tx.looked(b, false, func(l *BotLook) bool {
		l.Task, l.IdleSince, l.Dead = task, time.Time{}, false
		return true
	})
	return nil
}

// Release notes that a bot ended a task. If it has another one by now, that
// one stays.
func (tx *Tx) Release(b skep.BotID, task skep.TaskID, event string) error {
	err := tx.write(`UPDATE bots SET task = 0, task_name = '', last_event = $3, idle_us = 0, last_seen_us = $4, dead = 0 WHERE id = $1 AND task = $2`,
		b, task, event, micros(tx.Now))
	if err != nil {
		return fmt.Errorf("store task of bot %s: %w", b, err)
	}
	tx.looked(b, false, func(l *BotLook) bool {
		if l.Task == task {
			l.Task, l.IdleSince, l.Dead = 0, time.Time{}, false
		}
		return true
	})
	return nil
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
	return tx.write(`DELETE FROM bots WHERE id = $1`, id)
}

// AddEvent appends to the history of a bot, with what b is now.
func (tx *Tx) AddEvent(b *skep.Bot, typ skep.EventType, message string, task skep.TaskID) error {
	snapshot, err := tx.snapshot(b)
	if err != nil {
		return err
	}
	err = tx.write(`INSERT INTO bot_events (bot, at_us, type, message, task, snapshot, version, session, ip, authenticated, quarantined, maintenance)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)`,
		b.ID, micros(tx.Now), typ, message, task, snapshot, b.Version, b.SessionID, b.ExternalIP, b.Authenticated, b.Quarantined, b.Maintenance)
	if err != nil {
		return fmt.Errorf("store event of bot %s: %w", b.ID, err)
	}
	return nil
}

// AddTaskEvent is AddEvent for the events of a task's life, which happen too
// often to read the bot first: its stored record is copied by the engine.
func (tx *Tx) AddTaskEvent(bot skep.BotID, typ skep.EventType, message string, task skep.TaskID) error {
	err := tx.write(tx.d.insertSure+`bot_events (bot, at_us, type, message, task, snapshot, version, session, ip, authenticated, quarantined, maintenance)
		SELECT id, CAST($2 AS BIGINT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT), snapshot, version, session, ip, authenticated, quarantined, maintenance FROM bots WHERE id = $1`,
		bot, micros(tx.Now), typ, message, task)
	if err != nil {
		return fmt.Errorf("store event of bot %s: %w", bot, err)
	}
	return nil
}

// EventFilter selects events of one bot, newest first.
type EventFilter struct {
	Bot        skep.BotID
	Start, End time.Time // at or after; before
	Below      int64     // cursor: only older ones; 0 = from the newest
	Limit      int
}

// BotEvents returns the history of a bot, newest first.
func (r reads) BotEvents(ctx context.Context, f EventFilter) ([]*skep.BotEvent, error) {
	conds, args := []string{"e.bot = $1"}, []any{f.Bot}
	add := func(cond string, v any) {
		args = append(args, v)
		conds = append(conds, fmt.Sprintf("%s $%d", cond, len(args)))
	}
	if !f.Start.IsZero() {
		add("e.at_us >=", micros(f.Start))
	}
	if !f.End.IsZero() {
		add("e.at_us <", micros(f.End))
	}
	if f.Below != 0 {
		add("e.seq <", f.Below)
	}
	args = append(args, f.Limit)
	rows, err := r.q.query(ctx, fmt.Sprintf(`SELECT e.seq, e.at_us, e.type, e.message, e.task, COALESCE(d.dimensions, '{}'), COALESCE(s.state, '{}'),
			e.version, e.session, e.ip, e.authenticated, e.quarantined, e.maintenance
		FROM bot_events e LEFT JOIN bot_snapshots s ON s.id = e.snapshot LEFT JOIN dimension_sets d ON d.id = s.dims WHERE %s ORDER BY e.seq DESC LIMIT $%d`, strings.Join(conds, " AND "), len(args)), args...)
	if err != nil {
		return nil, fmt.Errorf("read events of bot %s: %w", f.Bot, err)
	}
	defer rows.Close()
	var out []*skep.BotEvent
	for rows.Next() {
		var (
			e           skep.BotEvent
			at          int64
			dims, state string
		)
		if err := rows.Scan(&e.Seq, &at, &e.Type, &e.Message, &e.Task, &dims, &state, &e.Version, &e.SessionID, &e.ExternalIP, &e.Authn, &e.Quarantined, &e.Maintenance); err != nil {
			return nil, fmt.Errorf("read events of bot %s: %w", f.Bot, err)
		}
		e.At, e.State = instant(at), json.RawMessage(state)
		if err := json.Unmarshal([]byte(dims), &e.Dimensions); err != nil {
			return nil, fmt.Errorf("stored event of bot %s: %w", f.Bot, err)
		}
		out = append(out, &e)
	}
	return out, rows.Err()
}
