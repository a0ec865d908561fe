package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// BotBrief is what counting bots needs.
type BotBrief struct {
	ID            skep.BotID
	DimensionsKey int64
	LastSeen      time.Time
	Busy          bool
	Quarantined   bool
	Maintenance   bool
	Dead          bool
}

// BotBriefs returns all bots in short, in no order. Their dimensions, which are
// most of what is stored of them, stay where they are. There is room for about
// that many in the answer from the start.
func (r reads) BotBriefs(ctx context.Context, room int) ([]BotBrief, error) {
	rows, err := r.q.query(ctx, `SELECT id, dims, last_seen_us, task <> 0, quarantined <> '', maintenance <> '', dead <> 0 FROM bots`)
	if err != nil {
		return nil, fmt.Errorf("count bots: %w", err)
	}
	defer rows.Close()
	out := make([]BotBrief, 0, room)
	for rows.Next() {
		var b BotBrief
		var seen int64
		if err := rows.Scan(&b.ID, &b.DimensionsKey, &seen, &b.Busy, &b.Quarantined, &b.Maintenance, &b.Dead); err != nil {
			return nil, fmt.Errorf("count bots: %w", err)
		}
		b.LastSeen = instant(seen)
		out = append(out, b)
	}
	return out, rows.Err()
}

// DimensionSet returns the dimensions with a key, nil when there are none.
func (r reads) DimensionSet(ctx context.Context, key int64) (skep.Dimensions, error) {
	var text string
	found, err := r.q.row(ctx, `SELECT dimensions FROM dimension_sets WHERE id = $1`, []any{key}, &text)
	if err != nil || !found {
		return nil, err
	}
	var d skep.Dimensions
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		return nil, fmt.Errorf("stored dimensions: %w", err)
	}
	return d, nil
}

// QueueCount is how many tasks wait in a queue.
type QueueCount struct {
	Queue  skep.QueueID
	Tasks  int
	Oldest skep.TaskID // its time is that of its creation
}

// QueueCounts returns the queues in which tasks wait.
func (r reads) QueueCounts(ctx context.Context) ([]QueueCount, error) {
	rows, err := r.q.query(ctx, `SELECT queue, COUNT(*), MIN(id) FROM tasks WHERE waits = 1 GROUP BY queue`)
	if err != nil {
		return nil, fmt.Errorf("count waiting tasks: %w", err)
	}
	defer rows.Close()
	var out []QueueCount
	for rows.Next() {
		var c QueueCount
		if err := rows.Scan(&c.Queue, &c.Tasks, &c.Oldest); err != nil {
			return nil, fmt.Errorf("count waiting tasks: %w", err)
		}
		out = append(out, c)
	}
	return out, rows.Err()
}
