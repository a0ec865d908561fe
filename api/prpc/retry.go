package prpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/api/prpc/prpcpb"
	"github.com/skepdev/skep/internal/backoff"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// Retry says how often a Client asks again after UNKNOWN, INTERNAL, UNAVAILABLE and DEADLINE_EXCEEDED (spec/prpc.md
// §11). The zero value is the default; pauses double from First to Max, less up to half at random.
type Retry struct {
	Times   int           // at most this often; 0 is 10, negative is never
	First   time.Duration // 0 is 1 s
	Max     time.Duration // 0 is 60 s
	For     time.Duration // no attempt begins later than this after the first; 0 is no limit
	Refused time.Duration // For of a server that refuses connections and never answered; 0 is 2 s, negative is For
}

// refusedFirst is the first pause while a server that may be starting refuses connections.
const refusedFirst = 50 * time.Millisecond

// pauses is the state of one call's retries.
type pauses struct {
	left    int
	backoff backoff.Exponential
	refused backoff.Exponential
	until   time.Time // no attempt after this; zero is no limit
	patient time.Time // nor after this with refused connections
}

func (r Retry) start() *pauses {
	p := &pauses{
		left:    firstNonZero(r.Times, 10),
		backoff: backoff.Exponential{Min: firstNonZero(r.First, time.Second), Max: firstNonZero(r.Max, time.Minute)},
		refused: backoff.Exponential{Min: refusedFirst, Max: 10 * refusedFirst},
	}
	now := time.Now()
	if r.For > 0 {
		p.until = now.Add(r.For)
	}
	p.patient = p.until
	if refused := firstNonZero(r.Refused, 2*time.Second); refused > 0 {
		p.patient = now.Add(refused)
	}
	return p
}

func firstNonZero[T comparable](a, b T) T {
	var zero T
	if a != zero {
		return a
	}
	return b
}

// wait pauses before another attempt, and returns false when there shall be none. stranger says that the server never
// answered.
func (p *pauses) wait(ctx context.Context, e *Error, stranger bool) bool {
	if !Transient(e) || p.left < 0 {
		return false
	}
	if stranger && Refused(e) && !p.patient.IsZero() {
		return time.Now().Before(p.patient) && p.refused.Sleep(ctx, 0) == nil
	}
	if p.left == 0 || !p.until.IsZero() && time.Now().After(p.until) {
		return false
	}
	p.left--
	return p.backoff.Sleep(ctx, 0) == nil
}

// transientCodes are the outcomes that may be another one next time.
var transientCodes = []code.Code{
	code.Code_UNKNOWN, code.Code_INTERNAL, code.Code_UNAVAILABLE, code.Code_DEADLINE_EXCEEDED,
}

// Transient says that the outcome of a call may be another one next time, by its code.
func Transient(err error) bool { return slices.Contains(transientCodes, Code(err)) }

// Refused says that err is of a Client whose connection was refused: nothing listens at the address.
func Refused(err error) bool { return errors.Is(err, errRefused) }

// isTooBig says that an answer is larger than we accept, which it would be again.
func isTooBig(e *Error) bool {
	var d prpcpb.ErrorDetails
	return e.Detail(&d) && d.GetResponseTooBig() != nil
}

// connectionError makes an Error of a request that got no whole answer. last says that another one would not either.
func connectionError(server string, err error) (e *Error, last bool) {
	cause := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		cause = u.Err // its text repeats method and URL
	}
	var timeout net.Error
	switch {
	case errors.Is(cause, context.Canceled):
		return Errorf(code.Code_CANCELLED, "%s: the call was cancelled: %w", server, cause), true
	case errors.Is(cause, context.DeadlineExceeded) || errors.As(cause, &timeout) && timeout.Timeout():
		return Errorf(code.Code_DEADLINE_EXCEEDED, "%s did not answer in time: %w", server, cause), false
	case errors.Is(cause, errRefused):
		return Errorf(code.Code_UNAVAILABLE, "nothing listens at %s: %w", server, cause), false
	}
	if hint := hopeless(cause); hint != "" {
		return Errorf(code.Code_UNAVAILABLE, "%s: %s: %w", server, hint, cause), true
	}
	return Errorf(code.Code_UNAVAILABLE, "%s: %w", server, cause), false
}

// hopeless says what is wrong with a connection that would fail in the same way again, "" when it may not.
func hopeless(err error) string {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return "there is no such host"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not trusted"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "its certificate is not trusted"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return "it speaks plain HTTP, not TLS"
	}
	if strings.Contains(err.Error(), "unsupported protocol scheme") { // net/http has no value for it
		return "the address must begin with http:// or https://"
	}
	return ""
}
