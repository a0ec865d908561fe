package server

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/store"
)

// Life of a bot's own credential. The bot renews it long before that, and the
// one before still works for credentialOverlap: an answer may have been lost.
const (
	credentialLife    = 90 * 24 * time.Hour
	credentialOverlap = time.Hour
)

// credential accepts a token that a bot made as its credential: for a
// bootstrap token, or in place of the credential that the bot has. A repeated
// call finds what the first one did, and uses nothing up. nil means that the
// bot needs none here. decisions.md 10.
func (s *Server) credential(ctx context.Context, bot skep.BotID, req *botapi.CredentialRequest) (*botapi.Credential, error) {
	c := callerOf(ctx)
	if req == nil {
		if c.scope == ScopeBootstrap {
			return nil, skep.Invalidf("credential", "is required with a bootstrap token")
		}
		return nil, nil
	}
	hash, err := hex.DecodeString(req.Hash)
	if err != nil || len(hash) != 32 {
		return nil, skep.Invalidf("credential.hash", "is not the hex of a SHA-256")
	}
	if raw, err := hex.DecodeString(req.ID); err != nil || len(raw) != 6 {
		return nil, skep.Invalidf("credential.id", "is not 12 hex digits")
	}
	// A token for many bots stays what it is: one of them must not make itself
	// independent of it.
	own := c.scope == ScopeBot && len(c.bots) == 1 && c.bots[0] == string(bot)
	if c.scope != ScopeBootstrap && !own {
		return nil, nil
	}
	t := store.Token{ID: req.ID, Hash: hash, Name: string(bot), Scope: ScopeBot, Bots: []string{string(bot)}}
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		t.ExpiresAt = tx.Now.Add(credentialLife)
		old, found, err := tx.Token(ctx, t.ID)
		if err != nil {
			return err
		}
		if found {
			if !bytes.Equal(old.Hash, hash) || old.Scope != ScopeBot || len(old.Bots) != 1 || old.Bots[0] != string(bot) || !old.RevokedAt.IsZero() {
				return skep.Errorf(skep.Conflict, "there is another token with the id %s; make a new one", t.ID)
			}
			t.ExpiresAt = old.ExpiresAt
			return nil
		}
		if c.scope == ScopeBootstrap {
			ok, err := tx.UseToken(c.token)
			if err != nil {
				return err
			}
			if !ok {
				return skep.Errorf(skep.Denied, "the bootstrap token is used up; make another: skep token create --bootstrap")
			}
		}
		if err := tx.ReplaceTokens(t.Name, ScopeBot, t.ID, tx.Now.Add(credentialOverlap)); err != nil {
			return err
		}
		return tx.AddToken(t)
	})
	if err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "credential accepted", "bot", bot, "token", t.ID, "by", c.token)
	return &botapi.Credential{ID: t.ID, Expires: t.ExpiresAt.Unix()}, nil
}
