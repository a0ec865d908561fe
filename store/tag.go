package store

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"sync"

	"github.com/skepdev/skep"
)

// tagID is what a tag is indexed by. A false match has a chance of 2^-63 and
// is sorted out by reading the request.
func tagID(tag string) int64 {
	sum := sha256.Sum256([]byte(tag))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 1)
}

// tagArgs returns the arguments of tag.
func tagArgs(id skep.TaskID, tags []string) []any {
	if len(tags) == 0 {
		return nil
	}
	args := make([]any, 1, len(tags)+1)
	args[0] = int64(id)
	for _, t := range tags {
		args = append(args, tagID(t))
	}
	return args
}

// tag notes which tags a task carries.
func (tx *Tx) tag(id skep.TaskID, args []any) error {
	if len(args) == 0 {
		return nil
	}
	if err := tx.write(tx.d.tagText(len(args)-1), args...); err != nil {
		return fmt.Errorf("store tags of task %s: %w", id, err)
	}
	return nil
}

// tagText returns the statement that stores n tags of $1.
func (d *dialect) tagText(n int) string {
	key := tagStatement{d.name, n}
	if text, ok := tagTexts.Load(key); ok {
		return text.(string)
	}
	var q strings.Builder
	q.WriteString(d.insertSure + `task_tags (task, tag) VALUES `)
	for i := range n {
		if i > 0 {
			q.WriteByte(',')
		}
		fmt.Fprintf(&q, "($1,$%d)", i+2)
	}
	tagTexts.Store(key, q.String())
	return q.String()
}

type tagStatement struct {
	dialect string
	tags    int
}

var tagTexts sync.Map // tagStatement → string
