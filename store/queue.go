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
	rows, err := r.q.query(ctx, `SELECT id, dimensions, expires_us FROM queues`)
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
