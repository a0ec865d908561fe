package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/store"
)

// Scopes of a token. decisions.md 9.
const (
	ScopeUser  = "user"
	ScopeAdmin = "admin"
	ScopeBot   = "bot"

	// ScopeDrone gets devices from the queen and fetches bot code; ScopeInventory
	// tells the queen which devices there are. spec host.md §3.4.
	ScopeDrone     = "drone"
	ScopeInventory = "inventory"

	// ScopeBootstrap buys one bot after the other a credential of its own, a
	// number of times, and nothing else. decisions.md 10.
	ScopeBootstrap = "bootstrap"
)

// Closes reports whether a token of this scope, once made, closes a server that
// was open. One for bootstrap lets nobody in, and so leaves the door as it is.
func Closes(scope string) bool { return scope != ScopeBootstrap }

// anonymous is the identity of a caller without credentials.
const anonymous = "anonymous:anonymous"

// caller is who sent a request and what they may do.
type caller struct {
	identity string // kind:name
	scope    string // "" = nothing at all
	bots     []string
	token    string // id of the token that says so, "" = none
}

type callerKey struct{}

func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{identity: anonymous}
}

// identify adds the caller to r. On an open server an unknown bearer token is
// ignored: a client with a cached login sends it to every host.
func (s *Server) identify(r *http.Request) (*http.Request, error) {
	c, err := s.callerWith(r.Context(), r.Header.Get("Authorization"))
	if err != nil {
		return r, err
	}
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c)), nil
}

// callerWith returns who sends this Authorization header.
func (s *Server) callerWith(ctx context.Context, authorization string) (*caller, error) {
	c := &caller{identity: anonymous}
	open := s.o.Open && s.tokens.none()
	bearer, given := strings.CutPrefix(authorization, "Bearer ")
	if given && !open {
		t, err := s.tokens.find(ctx, strings.TrimSpace(bearer))
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, skep.Errorf(skep.Unauthenticated, "the token is not known, or it has expired or been revoked")
		}
		c = &caller{identity: "user:" + t.Name, scope: t.Scope, bots: t.Bots, token: t.ID}
		if t.Scope == ScopeBot {
			c.identity = "bot:" + t.Name
		}
	}
	if open {
		c.scope = ScopeAdmin
	}
	return c, nil
}

// mayBeBot lets in who may use the Bot API at all.
func mayBeBot(c *caller, path string) error {
	switch c.scope {
	case ScopeBot, ScopeAdmin:
		return nil
	case ScopeBootstrap:
		if path == botapi.PathHandshake {
			return nil
		}
		return skep.Errorf(skep.Denied, "a bootstrap token only buys a credential, by a handshake that asks for one")
	case "":
		return skep.Errorf(skep.Unauthenticated, "a bot needs a token with scope bot; give it to skep-bot as SKEP_BOT_TOKEN")
	default:
		return skep.Errorf(skep.Denied, "%s has a token of scope %s; a bot needs one of scope bot", c.identity, c.scope)
	}
}

// mayAct reports whether c may speak for a bot.
func (c *caller) mayAct(bot skep.BotID) bool {
	if c.scope == ScopeAdmin {
		return true
	}
	return slices.ContainsFunc(c.bots, func(pattern string) bool {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(string(bot), prefix)
		}
		return pattern == string(bot)
	})
}

// tokens keeps the API tokens of the store at hand.
type tokens struct {
	store *store.Store
	now   func() time.Time

	mu     sync.Mutex
	byID   map[string]store.Token
	people int // tokens that close the door
	loaded time.Time
}

// tokensLife is how stale the tokens at hand may be: a revoked one works for
// this long at most.
const tokensLife = 5 * time.Second

func newTokens(s *store.Store, now func() time.Time) *tokens { return &tokens{store: s, now: now} }

func (ts *tokens) load(ctx context.Context) error {
	all, err := ts.store.Tokens(ctx)
	if err != nil {
		return err
	}
	byID := make(map[string]store.Token, len(all))
	people := 0
	for _, t := range all {
		byID[t.ID] = t
		if Closes(t.Scope) {
			people++
		}
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.byID, ts.people, ts.loaded = byID, people, ts.now()
	return nil
}

// none reports whether no token was ever made that closes the door: an open
// server stays open.
func (ts *tokens) none() bool {
	ts.mu.Lock()
	stale := ts.now().Sub(ts.loaded) > tokensLife
	n := ts.people
	ts.mu.Unlock()
	if stale {
		_ = ts.load(context.Background()) // on an error the last known tokens hold
		ts.mu.Lock()
		defer ts.mu.Unlock()
		ts.loaded = ts.now()
		return ts.people == 0
	}
	return n == 0
}

// find returns the valid token that text is, or nil.
func (ts *tokens) find(ctx context.Context, text string) (*store.Token, error) {
	id, ok := TokenID(text)
	if !ok {
		return nil, nil
	}
	ts.mu.Lock()
	t, known := ts.byID[id]
	age := ts.now().Sub(ts.loaded)
	ts.mu.Unlock()
	var err error
	switch {
	case age > tokensLife:
		if err = ts.load(ctx); err == nil {
			ts.mu.Lock()
			t, known = ts.byID[id]
			ts.mu.Unlock()
		}
	case !known: // perhaps it was made just now
		t, known, err = ts.store.Token(ctx, id)
	}
	if err != nil {
		return nil, skep.Errorf(skep.Unavailable, "tokens cannot be read now: %w", err)
	}
	hash := sha256.Sum256([]byte(text))
	if !known || subtle.ConstantTimeCompare(hash[:], t.Hash) != 1 {
		return nil, nil
	}
	if !t.RevokedAt.IsZero() || (!t.ExpiresAt.IsZero() && !ts.now().Before(t.ExpiresAt)) {
		return nil, nil
	}
	return &t, nil
}
