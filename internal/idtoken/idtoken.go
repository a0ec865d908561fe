// Package idtoken checks signed identity tokens (RS256 JWTs) against keys that
// are fetched from a URL, kept, and fetched again when a token names a new one.
package idtoken

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// maxToken bounds a token. Bytes.
const maxToken = 16 << 10

// Verifier checks tokens of one issuer. It may be used by many at once.
type Verifier struct {
	audiences []string
	verifier  *oidc.IDTokenVerifier
	fetches   *limit
}

// Options of New.
type Options struct {
	Keys      string           // URL of the JSON Web Key Set
	Issuer    string           // who must have made a token
	Audiences []string         // a token must be made for one of them
	Now       func() time.Time // default time.Now
}

// New returns a Verifier. Nothing is fetched before the first token.
func New(o Options) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	fetches := &limit{now: o.Now}
	// The fetches outlive the call that causes them, hence no context of one.
	ctx := oidc.ClientContext(context.Background(), &http.Client{Timeout: 10 * time.Second, Transport: fetches})
	return &Verifier{
		audiences: o.Audiences,
		fetches:   fetches,
		verifier: oidc.NewVerifier(o.Issuer, oidc.NewRemoteKeySet(ctx, o.Keys), &oidc.Config{
			SkipClientIDCheck: true, SupportedSigningAlgs: []string{oidc.RS256}, Now: o.Now,
		}),
	}
}

// Verify returns an error unless token is valid now, and fills claims, a
// pointer to a struct with JSON tags. Its texts hold nothing of the token.
func (v *Verifier) Verify(ctx context.Context, token string, claims any) error {
	if len(token) > maxToken {
		return errors.New("the token is too long")
	}
	t, err := v.verifier.Verify(ctx, token)
	if err != nil {
		return v.reason(err)
	}
	if !slices.ContainsFunc(t.Audience, func(a string) bool { return slices.Contains(v.audiences, a) }) {
		return errors.New("the token is for another audience")
	}
	if err := t.Claims(claims); err != nil {
		return errors.New("the token's claims have another form")
	}
	return nil
}

// reason is what may be told of an error: the library's own texts hold parts
// of the token.
func (v *Verifier) reason(err error) error {
	switch {
	case errors.As(err, new(*oidc.TokenExpiredError)):
		return errors.New("the token has expired")
	case v.fetches.failing():
		return errors.New("the keys that sign tokens cannot be fetched now")
	}
	return errors.New("the token is not signed with a key of the key set, not of the issuer, or malformed")
}

// limit is a transport that lets a request through every few seconds: tokens
// with made-up keys must not make us ask the issuer again and again.
type limit struct {
	now  func() time.Time
	mu   sync.Mutex
	last time.Time
	bad  bool // the last fetch failed
}

const fetchPause = 5 * time.Second

var errTooOften = errors.New("the key set was asked for a moment ago")

// RoundTrip implements http.RoundTripper.
func (l *limit) RoundTrip(r *http.Request) (*http.Response, error) {
	l.mu.Lock()
	now := l.now()
	if now.Sub(l.last) < fetchPause {
		l.mu.Unlock()
		return nil, errTooOften
	}
	l.last = now
	l.mu.Unlock()
	res, err := http.DefaultTransport.RoundTrip(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad = err != nil || res.StatusCode != http.StatusOK
	return res, err
}

func (l *limit) failing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bad
}
