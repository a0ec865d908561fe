package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"
)

// tagID is what a tag is indexed by. A false match has a chance of 2^-63 and
// is sorted out by reading the request.
func tagID(tag string) int64 {
	sum := sha256.Sum256([]byte(tag))
	return int64(binary.BigEndian.Uint64(sum[:8]) >> 1)
}

// tagSetID names a set of sorted tags; 0 is the empty one.
func tagSetID(tags []string) int64 {
	if len(tags) == 0 {
		return 0
	}
	return contentID(tags...)
}

// tagSets are the sets that are surely stored: those noted within a day. The
// tasks of a fleet have few different ones, and so most are not written again.
type tagSets struct {
	mu    sync.Mutex
	noted map[int64]time.Time
}

// maxTagSets bounds how many sets are remembered: where every task has a tag
// of its own, nothing is gained.
const maxTagSets = 1 << 13

func (ts *tagSets) has(id int64, now time.Time) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	at, ok := ts.noted[id]
	return ok && now.Sub(at) < 24*time.Hour
}

func (ts *tagSets) note(id int64, now time.Time) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.noted == nil || len(ts.noted) >= maxTagSets {
		ts.noted = map[int64]time.Time{}
	}
	ts.noted[id] = now
}

// tagSet stores the set of tags that id names, unless that is known to be done.
func (tx *Tx) tagSet(id int64, tags []string) error {
	if id == 0 || tx.tags.has(id, tx.Now) {
		return nil
	}
	members := make([]int64, len(tags))
	for i, t := range tags {
		members[i] = tagID(t)
	}
	slices.Sort(members)
	text, err := json.Marshal(slices.Compact(members))
	if err != nil {
		return err
	}
	if err := tx.write(`INSERT INTO tag_sets (id, members, used_us) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET used_us = excluded.used_us`, id, string(text), micros(tx.Now)); err != nil {
		return fmt.Errorf("store tags: %w", err)
	}
	for _, m := range slices.Compact(members) {
		if err := tx.write(`INSERT INTO task_tags (tag, tags) VALUES ($1, $2) ON CONFLICT DO NOTHING`, m, id); err != nil {
			return fmt.Errorf("store tags: %w", err)
		}
	}
	tx.after = append(tx.after, func() { tx.tags.note(id, tx.Now) })
	return nil
}

// pruneTagSets deletes up to limit sets that no task has any more.
func (tx *Tx) pruneTagSets(before time.Time, limit int) (int, error) {
	rows, err := tx.q.query(tx.ctx, `SELECT id, members FROM tag_sets WHERE used_us < $1 ORDER BY used_us LIMIT CAST($2 AS BIGINT)`, micros(before), limit)
	if tx.note(err) != nil {
		return 0, err
	}
	defer rows.Close()
	var ids []int64
	var texts []string
	for rows.Next() {
		var id int64
		var text string
		if err := rows.Scan(&id, &text); tx.note(err) != nil {
			return 0, err
		}
		ids, texts = append(ids, id), append(texts, text)
	}
	if err := tx.note(rows.Close()); err != nil {
		return 0, err
	}
	for i, id := range ids {
		n, err := tx.exec(`DELETE FROM tag_sets WHERE id = $1 AND used_us < $2`, id, micros(before))
		if err != nil {
			return 0, err
		}
		if n == 0 { // another server just stored it again
			continue
		}
		var members []int64
		if err := json.Unmarshal([]byte(texts[i]), &members); err != nil {
			return 0, fmt.Errorf("stored tag set: %w", err)
		}
		for _, m := range members {
			if err := tx.write(`DELETE FROM task_tags WHERE tag = $1 AND tags = $2`, m, id); err != nil {
				return 0, err
			}
		}
	}
	return len(ids), nil
}
