package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
)

// code is a status of gRPC (grpc/doc/statuscodes.md of the grpc project).
type code uint8

const (
	ok                 code = 0
	canceled           code = 1
	unknown            code = 2
	invalidArgument    code = 3
	deadlineExceeded   code = 4
	notFound           code = 5
	alreadyExists      code = 6
	permissionDenied   code = 7
	resourceExhausted  code = 8
	failedPrecondition code = 9
	aborted            code = 10
	outOfRange         code = 11
	unimplemented      code = 12
	internal           code = 13
	unavailable        code = 14
	dataLoss           code = 15
	unauthenticated    code = 16
)

// statuses gives each code its name and what it is to our callers.
var statuses = [...]struct {
	name string
	kind skep.Kind
}{
	ok: {"OK", skep.Internal}, canceled: {"CANCELLED", skep.Unavailable}, unknown: {"UNKNOWN", skep.Unavailable},
	invalidArgument: {"INVALID_ARGUMENT", skep.Invalid}, deadlineExceeded: {"DEADLINE_EXCEEDED", skep.Unavailable},
	notFound: {"NOT_FOUND", skep.NotFound}, alreadyExists: {"ALREADY_EXISTS", skep.Conflict},
	permissionDenied: {"PERMISSION_DENIED", skep.Denied}, resourceExhausted: {"RESOURCE_EXHAUSTED", skep.Exhausted},
	failedPrecondition: {"FAILED_PRECONDITION", skep.Precondition}, aborted: {"ABORTED", skep.Unavailable},
	outOfRange: {"OUT_OF_RANGE", skep.Invalid}, unimplemented: {"UNIMPLEMENTED", skep.Precondition},
	internal: {"INTERNAL", skep.Unavailable}, unavailable: {"UNAVAILABLE", skep.Unavailable},
	dataLoss: {"DATA_LOSS", skep.Unavailable}, unauthenticated: {"UNAUTHENTICATED", skep.Unauthenticated},
}

func (c code) String() string {
	if int(c) < len(statuses) {
		return statuses[c].name
	}
	return "code " + strconv.Itoa(int(c))
}

// status is the end of a call that is not OK.
type status struct {
	code code
	text string // the server's words
}

func (s *status) Error() string {
	if s.text == "" {
		return s.code.String()
	}
	return s.code.String() + ": " + s.text
}

func statusf(c code, format string, args ...any) error {
	return &status{c, fmt.Sprintf(format, args...)}
}

// codeOf is the code of an error of the wire; anything that is no status is
// ok's opposite, unknown.
func codeOf(err error) code {
	var s *status
	if errors.As(err, &s) {
		return s.code
	}
	return unknown
}

// maxStatusText bounds what a server may make us print.
const maxStatusText = 1 << 10

// trailerStatus reads grpc-status and grpc-message; nil is OK.
func trailerStatus(h http.Header) error {
	n, err := strconv.ParseUint(h.Get("Grpc-Status"), 10, 8)
	if err != nil {
		return statusf(unavailable, "the answer ended without a status") // cut off, as by a proxy
	}
	if code(n) == ok {
		return nil
	}
	return &status{code(n), percentDecode(h.Get("Grpc-Message"))}
}

// percentDecode reads a grpc-message; what is malformed stays as it is. The
// result is one line of printable characters.
func percentDecode(s string) string {
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < maxStatusText; i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(b.String(), "\uFFFD"))
}

// httpStatus is what an answer that is not gRPC's means (grpc/doc/http-grpc-status-mapping.md).
func httpStatus(resp *http.Response) error {
	c := unknown
	switch resp.StatusCode {
	case http.StatusBadRequest:
		c = invalidArgument
	case http.StatusUnauthorized:
		c = unauthenticated
	case http.StatusForbidden:
		c = permissionDenied
	case http.StatusNotFound:
		c = unimplemented
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		c = unavailable
	}
	return statusf(c, "HTTP status %s is no answer of a content-addressed storage", resp.Status)
}

// permanentError is one that no repetition mends, such as a local file that
// cannot be read.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// transient reports whether the same call may do better in a moment.
func transient(err error) bool {
	var s *status
	if errors.As(err, &s) {
		switch s.code {
		case canceled, deadlineExceeded, aborted, unavailable, internal, resourceExhausted, dataLoss:
			return true
		default:
			return false
		}
	}
	var (
		permanent permanentError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	switch {
	case errors.As(err, &permanent), errors.As(err, &authority), errors.As(err, &hostname),
		errors.As(err, &invalid), errors.As(err, &record), errors.As(err, &alert):
		return false
	}
	return true // the connection: refused, reset, timed out
}

// outward gives an error of the wire the form that callers see.
func (c *Client) outward(ctx context.Context, what string, err error) error {
	var known *skep.Error
	var permanent permanentError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, context.Cause(ctx))
	case errors.As(err, &permanent):
		return fmt.Errorf("%s: %w", what, permanent.error)
	case errors.As(err, &known):
		return fmt.Errorf("%s: %w", what, err)
	}
	kind := skep.Unavailable
	var s *status
	if errors.As(err, &s) && int(s.code) < len(statuses) {
		kind = statuses[s.code].kind
	}
	return skep.Errorf(kind, "content-addressed storage at %s: %s: %w", c.base, what, err)
}
