package server

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/plain"
)

// Blobs are the content-addressed storage of this server, as its pages and
// plain transfers use it. Errors are those of package skep or a
// *cas.MissingError.
type Blobs interface {
	plain.Store
	Open(ctx context.Context, d cas.Digest, offset int64) (io.ReadCloser, error)
}

const casPrefix = "/cas/"

// casPost takes and gives blobs as they are.
func (s *Server) casPost(w http.ResponseWriter, r *http.Request) error {
	if s.o.Blobs == nil {
		return skep.Errorf(skep.Precondition, "this server keeps no blobs of its own; use the storage that --cas names")
	}
	return s.plain.Post(w, r)
}

// AdmitCAS says whether a call of the content-addressed storage may be made:
// the name under which the caller knows this server must be one of its own,
// and they must have a token, of any scope, unless the server is open
// (decisions.md 7 and 9), or the session of a bot that proves who it is by
// something else. authorization is the value of that header.
func (s *Server) AdmitCAS(ctx context.Context, authority, authorization string) error {
	if !s.isHost(authority, false) {
		return notKnownAs(authority)
	}
	if text, ok := strings.CutPrefix(authorization, botapi.SessionScheme); ok {
		if ok, err := s.admitsSession(ctx, text); ok || err != nil {
			return err
		}
	}
	c, err := s.callerWith(ctx, authorization)
	if err != nil {
		return err
	}
	return mayUseCAS(c)
}

// admitsSession reports whether text is the session of a bot that need not have
// a token, and has a task in hand: by the rules of its group, or by those that
// it began its task under, which that ends under (see mayFinish). Whoever has
// such a session has the storage until the task ends. decisions.md 9.
func (s *Server) admitsSession(ctx context.Context, text string) (bool, error) {
	sess, ok := s.sessions.open(text)
	ru := s.rules()
	if !ok || s.sessions.expired(sess) || ru.Group == nil {
		return false, nil
	}
	g := ru.Group(sess.bot)
	if sess.auth == ru.auth(sess.bot) && (g == nil || !slices.ContainsFunc(g.Credentials, func(c Credential) bool { return c.Token == nil })) {
		return false, nil
	}
	b, found, err := s.store.BotLookNow(ctx, sess.bot)
	return found && b.Task != 0 && b.Session == sess.process, err
}

func mayUseCAS(c *caller) error {
	switch c.scope {
	case ScopeUser, ScopeAdmin, ScopeBot:
		return nil
	case ScopeBootstrap:
		return skep.Errorf(skep.Denied, "a bootstrap token only buys a credential")
	default:
		return skep.Errorf(skep.Unauthenticated, "%s may not use the content-addressed storage; send a token (SKEP_TOKEN)", c.identity)
	}
}
