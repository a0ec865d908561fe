package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// Queue is one set of demands that tasks have.
type Queue struct {
	ID         skep.QueueID
	Dimensions skep.Constraints
	Expires    time.Time
}

// SaveQueue registers a queue until expires, or prolongs it.
func (tx *Tx) SaveQueue(q Queue) error {
	dims, err := json.Marshal(q.Dimensions)
	if err != nil {
		return err
	}
	if err := tx.write(`INSERT INTO queues (id, dimensions, expires_us) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET expires_us = CASE WHEN queues.expires_us > excluded.expires_us THEN queues.expires_us ELSE excluded.expires_us END`,
		q.ID, string(dims), micros(q.Expires)); err != nil {
		return fmt.Errorf("store queue: %w", err)
	}
	return nil
}

// Queues returns all registered queues.
func (r reads) Queues(ctx context.Context) ([]Queue, error) {
	return r.queues(ctx, ``)
}

// Queue returns a registered queue; found says whether there is one.
func (r reads) Queue(ctx context.Context, id skep.QueueID) (q Queue, found bool, err error) {
	qs, err := r.queues(ctx, ` WHERE id = $1`, id)
	if err != nil || len(qs) == 0 {
		return Queue{}, false, err
	}
	return qs[0], true, nil
}

func (r reads) queues(ctx context.Context, where string, args ...any) ([]Queue, error) {
	rows, err := r.q.query(ctx, `SELECT id, dimensions, expires_us FROM queues`+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	defer rows.Close()
	var out []Queue
	for rows.Next() {
		var q Queue
		var dims string
		var us int64
		if err := rows.Scan(&q.ID, &dims, &us); err != nil {
			return nil, fmt.Errorf("read queues: %w", err)
		}
		if err := json.Unmarshal([]byte(dims), &q.Dimensions); err != nil {
			return nil, fmt.Errorf("stored queue %d: %w", q.ID, err)
		}
		q.Expires = instant(us)
		out = append(out, q)
	}
	return out, rows.Err()
}

// FullQueues returns the queues in which a task waits.
func (r reads) FullQueues(ctx context.Context) ([]skep.QueueID, error) {
	rows, err := r.q.query(ctx, `SELECT DISTINCT queue FROM tasks WHERE waits = 1`)
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	defer rows.Close()
	var out []skep.QueueID
	for rows.Next() {
		var id skep.QueueID
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read queues: %w", err)
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// QueueLoad is what waits in one queue.
type QueueLoad struct {
	ID         skep.QueueID
	Dimensions skep.Constraints
	Tasks      int // up to the limit that was asked for
}

// QueueLoads returns the queues in which tasks wait that were made before an
// instant, by id, and how many do: limit where there are more, so that a long
// queue costs no more than what can be done about it.
func (r reads) QueueLoads(ctx context.Context, before time.Time, limit int) ([]QueueLoad, error) {
	const waits = `t.waits = 1 AND t.queue = q.id AND t.id < $1`
	rows, err := r.q.query(ctx, `SELECT q.id, q.dimensions, (SELECT COUNT(*) FROM (SELECT 1 FROM tasks t WHERE `+waits+` LIMIT CAST($2 AS BIGINT)) one)
		FROM queues q WHERE EXISTS (SELECT 1 FROM tasks t WHERE `+waits+`) ORDER BY q.id`, skep.FirstTaskID(before), limit)
	if err != nil {
		return nil, fmt.Errorf("read queues: %w", err)
	}
	defer rows.Close()
	var out []QueueLoad
	for rows.Next() {
		var l QueueLoad
		var dims string
		if err := rows.Scan(&l.ID, &dims, &l.Tasks); err != nil {
			return nil, fmt.Errorf("read queues: %w", err)
		}
		if err := json.Unmarshal([]byte(dims), &l.Dimensions); err != nil {
			return nil, fmt.Errorf("stored queue %d: %w", l.ID, err)
		}
		out = append(out, l)
	}
	return out, rows.Err()
}
