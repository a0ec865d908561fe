package store

import (
	"context"
	"fmt"

	"github.com/skepdev/skep"
)

// Output limits, spec/api-v2.md §6.6.
const (
	pieceBytes    = 102_400           // largest stored piece
	MaxOutput     = 1024 * pieceBytes // bytes of a task's output that are kept
	MaxOutputRead = 160 * pieceBytes  // bytes that one read returns
)

// WriteOutput places data at offset start and returns the new end of the
// output, which the caller stores with the task (Touch, SaveTask). It may be
// repeated and come out of order: bytes already there are overwritten, a gap
// reads as zeros until it is filled, and what lies beyond MaxOutput is
// dropped. size is the present end.
func (tx *Tx) WriteOutput(id skep.TaskID, size, start int64, data []byte) (int64, error) {
	if start >= MaxOutput || len(data) == 0 {
		return size, nil
	}
	data = data[:min(int64(len(data)), MaxOutput-start)]
	end := start + int64(len(data))
	if start < size { // some of it may be there
		if err := tx.overwrite(id, start, data); err != nil {
			return size, fmt.Errorf("store output of task %s: %w", id, err)
		}
	} else if err := tx.addOutput(id, start, data); err != nil {
		return size, fmt.Errorf("store output of task %s: %w", id, err)
	}
	return max(end, size), nil
}

// addOutput stores bytes where there are none.
func (tx *Tx) addOutput(id skep.TaskID, start int64, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), pieceBytes)
		if err := tx.write(`INSERT INTO task_output (task, start, data) VALUES ($1, $2, $3)`, id, start, data[:n]); err != nil {
			return err
		}
		start, data = start+int64(n), data[n:]
	}
	return nil
}

// overwrite replaces the bytes that are there and adds the others.
func (tx *Tx) overwrite(id skep.TaskID, start int64, data []byte) error {
	have, err := tx.pieces(tx.ctx, id, start, start+int64(len(data)))
	if tx.note(err) != nil {
		return err
	}
	for _, p := range have {
		if p.start > start { // a gap before this piece
			n := p.start - start
			if err := tx.addOutput(id, start, data[:n]); err != nil {
				return err
			}
			start, data = p.start, data[n:]
		}
		n := copy(p.data[start-p.start:], data)
		if err := tx.write(`UPDATE task_output SET data = $3 WHERE task = $1 AND start = $2`, id, p.start, p.data); err != nil {
			return err
		}
		start, data = start+int64(n), data[n:]
	}
	return tx.addOutput(id, start, data)
}

type piece struct {
	start int64
	data  []byte
}

// pieces returns the stored pieces that reach into [start, end), in order.
func (r reads) pieces(ctx context.Context, id skep.TaskID, start, end int64) ([]piece, error) {
	rows, err := r.q.query(ctx, `SELECT start, data FROM task_output WHERE task = $1 AND start > $2 AND start < $3 ORDER BY start`,
		id, start-pieceBytes, end)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []piece
	for rows.Next() {
		var p piece
		if err := rows.Scan(&p.start, &p.data); err != nil {
			return nil, err
		}
		if p.start+int64(len(p.data)) > start {
			out = append(out, p)
		}
	}
	return out, rows.Err()
}

// Output returns up to limit bytes of a task's output from offset on, at most
// MaxOutputRead (also for limit 0). Bytes that the bot never sent are zeros;
// beyond the end there is nothing. size is the end of the output as read
// before, so that a short answer means the end.
func (r reads) Output(ctx context.Context, id skep.TaskID, size, offset, limit int64) ([]byte, error) {
	if limit <= 0 || limit > MaxOutputRead {
		limit = MaxOutputRead
	}
	if offset >= size {
		return nil, nil
	}
	end := min(size, offset+limit)
	ps, err := r.pieces(ctx, id, offset, end)
	if err != nil {
		return nil, fmt.Errorf("read output of task %s: %w", id, err)
	}
	out := make([]byte, end-offset)
	for _, p := range ps {
		if p.start >= offset {
			copy(out[p.start-offset:], p.data)
		} else {
			copy(out, p.data[offset-p.start:])
		}
	}
	return out, nil
}
