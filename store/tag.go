package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/skepdev/skep"
)

// tagID is what a tag is indexed by. A false match has a chance of 2^-63 and
// is sorted out by reading the request.
func tagID(tag string) int64 {
	sum := sha256.Sum256([]byte(tag))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 1)
}

func (tx *Tx) tag(id skep.TaskID, tags []string) error {
	if len(tags) == 0 {
		return nil
	}
	var q strings.Builder
	q.WriteString(tx.d.insertNew + `task_tags (task, tag) VALUES `)
	args := make([]any, 1, len(tags)+1)
	args[0] = id
	for i, t := range tags {
		if i > 0 {
			q.WriteByte(',')
		}
		args = append(args, tagID(t))
		fmt.Fprintf(&q, "($1,$%d)", len(args))
	}
	q.WriteString(tx.d.orNot)
	if err := tx.write(q.String(), args...); err != nil {
		return fmt.Errorf("store tags of task %s: %w", id, err)
	}
	return nil
}
