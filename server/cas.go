package server

import (
	"context"
	"io"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Blobs are the content-addressed storage of this server, as its pages read
// it. Errors are those of package skep or a *cas.MissingError.
type Blobs interface {
	Get(ctx context.Context, d cas.Digest, limit int64) ([]byte, error)
	Open(ctx context.Context, d cas.Digest, offset int64) (io.ReadCloser, error)
}

// AdmitCAS says whether a call of the content-addressed storage may be made:
// the name under which the caller knows this server must be one of its own,
// and they must have a token, of any scope, unless the server is open
// (decisions.md 7 and 9). authorization is the value of that header.
func (s *Server) AdmitCAS(ctx context.Context, authority, authorization string) error {
	if !s.isHost(authority, false) {
		return notKnownAs(authority)
	}
	c, err := s.callerWith(ctx, authorization)
	if err != nil {
		return err
	}
	return mayUseCAS(c)
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
