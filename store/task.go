package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	sqlite3 "modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"

	"github.com/skepdev/skep"
)

// reads are the questions that both a Store and a Tx answer.
type reads struct{ q querier }

// lockColumns is a task row in the order that scanLocked reads it, without
// what only readers look at.
const lockColumns = `t.id, t.state, t.slice, t.priority, t.queue, t.expires_us, t.modified_us, t.started_us, t.ended_us,
	t.abandon_us, t.contact_us, t.tolerance_us, t.killing, t.bot, t.claim_key, t.exit_code, t.duration_secs,
	t.failure, t.internal, t.fault, t.cost_usd, t.output_bytes, t.versions, t.parent, t.children`

// taskColumns is a whole task, as scanTask reads it from taskTable.
const (
	taskColumns = lockColumns + `, t.claim, COALESCE(d.dimensions, ''), t.outcome`
	taskTable   = `tasks t LEFT JOIN dimension_sets d ON d.id = t.claim_dims`
)

type scanner interface{ Scan(dest ...any) error }

// scanLocked reads lockColumns, and then more into extra.
func scanLocked(row scanner, extra ...any) (*skep.Task, error) {
	var (
		t                                                   skep.Task
		expires, modified, started, ended, abandon, contact int64
		tolerance                                           int64
		versions                                            string
		exit                                                sql.NullInt64
		duration                                            sql.NullFloat64
	)
	dest := append(make([]any, 0, 32),
		&t.ID, &t.State, &t.Slice, &t.Priority, &t.Queue, &expires, &modified, &started, &ended,
		&abandon, &contact, &tolerance, flag{&t.Killing}, &t.Bot, &t.ClaimKey, &exit, &duration,
		flag{&t.Failure}, flag{&t.InternalFailure}, &t.Fault, &t.CostUSD, &t.OutputSize, &versions, &t.Parent, flag{&t.HasChildren},
	)
	if err := row.Scan(append(dest, extra...)...); err != nil {
		return nil, err
	}
	t.ExpiresAt, t.ModifiedAt, t.StartedAt, t.EndedAt = instant(expires), instant(modified), instant(started), instant(ended)
	t.AbandonAt, t.ContactAt, t.PingTolerance = instant(abandon), instant(contact), time.Duration(tolerance)*time.Microsecond
	if exit.Valid {
		t.ExitCode = &exit.Int64
	}
	if duration.Valid {
		t.Duration = &duration.Float64
	}
	if versions != "" {
		t.ServerVersions = strings.Split(versions, "\n")
	}
	return &t, nil
}

// scanTask reads taskColumns, and then more into extra.
func scanTask(row scanner, extra ...any) (*skep.Task, error) {
	var claim, dims, outcome string
	t, err := scanLocked(row, append([]any{&claim, &dims, &outcome}, extra...)...)
	if err != nil {
		return nil, err
	}
	if claim != "" {
		t.Claim = new(skep.Claim)
		if err := json.Unmarshal([]byte(claim), t.Claim); err != nil {
			return nil, fmt.Errorf("stored claim of task %s: %w", t.ID, err)
		}
	}
	if dims != "" {
		if err := json.Unmarshal([]byte(dims), &t.Claim.Dimensions); err != nil {
			return nil, fmt.Errorf("stored claim of task %s: %w", t.ID, err)
		}
	}
	if outcome != "" {
		t.Outcome = new(skep.Outcome)
		if err := json.Unmarshal([]byte(outcome), t.Outcome); err != nil {
			return nil, fmt.Errorf("stored outcome of task %s: %w", t.ID, err)
		}
	}
	return t, nil
}

func noSuchTask(id skep.TaskID) error { return skep.Errorf(skep.NotFound, "no such task: %s", id) }

// Task returns a task, or a NotFound error.
func (r reads) Task(ctx context.Context, id skep.TaskID) (*skep.Task, error) {
	ts, err := r.tasks(ctx, `SELECT `+taskColumns+` FROM `+taskTable+` WHERE t.id = $1`, id)
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
	reqs, err := r.Requests(ctx, id)
	if err != nil {
		return nil, err
	}
	if reqs[id] == nil {
		return nil, noSuchTask(id)
	}
	return reqs[id], nil
}

// Requests returns what was asked for by several tasks; those that do not
// exist are missing.
func (r reads) Requests(ctx context.Context, ids ...skep.TaskID) (map[skep.TaskID]*skep.TaskRequest, error) {
	out := make(map[skep.TaskID]*skep.TaskRequest, len(ids))
	if len(ids) == 0 {
		return out, nil
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = int64(id)
	}
	args = padded(args)
	rows, err := r.q.query(ctx, `SELECT id, body FROM task_requests WHERE id IN (`+marks(len(args))+`)`, args...)
	if err != nil {
		return nil, fmt.Errorf("read requests: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id skep.TaskID
		var body string
		if err := rows.Scan(&id, &body); err != nil {
			return nil, fmt.Errorf("read requests: %w", err)
		}
		if out[id], err = decodeRequest(id, body); err != nil {
			return nil, err
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read requests: %w", err)
	}
	return out, nil
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
//
// Nearly all calls are new. So it is assumed that this one is, and not looked
// up: when it is not, CreateTask fails, and the changes of the batch run again
// one by one. Then it is looked up.
func (tx *Tx) TaskByUUID(caller, uuid string) (skep.TaskID, error) {
	if tx.batch.shared {
		return tx.batch.made[madeBy{caller, uuid}], nil
	}
	var id skep.TaskID
	var expires int64
	found, err := tx.q.row(tx.ctx, `SELECT task, expires_us FROM request_uuids WHERE caller = $1 AND uuid = $2`, []any{caller, uuid}, &id, &expires)
	if tx.note(err) != nil {
		return 0, fmt.Errorf("read request_uuid: %w", err)
	}
	if !found || expires > micros(tx.Now) {
		return id, nil
	}
	if err := tx.write(`DELETE FROM request_uuids WHERE caller = $1 AND uuid = $2`, caller, uuid); err != nil {
		return 0, fmt.Errorf("delete request_uuid: %w", err)
	}
	return 0, nil
}

// uuidLife is how long a call of NewTask can be repeated. spec/api-v2.md §6.1.
const uuidLife = 7 * 24 * time.Hour

// NewTask is a request with its task, made ready to be stored: what takes time
// is done before the one writer has it in hand.
type NewTask struct {
	Request *skep.TaskRequest
	Task    *skep.Task
	Secret  []byte

	body string
	tags int64 // in tag_sets
}

// Prepare makes a task ready for CreateTask.
func Prepare(req *skep.TaskRequest, t *skep.Task, secret []byte) (*NewTask, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return &NewTask{Request: req, Task: t, Secret: secret, body: string(body), tags: tagSetID(req.Tags)}, nil
}

// CreateTask stores a request with its task, tags and secret. A Conflict error
// means that the id is taken, or that the call was made by another server at
// the same time: do it all again, with another id.
func (tx *Tx) CreateTask(n *NewTask) error {
	req, t := n.Request, n.Task
	if err := tx.write(`INSERT INTO task_requests (id, body, secret) VALUES ($1, $2, $3)`, req.ID, n.body, n.Secret); err != nil {
		return taken(err, "store request %s", req.ID)
	}
	if err := tx.write(`INSERT INTO tasks (id, state, waits, slice, priority, queue, expires_us, modified_us, ended_us, abandon_us, tolerance_us, fault, versions, parent, tags)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)`,
		t.ID, t.State, bit(t.State == skep.Pending), t.Slice, t.Priority, t.Queue, micros(t.ExpiresAt), micros(t.ModifiedAt), micros(t.EndedAt), micros(t.AbandonAt),
		t.PingTolerance.Microseconds(), t.Fault, strings.Join(t.ServerVersions, "\n"), t.Parent, n.tags); err != nil {
		return fmt.Errorf("store task: %w", err)
	}
	if t.Parent != 0 {
		if err := tx.write(`UPDATE tasks SET children = 1 WHERE id = $1 AND children = 0`, t.Parent); err != nil {
			return fmt.Errorf("store parent of task %s: %w", t.ID, err)
		}
		tx.batch.lose(t.Parent)
	}
	if err := tx.tagSet(n.tags, req.Tags); err != nil {
		return err
	}
	if req.UUID == "" {
		return nil
	}
	if err := tx.write(`INSERT INTO request_uuids (caller, uuid, task, expires_us) VALUES ($1, $2, $3, $4)`,
		req.Authenticated, req.UUID, t.ID, micros(tx.Now.Add(uuidLife))); err != nil {
		return taken(err, "store request_uuid of task %s", t.ID)
	}
	if tx.batch.shared {
		tx.batch.made[madeBy{req.Authenticated, req.UUID}] = t.ID
	}
	return nil
}

// taken says what err means for an insert: a Conflict when the key is there
// already.
func taken(err error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if duplicate(err) {
		return skep.Errorf(skep.Conflict, "%s: it is there already", text)
	}
	return fmt.Errorf("%s: %w", text, err)
}

// duplicate reports whether the engine refused a second row with the same key.
func duplicate(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == "23505"
	}
	lite, ok := errors.AsType[*sqlite3.Error](err)
	return ok && (lite.Code() == sqlitelib.SQLITE_CONSTRAINT_PRIMARYKEY || lite.Code() == sqlitelib.SQLITE_CONSTRAINT_UNIQUE)
}

// LockTask reads a task for changing it: on PostgreSQL other servers wait.
// What only readers look at, Claim and Outcome, is not read.
func (tx *Tx) LockTask(id skep.TaskID) (*skep.Task, error) {
	if t := tx.batch.task(id); t != nil {
		return t, nil
	}
	query := `SELECT ` + lockColumns + ` FROM tasks t WHERE t.id = $1`
	if tx.d == postgres {
		query += ` FOR UPDATE`
	}
	ts, err := tx.locked(query, id)
	if err != nil {
		return nil, fmt.Errorf("read task %s: %w", id, err)
	}
	if len(ts) == 0 {
		return nil, noSuchTask(id)
	}
	return ts[0], nil
}

func (tx *Tx) locked(query string, args ...any) ([]*skep.Task, error) {
	rows, err := tx.q.query(tx.ctx, query, args...)
	if tx.note(err) != nil {
		return nil, err
	}
	ts, err := scanAllLocked(rows)
	return ts, tx.note(err)
}

func scanAllLocked(rows rows) (out []*skep.Task, err error) {
	defer rows.Close()
	for rows.Next() {
		t, err := scanLocked(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, rows.Err()
}

// SaveTask writes everything about a task that may have changed since
// LockTask: all but its claim, and its Outcome when it has one.
func (tx *Tx) SaveTask(t *skep.Task) error {
	outcome, err := encode(t.Outcome)
	if err != nil {
		return err
	}
	tx.batch.wrote(t)
	err = tx.write(`UPDATE tasks SET state = $2, slice = $3, queue = $4, expires_us = $5, modified_us = $6, ended_us = $7,
		abandon_us = $8, contact_us = $9, killing = $10, exit_code = $11, duration_secs = $12,
		failure = $13, internal = $14, fault = $15, cost_usd = $16, output_bytes = $17, outcome = $18, versions = $19, waits = $20 WHERE id = $1`,
		t.ID, t.State, t.Slice, t.Queue, micros(t.ExpiresAt), micros(t.ModifiedAt), micros(t.EndedAt),
		micros(t.AbandonAt), micros(t.ContactAt), bit(t.Killing), t.ExitCode, t.Duration,
		bit(t.Failure), bit(t.InternalFailure), t.Fault, t.CostUSD, t.OutputSize, outcome, strings.Join(t.ServerVersions, "\n"), bit(t.State == skep.Pending))
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

// Touch notes that the bot of a running task spoke of it. t is as LockTask
// returned it, with a new OutputSize and CostUSD.
func (tx *Tx) Touch(t *skep.Task) error {
	t.ContactAt, t.ModifiedAt = tx.Now, tx.Now
	tx.batch.wrote(t)
	if err := tx.write(`UPDATE tasks SET contact_us = $2, modified_us = $2, cost_usd = $3, output_bytes = $4 WHERE id = $1`,
		t.ID, micros(tx.Now), t.CostUSD, t.OutputSize); err != nil {
		return fmt.Errorf("touch task %s: %w", t.ID, err)
	}
	return nil
}

// WaitingTasks returns the first limit tasks of a queue that have not expired,
// best priority first, then oldest. On PostgreSQL it skips those that another
// server is about to claim.
func (tx *Tx) WaitingTasks(queue skep.QueueID, limit int) ([]*skep.Task, error) {
	ts, err := tx.locked(`SELECT `+lockColumns+` FROM tasks t
		WHERE t.waits = 1 AND t.queue = $1 AND t.expires_us > $2 ORDER BY t.priority, t.id LIMIT CAST($3 AS BIGINT) `+tx.d.skipLocked, queue, micros(tx.Now), limit)
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	return ts, nil
}

// ClaimTask makes a waiting task the bot's, after Occupy. dims is the bot's DimensionsKey; 0
// stores the dimensions of the claim.
func (tx *Tx) ClaimTask(t *skep.Task, dims int64) (err error) {
	if dims == 0 {
		if dims, err = tx.dimensionSet(t.Claim.Dimensions); err != nil {
			return fmt.Errorf("claim task %s: %w", t.ID, err)
		}
	}
	slim := *t.Claim
	slim.Dimensions = nil
	claim, err := encode(&slim)
	if err != nil {
		return err
	}
	t.ModifiedAt, t.ContactAt = t.StartedAt, t.StartedAt
	tx.batch.wrote(t)
	err = tx.write(`UPDATE tasks SET state = $2, waits = 0, modified_us = $3, started_us = $3, contact_us = $3, bot = $4, claim_key = $5, claim = $6, claim_dims = $7, versions = $8,
		bot_prev = COALESCE((SELECT prev_task FROM bots WHERE id = $4), 0) WHERE id = $1`, t.ID, t.State, micros(t.StartedAt), t.Bot, t.ClaimKey, claim, dims, strings.Join(t.ServerVersions, "\n"))
	if err != nil {
		return fmt.Errorf("claim task %s: %w", t.ID, err)
	}
	return nil
}

// ExpiredTasks returns up to limit waiting tasks whose slice has expired.
func (tx *Tx) ExpiredTasks(limit int) ([]*skep.Task, error) {
	return tx.locked(`SELECT `+lockColumns+` FROM tasks t WHERE t.waits = 1 AND t.expires_us <= $1 ORDER BY t.expires_us LIMIT CAST($2 AS BIGINT) `+tx.d.skipLocked,
		micros(tx.Now), limit)
}

// NextExpiry returns when the next waiting slice expires, zero when none waits.
func (r reads) NextExpiry(ctx context.Context) (time.Time, error) {
	var us int64
	if _, err := r.q.row(ctx, `SELECT expires_us FROM tasks WHERE waits = 1 ORDER BY expires_us LIMIT 1`, nil, &us); err != nil {
		return time.Time{}, fmt.Errorf("read next expiry: %w", err)
	}
	return instant(us), nil
}

// RunningTasks returns all running tasks, as LockTask does: those that the
// records of bots name.
func (r reads) RunningTasks(ctx context.Context) ([]*skep.Task, error) {
	rows, err := r.q.query(ctx, `SELECT `+lockColumns+` FROM bots b JOIN tasks t ON t.id = b.task WHERE b.task <> 0 AND t.state = 16`)
	if err != nil {
		return nil, err
	}
	return scanAllLocked(rows)
}

// Children returns the unfinished tasks whose parent is id.
func (r reads) Children(ctx context.Context, id skep.TaskID) ([]skep.TaskID, error) {
	return r.taskIDs(ctx, `SELECT id FROM tasks WHERE parent = $1 AND parent <> 0 AND state IN (16, 32)`, id)
}

// Orphans returns the unfinished tasks, not being stopped, whose parent has
// ended or is being stopped.
func (r reads) Orphans(ctx context.Context) ([]skep.TaskID, error) {
	return r.taskIDs(ctx, `SELECT c.id FROM tasks c JOIN tasks p ON p.id = c.parent
			WHERE c.state = 16 AND c.parent <> 0 AND c.killing = 0 AND (p.state NOT IN (16, 32) OR p.killing = 1)
		UNION ALL SELECT c.id FROM tasks c JOIN tasks p ON p.id = c.parent
			WHERE c.state = 32 AND c.parent <> 0 AND (p.state NOT IN (16, 32) OR p.killing = 1)`)
}

func (r reads) taskIDs(ctx context.Context, query string, args ...any) ([]skep.TaskID, error) {
	rows, err := r.q.query(ctx, query, args...)
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
