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
	Scope     string   // "user", "admin", "bot" or "bootstrap"
	Bots      []string // scopes bot and bootstrap: ids, or prefixes ending in *
	UsesLeft  int      // scope bootstrap: bots that it may still bring in
	CreatedAt time.Time
	ExpiresAt time.Time // zero = never
	RevokedAt time.Time // zero = valid
}

// AddToken stores a new token.
func (tx *Tx) AddToken(t Token) error {
	err := tx.write(`INSERT INTO tokens (id, hash, name, scope, bots, uses_left, created_us, expires_us, revoked_us) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,0)`,
		t.ID, t.Hash, t.Name, t.Scope, strings.Join(t.Bots, "\n"), t.UsesLeft, micros(tx.Now), micros(t.ExpiresAt))
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

// UseToken takes one use of a bootstrap token; ok is false when none is left.
func (tx *Tx) UseToken(id string) (ok bool, err error) {
	n, err := tx.exec(`UPDATE tokens SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0`, id)
	if err != nil {
		return false, fmt.Errorf("use token: %w", err)
	}
	return n > 0, nil
}

// ReplaceTokens lets the other tokens that are for one bot alone, and have its
// name, expire at until at the latest. Tokens for more than that bot stay: who
// may bring in one must not lock out the others.
func (tx *Tx) ReplaceTokens(bot, scope, but string, until time.Time) error {
	err := tx.write(`UPDATE tokens SET expires_us = $4 WHERE name = $1 AND bots = $1 AND scope = $2 AND id <> $3 AND revoked_us = 0 AND (expires_us = 0 OR expires_us > $4)`,
		bot, scope, but, micros(until))
	if err != nil {
		return fmt.Errorf("replace tokens: %w", err)
	}
	return nil
}

const tokenColumns = `id, hash, name, scope, bots, uses_left, created_us, expires_us, revoked_us`

func scanToken(row scanner) (t Token, err error) {
	var (
		bots                      string
		created, expires, revoked int64
	)
	if err := row.Scan(&t.ID, &t.Hash, &t.Name, &t.Scope, &bots, &t.UsesLeft, &created, &expires, &revoked); err != nil {
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
