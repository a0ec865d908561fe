package store

import (
	"context"
	"fmt"
	"strings"
)

// VMsNamed returns the machines that have one of these ids, by id.
func (r reads) VMsNamed(ctx context.Context, ids []string) (map[string]*VM, error) {
	out := map[string]*VM{}
	const most = 500 // in one question
	for len(ids) > 0 {
		n := min(len(ids), most)
		args, marks := make([]any, n), make([]string, n)
		for i, id := range ids[:n] {
			args[i], marks[i] = id, fmt.Sprintf("$%d", i+1)
		}
		vms, err := r.vms(ctx, `WHERE v.id IN (`+strings.Join(marks, ",")+`)`, args...)
		if err != nil {
			return nil, err
		}
		for i := range vms {
			out[vms[i].ID] = &vms[i]
		}
		ids = ids[n:]
	}
	return out, nil
}

// VMsIn returns up to limit machines of a kind in a place with an id above
// after, by id.
func (r reads) VMsIn(ctx context.Context, kind, project, zone, after string, limit int) ([]VM, error) {
	return r.vms(ctx, `WHERE v.kind = $1 AND v.project = $2 AND v.zone = $3 AND v.id > $4 ORDER BY v.id LIMIT $5`, kind, project, zone, after, limit)
}
