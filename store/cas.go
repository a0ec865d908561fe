package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/skepdev/skep"
)

// CASInputs returns the input trees of every slice of the tasks that wait or
// run, each once. They must not be forgotten by whoever keeps them
// (decisions.md 25).
func (r reads) CASInputs(ctx context.Context) ([]skep.CASReference, error) {
	// Most requests have no such input, and are sorted out by their text.
	rows, err := r.q.query(ctx, `SELECT r.body FROM tasks t JOIN task_requests r ON r.id = t.id
			WHERE t.waits = 1 AND r.body LIKE '%"cas_input"%'
		UNION ALL SELECT r.body FROM bots b JOIN tasks t ON t.id = b.task JOIN task_requests r ON r.id = t.id
			WHERE b.task <> 0 AND t.state = 16 AND r.body LIKE '%"cas_input"%'`)
	if err != nil {
		return nil, fmt.Errorf("read inputs of tasks: %w", err)
	}
	defer rows.Close()
	seen := map[skep.CASReference]bool{}
	var out []skep.CASReference
	for rows.Next() {
		var body string
		if err := rows.Scan(&body); err != nil {
			return nil, fmt.Errorf("read inputs of tasks: %w", err)
		}
		var req struct {
			Slices []struct {
				Properties struct {
					CASInput *skep.CASReference `json:"cas_input"`
				} `json:"properties"`
			} `json:"slices"`
		}
		if err := json.Unmarshal([]byte(body), &req); err != nil {
			return nil, fmt.Errorf("read inputs of tasks: %w", err)
		}
		for _, s := range req.Slices {
			if in := s.Properties.CASInput; in != nil && !seen[*in] {
				seen[*in] = true
				out = append(out, *in)
			}
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read inputs of tasks: %w", err)
	}
	return out, nil
}
