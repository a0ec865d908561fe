package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skepdev/skep"
)

// Token is an API token as stored: the secret itself is not kept.
type Token struct {
	ID        string // shown in listings, first part of the token
	Hash      []byte // SHA-256 of the whole token
	Name      string
	Scope     string   // "user", "admin" or "bot"
	Bots      []string // scope bot: ids, or prefixes ending in *
	CreatedAt time.Time
	ExpiresAt time.Time // zero = never
	RevokedAt time.Time // zero = valid
}

// AddToken stores a new token.
func (tx *Tx) AddToken(t Token) error {
	err := tx.write(`INSERT INTO tokens (id, hash, name, scope, bots, created_us, expires_us, revoked_us) VALUES ($1,$2,$3,$4,$5,$6,$7,0)`,
		t.ID, t.Hash, t.Name, t.Scope, strings.Join(t.Bots, "\n"), micros(tx.Now), micros(t.ExpiresAt))
	if err != nil {
		return fmt.Errorf("store token: %w", err)
	}
	return nil
}

// RevokeToken ends a token; an unknown one is a NotFound error.
func (tx *Tx) RevokeToken(id string) error {
	n, err := tx.exec(`UPDATE tokens SET revoked_us = $2 WHERE id = $1 AND revoked_us = 0`, id, micros(tx.Now))
	if err != nil {
		return fmt.Errorf("revoke token: %w", err)
	}
	if n == 0 {
		return skep.Errorf(skep.NotFound, "no valid token has the id %s", id)
	}
	return nil
}

const tokenColumns = `id, hash, name, scope, bots, created_us, expires_us, revoked_us`

func scanToken(row scanner) (t Token, err error) {
	var (
		bots                      string
		created, expires, revoked int64
	)
	if err := row.Scan(&t.ID, &t.Hash, &t.Name, &t.Scope, &bots, &created, &expires, &revoked); err != nil {
		return t, err
	}
	if bots != "" {
		t.Bots = strings.Split(bots, "\n")
	}
	t.CreatedAt, t.ExpiresAt, t.RevokedAt = instant(created), instant(expires), instant(revoked)
	return t, nil
}

// Tokens returns all tokens, oldest first, revoked and expired ones included.
func (r reads) Tokens(ctx context.Context) ([]Token, error) {
	return r.tokens(ctx, `SELECT `+tokenColumns+` FROM tokens ORDER BY created_us, id`)
}

// Token returns the token with this id, found false when there is none.
func (r reads) Token(ctx context.Context, id string) (t Token, found bool, err error) {
	ts, err := r.tokens(ctx, `SELECT `+tokenColumns+` FROM tokens WHERE id = $1`, id)
	if err != nil || len(ts) == 0 {
		return Token{}, false, err
	}
	return ts[0], true, nil
}

func (r reads) tokens(ctx context.Context, query string, args ...any) ([]Token, error) {
	rows, err := r.q.query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	defer rows.Close()
	var out []Token
	for rows.Next() {
		t, err := scanToken(rows)
		if err != nil {
			return nil, fmt.Errorf("read tokens: %w", err)
		}
		out = append(out, t)
	}
	return out, rows.Err()
}
