package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// newTokenCommand groups what is done to API tokens. It works on the state,
// not through the API, and so makes the first token (decisions.md 7).
func newTokenCommand(env *Env) *cobra.Command {
	cmd := group("token", "Make, list and revoke API tokens")
	cmd.AddCommand(newTokenCreateCommand(env), newTokenListCommand(env), newTokenRevokeCommand(env))
	return cmd
}

// tokenStore is where tokens are: the store itself, or the server that has it
// open.
type tokenStore interface {
	create(ctx context.Context, n server.NewToken) (newToken, error)
	list(ctx context.Context) ([]tokenInfo, error)
	revoke(ctx context.Context, id string) error
	close() error
}

// newToken is a token just made; its text cannot be read again.
type newToken struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

// tokenInfo is what may be known of a token.
type tokenInfo struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Scope   string    `json:"scope"`
	Bots    []string  `json:"bot_ids,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// state is one word for a token.
func (t *tokenInfo) state(now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return "revoked"
	case !t.Expires.IsZero() && !now.Before(t.Expires):
		return "expired"
	}
	return "valid"
}

func isValid(t store.Token, now time.Time) bool {
	return t.RevokedAt.IsZero() && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// openTokens opens the store that the flags name, or finds the server that
// has it open.
func openTokens(ctx context.Context, env *Env, flags *storeFlags) (tokenStore, error) {
	dir, err := flags.directory(env)
	if err != nil {
		return nil, err
	}
	dsn, err := flags.dsn(env, dir)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(ctx, dsn, store.Options{})
	if skep.KindOf(err) != skep.Conflict {
		if err != nil {
			return nil, err
		}
		return direct{st, dir}, nil
	}
	if _, statErr := os.Stat(filepath.Join(dir, adminSocket)); statErr != nil {
		return nil, err
	}
	return newRemoteTokens(dir), nil
}

// direct are the tokens of a store that this process has open.
type direct struct {
	store    *store.Store
	stateDir string
}

func (d direct) close() error { return d.store.Close() }

func (d direct) create(ctx context.Context, n server.NewToken) (newToken, error) {
	text, id, err := server.CreateToken(ctx, d.store, n)
	if err != nil {
		return newToken{}, err
	}
	if !server.Closes(n.Scope) {
		return newToken{ID: id, Token: text}, nil
	}
	if err := registerBotTokens(ctx, d.store, d.stateDir); err != nil {
		return newToken{}, fmt.Errorf("the token was made, but bots of skep up are locked out: %w", err)
	}
	return newToken{ID: id, Token: text}, nil
}

func (d direct) list(ctx context.Context) ([]tokenInfo, error) {
	all, err := d.store.Tokens(ctx)
	out := make([]tokenInfo, 0, len(all))
	for _, t := range all {
		out = append(out, tokenInfo{ID: t.ID, Name: t.Name, Scope: t.Scope, Bots: t.Bots, Created: t.CreatedAt, Expires: t.ExpiresAt, Revoked: t.RevokedAt})
	}
	return out, err
}

func (d direct) revoke(ctx context.Context, id string) error {
	err := d.store.Update(ctx, func(tx *store.Tx) error { return tx.RevokeToken(id) })
	if err != nil {
		return fmt.Errorf("revoke token %s: %w", id, err)
	}
	return nil
}
