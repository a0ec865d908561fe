package skep

import (
	"errors"
	"fmt"
)

// Kind says what a caller can do about an error. It is the machine-readable
// reason of every refusal; the text beside it is for a person.
type Kind uint8

// The kinds of errors. Internal is the zero Kind: an error nobody classified
// is a bug, is logged whole, and shows callers only "internal error".
const (
	Internal        Kind = iota
	Invalid              // the request breaks a rule; Field says where
	NotFound             // the named thing does not exist
	Conflict             // the state of the thing does not allow this now
	Precondition         // something the request relies on does not hold
	Denied               // the caller is known and may not do this
	Unauthenticated      // the caller is not known
	Exhausted            // a limit is reached; trying again later may help
	Unavailable          // transient: the same call may be sent again
)

var kindNames = [...]string{
	Internal: "internal", Invalid: "invalid", NotFound: "not_found", Conflict: "conflict",
	Precondition: "precondition", Denied: "denied", Unauthenticated: "unauthenticated",
	Exhausted: "exhausted", Unavailable: "unavailable",
}

// String returns the kind as the word used in logs, metrics and JSON errors.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// ParseKind returns the kind of that name, Internal for one that there is not.
func ParseKind(name string) Kind {
	for k, n := range kindNames {
		if n == name {
			return Kind(k) //nolint:gosec // one of few
		}
	}
	return Internal
}

// Error is an error that may leave the system: Kind for programs, Field for
// the offending field of an Invalid request ("" when there is none), and a
// sentence for people.
type Error struct {
	Kind  Kind
	Field string
	Text  string
	cause error
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns what was wrapped with %w, if anything.
func (e *Error) Unwrap() error { return e.cause }

// Errorf makes an error of kind k. A %w operand stays reachable by errors.Is.
func Errorf(k Kind, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: k, Text: err.Error(), cause: errors.Unwrap(err)}
}

// Invalidf makes an Invalid error about one field. The text names the field
// first, so that the sentence alone is enough.
func Invalidf(field, format string, args ...any) error {
	return &Error{Kind: Invalid, Field: field, Text: field + ": " + fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of the outermost Error in err's chain, Internal for
// any other error.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// FieldOf returns the field an Invalid error is about, or "".
func FieldOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Field
	}
	return ""
}
