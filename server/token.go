package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// tokenPrefix makes a leaked token easy to find.
const tokenPrefix = "skep_"

const (
	hexDigits    = "0123456789abcdef"
	base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
)

// TokenID returns the public part of a token, "skep_<id>_<secret>": 12 hex
// digits, and 32 to 99 of the URL form of base64. For any other text ok is false
// and id is empty.
func TokenID(token string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(token, tokenPrefix)
	id, secret, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || len(id) != 12 || strings.Trim(id, hexDigits) != "" ||
		len(secret) < 32 || len(secret) >= 100 || strings.Trim(secret, base64Digits) != "" {
		return "", false
	}
	return id, true
}

// NewToken describes a token to make.
type NewToken struct {
	Name  string        // who has it
	Scope string        // one of the Scope constants
	Bots  []string      // ScopeBot and ScopeBootstrap: ids, or prefixes ending in *; required
	Uses  int           // ScopeBootstrap: how many bots it brings in; at least 1
	Life  time.Duration // 0 = for ever
}

func forBots(scope string) bool { return scope == ScopeBot || scope == ScopeBootstrap }

// CreateToken makes a token, stores its hash, and returns its text, which
// cannot be read again.
func CreateToken(ctx context.Context, st *store.Store, n NewToken) (text, id string, err error) {
	switch {
	case !slices.Contains([]string{ScopeUser, ScopeAdmin, ScopeBot, ScopeBootstrap, ScopeDrone, ScopeInventory}, n.Scope):
		return "", "", skep.Invalidf("scope", "%q is not user, admin, bot, bootstrap, drone or inventory", n.Scope)
	case n.Name == "" || strings.ContainsAny(n.Name, " \t\r\n:"):
		return "", "", skep.Invalidf("name", "%q must not be empty nor contain blanks or colons", n.Name)
	case forBots(n.Scope) && len(n.Bots) == 0:
		return "", "", skep.Invalidf("bot-id", "a token of scope %s names the bots that may use it, such as 'lab1-*'", n.Scope)
	case !forBots(n.Scope) && len(n.Bots) > 0:
		return "", "", skep.Invalidf("bot-id", "only a token of scope bot or bootstrap is bound to bots")
	case n.Scope == ScopeBootstrap && (n.Uses < 1 || n.Life == 0):
		return "", "", skep.Invalidf("count", "a bootstrap token is limited: say for how many bots (--count) and how long (--expires)")
	case n.Life < 0:
		return "", "", skep.Invalidf("life", "is negative")
	}
	var raw [6 + 32]byte
	_, _ = rand.Read(raw[:]) // never fails
	id = hex.EncodeToString(raw[:6])
	text = tokenPrefix + id + "_" + base64.RawURLEncoding.EncodeToString(raw[6:])
	hash := sha256.Sum256([]byte(text))
	err = st.Update(ctx, func(tx *store.Tx) error {
		t := store.Token{ID: id, Hash: hash[:], Name: n.Name, Scope: n.Scope, Bots: n.Bots, UsesLeft: n.Uses}
		if n.Life > 0 {
			t.ExpiresAt = tx.Now.Add(n.Life)
		}
		all, err := tx.Tokens(ctx)
		if err != nil {
			return err
		}
		for _, o := range all { // the name is the identity: it belongs to one
			valid := o.RevokedAt.IsZero() && (o.ExpiresAt.IsZero() || tx.Now.Before(o.ExpiresAt))
			if n.Scope != ScopeBootstrap && o.Scope != ScopeBootstrap && valid && o.Name == n.Name && (o.Scope == ScopeBot) == (n.Scope == ScopeBot) {
				return skep.Errorf(skep.Conflict, "token %s has the name %s already; choose another, or revoke that one first", o.ID, n.Name)
			}
		}
		return tx.AddToken(t)
	})
	return text, id, err
}
