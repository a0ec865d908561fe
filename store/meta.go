package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// Meta returns a value of the fleet, "" when it was never set.
func (r reads) Meta(ctx context.Context, key string) (string, error) {
	var v string
	if _, err := r.q.row(ctx, `SELECT value FROM meta WHERE key = $1`, []any{key}, &v); err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return v, nil
}

// LockMeta is Meta for changing it: on PostgreSQL other servers wait, also for
// a value that was never set.
func (tx *Tx) LockMeta(key string) (string, error) {
	query := `SELECT value FROM meta WHERE key = $1`
	if tx.d == postgres {
		if err := tx.write(`INSERT INTO meta (key, value) VALUES ($1, '') ON CONFLICT DO NOTHING`, key); err != nil {
			return "", fmt.Errorf("lock %s: %w", key, err)
		}
		query += ` FOR UPDATE`
	}
	var v string
	if _, err := tx.q.row(tx.ctx, query, []any{key}, &v); tx.note(err) != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return v, nil
}

// SetMeta sets a value of the fleet.
func (tx *Tx) SetMeta(key, value string) error {
	if err := tx.write(`INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value); err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

// ServerKey returns the 32 secret bytes that every server of this fleet signs
// with under the given name; the first call makes them.
func (s *Store) ServerKey(ctx context.Context, name string) ([]byte, error) {
	name = "key." + name
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails
	err := s.Update(ctx, func(tx *Tx) error {
		err := tx.write(`INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING`, name, hex.EncodeToString(fresh))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	v, err := s.Meta(ctx, name)
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(v)
}
