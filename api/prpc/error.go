package prpc

import (
	"context"
	"errors"
	"fmt"

	"github.com/skepdev/skep"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Error is an error with a code of its own. A handler returns one when skep.Error says too little, and Client.Call
// returns nothing else. It wraps a *skep.Error of the kind and field that it stands for, so that skep.KindOf and
// skep.FieldOf can read it, and the error of the transport or of the context, if that was the cause.
type Error struct {
	Code    code.Code
	Text    string // one line for a person
	Details []*anypb.Any
	HTTP    int // status of the answer; 0 when there was none, and on the server

	causes []error
}

// Errorf makes an Error without details. A %w operand stays reachable by errors.Is.
func Errorf(c code.Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return (&Error{Code: c, Text: err.Error()}).explain(errors.Unwrap(err))
}

// Error returns Text, or the name of the code when there is none.
func (e *Error) Error() string {
	if e.Text == "" {
		return e.Code.String()
	}
	return e.Text
}

// Unwrap returns what lies beneath, see Error.
func (e *Error) Unwrap() []error { return e.causes }

// Detail copies the first detail of m's type into m and says whether there is one.
func (e *Error) Detail(m proto.Message) bool {
	for _, d := range e.Details {
		if d.MessageIs(m) && d.UnmarshalTo(m) == nil {
			return true
		}
	}
	return false
}

// Code returns the code of err: that of an Error in its chain, else the one StatusOf would give it. It is OK for nil.
func Code(err error) code.Code {
	if err == nil {
		return code.Code_OK
	}
	return code.Code(StatusOf(err).Code)
}

// StatusOf says how a handler's error is sent (spec/prpc.md §6). In this order: an Error as it stands; a skep.Error
// by its kind, an Invalid one that names a field with a google.rpc.BadRequest detail; a context that ended as
// CANCELLED or DEADLINE_EXCEEDED; anything else as UNKNOWN. A skep.Error of kind Internal does not hide the end of
// a context, which explains it better.
func StatusOf(err error) *status.Status {
	if e, ok := errors.AsType[*Error](err); ok {
		return &status.Status{Code: int32(e.Code), Message: e.Error(), Details: e.Details}
	}
	e, ok := errors.AsType[*skep.Error](err)
	if ok && e.Kind != skep.Internal {
		return &status.Status{Code: int32(CodeOf(e.Kind)), Message: e.Text, Details: fieldDetail(e)}
	}
	c := code.Code_UNKNOWN
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		c = code.Code_DEADLINE_EXCEEDED
	case errors.Is(err, context.Canceled):
		c = code.Code_CANCELLED
	case ok:
		c = code.Code_INTERNAL
	}
	return &status.Status{Code: int32(c), Message: err.Error()}
}

func fieldDetail(e *skep.Error) []*anypb.Any {
	if e.Kind != skep.Invalid || e.Field == "" {
		return nil
	}
	detail, err := anypb.New(&errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: e.Field, Description: e.Text}},
	})
	if err != nil {
		return nil // the field is not valid UTF-8; the text still says what is wrong
	}
	return []*anypb.Any{detail}
}

// explain gives e the causes that make it readable for skep.KindOf, and for errors.Is where cause is not nil.
func (e *Error) explain(cause error) *Error {
	kind := &skep.Error{Kind: KindOf(e.Code), Text: e.Error()}
	var bad errdetails.BadRequest
	if kind.Kind == skep.Invalid && e.Detail(&bad) && len(bad.FieldViolations) > 0 {
		kind.Field = bad.FieldViolations[0].Field
	}
	e.causes = []error{kind}
	if cause != nil {
		e.causes = append(e.causes, cause)
	}
	return e
}
