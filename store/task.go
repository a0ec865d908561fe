package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

// reads are the questions that both a Store and a Tx answer.
type reads struct{ q *statements }

// taskColumns is a task row in the order that scanTask reads it.
const taskColumns = `t.id, t.state, t.slice, t.priority, t.queue, t.expires_us, t.modified_us, t.started_us, t.ended_us,
	t.abandon_us, t.contact_us, t.tolerance_us, t.killing, t.bot, t.claim_key, t.claim, t.exit_code, t.duration_secs,
	t.failure, t.internal, t.fault, t.cost_usd, t.output_bytes, t.outcome, t.versions, t.parent`

type scanner interface{ Scan(dest ...any) error }

// scanTask reads taskColumns, and then more into extra.
func scanTask(row scanner, extra ...any) (*skep.Task, error) {
	var (
		t                                                   skep.Task
		expires, modified, started, ended, abandon, contact int64
		tolerance                                           int64
		killing, failure, internal                          bool
		claim, outcome, versions                            string
		exit                                                sql.NullInt64
		duration                                            sql.NullFloat64
	)
	dest := []any{
		&t.ID, &t.State, &t.Slice, &t.Priority, &t.Queue, &expires, &modified, &started, &ended,
		&abandon, &contact, &tolerance, &killing, &t.Bot, &t.ClaimKey, &claim, &exit, &duration,
		&failure, &internal, &t.Fault, &t.CostUSD, &t.OutputSize, &outcome, &versions, &t.Parent,
	}
	if err := row.Scan(append(dest, extra...)...); err != nil {
		return nil, err
	}
	t.ExpiresAt, t.ModifiedAt, t.StartedAt, t.EndedAt = instant(expires), instant(modified), instant(started), instant(ended)
	t.AbandonAt, t.ContactAt, t.PingTolerance = instant(abandon), instant(contact), time.Duration(tolerance)*time.Microsecond
	t.Killing, t.Failure, t.InternalFailure = killing, failure, internal
	if exit.Valid {
		t.ExitCode = &exit.Int64
	}
	if duration.Valid {
		t.Duration = &duration.Float64
	}
	if versions != "" {
		t.ServerVersions = strings.Split(versions, "\n")
	}
	if claim != "" {
		t.Claim = new(skep.Claim)
		if err := json.Unmarshal([]byte(claim), t.Claim); err != nil {
			return nil, fmt.Errorf("stored claim of task %s: %w", t.ID, err)
		}
	}
	if outcome != "" {
		t.Outcome = new(skep.Outcome)
		if err := json.Unmarshal([]byte(outcome), t.Outcome); err != nil {
			return nil, fmt.Errorf("stored outcome of task %s: %w", t.ID, err)
		}
	}
	return &t, nil
}

func noSuchTask(id skep.TaskID) error { return skep.Errorf(skep.NotFound, "no such task: %s", id) }

// Task returns a task, or a NotFound error.
func (r reads) Task(ctx context.Context, id skep.TaskID) (*skep.Task, error) {
	ts, err := r.tasks(ctx, `SELECT `+taskColumns+` FROM tasks t WHERE t.id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("read task %s: %w", id, err)
	}
	if len(ts) == 0 {
		return nil, noSuchTask(id)
	}
	return ts[0], nil
}

func (r reads) tasks(ctx context.Context, query string, args ...any) ([]*skep.Task, error) {
	rows, err := r.q.query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*skep.Task
	for rows.Next() {
		t, err := scanTask(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// Request returns what was asked for, or a NotFound error.
func (r reads) Request(ctx context.Context, id skep.TaskID) (*skep.TaskRequest, error) {
	var body string
	found, err := r.q.row(ctx, `SELECT body FROM task_requests WHERE id = $1`, []any{id}, &body)
	if err != nil {
		return nil, fmt.Errorf("read request %s: %w", id, err)
	}
	if !found {
		return nil, noSuchTask(id)
	}
	return decodeRequest(id, body)
}

func decodeRequest(id skep.TaskID, body string) (*skep.TaskRequest, error) {
	req := new(skep.TaskRequest)
	if err := json.Unmarshal([]byte(body), req); err != nil {
		return nil, fmt.Errorf("stored request of task %s: %w", id, err)
	}
	return req, nil
}

// Secret returns the secret bytes of a task, nil when it has none.
func (r reads) Secret(ctx context.Context, id skep.TaskID) ([]byte, error) {
	var secret []byte
	if _, err := r.q.row(ctx, `SELECT secret FROM task_requests WHERE id = $1`, []any{id}, &secret); err != nil {
		return nil, fmt.Errorf("read secret of task %s: %w", id, err)
	}
	return secret, nil
}

// TaskByUUID returns the task that caller made with uuid, 0 when there is none.
func (tx *Tx) TaskByUUID(caller, uuid string) (skep.TaskID, error) {
	var id skep.TaskID
	_, err := tx.q.row(tx.ctx, `SELECT task FROM request_uuids WHERE caller = $1 AND uuid = $2 AND expires_us > $3`,
		[]any{caller, uuid, micros(tx.Now)}, &id)
	return id, tx.note(err)
}

// uuidLife is how long a call of NewTask can be repeated. spec/api-v2.md §6.1.
const uuidLife = 7 * 24 * time.Hour

// CreateTask stores a request with its task, tags and secret. A Conflict error
// means that the id is taken: draw another.
func (tx *Tx) CreateTask(req *skep.TaskRequest, t *skep.Task, secret []byte) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	res, err := tx.exec(`INSERT INTO task_requests (id, body, secret) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, req.ID, string(body), secret)
	if err != nil {
		return fmt.Errorf("store request: %w", err)
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return skep.Errorf(skep.Conflict, "task id %s is taken", req.ID)
	}
	if _, err := tx.exec(`INSERT INTO tasks (id, state, slice, priority, queue, expires_us, modified_us, ended_us, abandon_us, tolerance_us, fault, versions, parent)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`,
		t.ID, t.State, t.Slice, t.Priority, t.Queue, micros(t.ExpiresAt), micros(t.ModifiedAt), micros(t.EndedAt), micros(t.AbandonAt),
		t.PingTolerance.Microseconds(), t.Fault, strings.Join(t.ServerVersions, "\n"), t.Parent); err != nil {
		return fmt.Errorf("store task: %w", err)
	}
	if err := tx.tag(t.ID, req.Tags); err != nil {
		return err
	}
	if req.UUID == "" {
		return nil
	}
	if _, err := tx.exec(`INSERT INTO request_uuids (caller, uuid, task, expires_us) VALUES ($1, $2, $3, $4)
		ON CONFLICT (caller, uuid) DO UPDATE SET task = excluded.task, expires_us = excluded.expires_us`,
		req.Authenticated, req.UUID, t.ID, micros(tx.Now.Add(uuidLife))); err != nil {
		return fmt.Errorf("store request_uuid: %w", err)
	}
	return nil
}

// LockTask reads a task for changing it: on PostgreSQL other servers wait.
func (tx *Tx) LockTask(id skep.TaskID) (*skep.Task, error) {
	query := `SELECT ` + taskColumns + ` FROM tasks t WHERE t.id = $1`
	if tx.d == postgres {
		query += ` FOR UPDATE`
	}
	ts, err := tx.tasks(tx.ctx, query, id)
	if tx.note(err) != nil {
		return nil, fmt.Errorf("read task %s: %w", id, err)
	}
	if len(ts) == 0 {
		return nil, noSuchTask(id)
	}
	return ts[0], nil
}

// SaveTask writes everything about a task that may have changed.
func (tx *Tx) SaveTask(t *skep.Task) error {
	claim, err := encode(t.Claim)
	if err != nil {
		return err
	}
	outcome, err := encode(t.Outcome)
	if err != nil {
		return err
	}
	_, err = tx.exec(`UPDATE tasks SET state = $2, slice = $3, queue = $4, expires_us = $5, modified_us = $6, started_us = $7, ended_us = $8,
		abandon_us = $9, contact_us = $10, killing = $11, bot = $12, claim_key = $13, claim = $14, exit_code = $15, duration_secs = $16,
		failure = $17, internal = $18, fault = $19, cost_usd = $20, output_bytes = $21, outcome = $22, versions = $23 WHERE id = $1`,
		t.ID, t.State, t.Slice, t.Queue, micros(t.ExpiresAt), micros(t.ModifiedAt), micros(t.StartedAt), micros(t.EndedAt),
		micros(t.AbandonAt), micros(t.ContactAt), bit(t.Killing), t.Bot, t.ClaimKey, claim, t.ExitCode, t.Duration,
		bit(t.Failure), bit(t.InternalFailure), t.Fault, t.CostUSD, t.OutputSize, outcome, strings.Join(t.ServerVersions, "\n"))
	if err != nil {
		return fmt.Errorf("store task %s: %w", t.ID, err)
	}
	return nil
}

// encode returns v as JSON text, "" for nil.
func encode[T any](v *T) (string, error) {
	if v == nil {
		return "", nil
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// bit stores a flag as 0 or 1: the engines do not share a boolean type.
func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Progress is what a running task's row says after Touch.
type Progress struct {
	Killing    bool
	OutputSize int64
	CostUSD    float64
	Parent     skep.TaskID
}

// Touch notes that bot spoke of its running task. found is false when the
// bot does not run it.
func (tx *Tx) Touch(id skep.TaskID, bot skep.BotID, costUSD float64) (p Progress, found bool, err error) {
	found, err = tx.writeRow(`UPDATE tasks SET contact_us = $3, modified_us = $3, cost_usd = CASE WHEN cost_usd < $4 THEN $4 ELSE cost_usd END
		WHERE id = $1 AND bot = $2 AND state = 16 RETURNING killing, output_bytes, cost_usd, parent`,
		[]any{id, bot, micros(tx.Now), costUSD}, &p.Killing, &p.OutputSize, &p.CostUSD, &p.Parent)
	if err != nil {
		err = fmt.Errorf("touch task %s: %w", id, err)
	}
	return p, found, err
}

// Waiting is a task that can be claimed, with what its bot needs to know.
type Waiting struct {
	Task    *skep.Task
	Request *skep.TaskRequest
	Secret  []byte
}

// WaitingTasks returns the first limit tasks of a queue that have not expired,
// best priority first, then oldest. On PostgreSQL it skips those that another
// server is about to claim.
func (tx *Tx) WaitingTasks(queue skep.QueueID, limit int) ([]Waiting, error) {
	rows, err := tx.q.query(tx.ctx, `SELECT `+taskColumns+`, r.body, r.secret FROM tasks t JOIN task_requests r ON r.id = t.id
		WHERE t.state = 32 AND t.queue = $1 AND t.expires_us > $2 ORDER BY t.priority, t.id LIMIT $3 `+tx.d.skipLocked, queue, micros(tx.Now), limit)
	if tx.note(err) != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	defer rows.Close()
	var out []Waiting
	for rows.Next() {
		var body string
		var w Waiting
		if w.Task, err = scanTask(rows, &body, &w.Secret); tx.note(err) != nil {
			return nil, fmt.Errorf("read queue: %w", err)
		}
		if w.Request, err = decodeRequest(w.Task.ID, body); err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, tx.note(rows.Err())
}

// ClaimTask makes a waiting task bot's.
func (tx *Tx) ClaimTask(t *skep.Task) error {
	claim, err := encode(t.Claim)
	if err != nil {
		return err
	}
	_, err = tx.exec(`UPDATE tasks SET state = $2, modified_us = $3, started_us = $3, contact_us = $3, bot = $4, claim_key = $5, claim = $6, versions = $7
		WHERE id = $1`, t.ID, t.State, micros(t.StartedAt), t.Bot, t.ClaimKey, claim, strings.Join(t.ServerVersions, "\n"))
	if err != nil {
		return fmt.Errorf("claim task %s: %w", t.ID, err)
	}
	return nil
}

// ExpiredTasks returns up to limit waiting tasks whose slice has expired.
func (tx *Tx) ExpiredTasks(limit int) ([]*skep.Task, error) {
	ts, err := tx.tasks(tx.ctx, `SELECT `+taskColumns+` FROM tasks t WHERE t.state = 32 AND t.expires_us <= $1 ORDER BY t.expires_us LIMIT $2 `+tx.d.skipLocked,
		micros(tx.Now), limit)
	return ts, tx.note(err)
}

// NextExpiry returns when the next waiting slice expires, zero when none waits.
func (r reads) NextExpiry(ctx context.Context) (time.Time, error) {
	var us int64
	if _, err := r.q.row(ctx, `SELECT expires_us FROM tasks WHERE state = 32 ORDER BY expires_us LIMIT 1`, nil, &us); err != nil {
		return time.Time{}, fmt.Errorf("read next expiry: %w", err)
	}
	return instant(us), nil
}

// RunningTasks returns all running tasks.
func (r reads) RunningTasks(ctx context.Context) ([]*skep.Task, error) {
	return r.tasks(ctx, `SELECT `+taskColumns+` FROM tasks t WHERE t.state = 16`)
}

// Children returns the unfinished tasks whose parent is id.
func (r reads) Children(ctx context.Context, id skep.TaskID) ([]skep.TaskID, error) {
	rows, err := r.q.query(ctx, `SELECT id FROM tasks WHERE parent = $1 AND parent <> 0 AND state IN (16, 32)`, id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []skep.TaskID
	for rows.Next() {
		var id skep.TaskID
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, rows.Err()
}
