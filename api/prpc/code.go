package prpc

import (
	"net/http"

	"github.com/skepdev/skep"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// StatusClientClosed is the HTTP status of CANCELLED: whoever asked is gone.
const StatusClientClosed = 499

// codes is the one table of outcomes: the HTTP status that carries a code (spec/prpc.md §6), and what a caller can
// do about it.
var codes = map[code.Code]struct {
	http int
	kind skep.Kind
}{
	code.Code_OK:                  {http.StatusOK, skep.Internal},
	code.Code_CANCELLED:           {StatusClientClosed, skep.Unavailable},
	code.Code_UNKNOWN:             {http.StatusInternalServerError, skep.Internal},
	code.Code_INVALID_ARGUMENT:    {http.StatusBadRequest, skep.Invalid},
	code.Code_DEADLINE_EXCEEDED:   {http.StatusGatewayTimeout, skep.Unavailable},
	code.Code_NOT_FOUND:           {http.StatusNotFound, skep.NotFound},
	code.Code_ALREADY_EXISTS:      {http.StatusConflict, skep.Conflict},
	code.Code_PERMISSION_DENIED:   {http.StatusForbidden, skep.Denied},
	code.Code_RESOURCE_EXHAUSTED:  {http.StatusTooManyRequests, skep.Exhausted},
	code.Code_FAILED_PRECONDITION: {http.StatusBadRequest, skep.Precondition},
	code.Code_ABORTED:             {http.StatusConflict, skep.Conflict},
	code.Code_OUT_OF_RANGE:        {http.StatusBadRequest, skep.Invalid},
	code.Code_UNIMPLEMENTED:       {http.StatusNotImplemented, skep.Precondition},
	code.Code_INTERNAL:            {http.StatusInternalServerError, skep.Internal},
	code.Code_UNAVAILABLE:         {http.StatusServiceUnavailable, skep.Unavailable},
	code.Code_DATA_LOSS:           {http.StatusInternalServerError, skep.Internal},
	code.Code_UNAUTHENTICATED:     {http.StatusUnauthorized, skep.Unauthenticated},
}

// kindCodes is the way back: the code that a skep.Error is sent as.
var kindCodes = map[skep.Kind]code.Code{
	skep.Internal:        code.Code_INTERNAL,
	skep.Invalid:         code.Code_INVALID_ARGUMENT,
	skep.NotFound:        code.Code_NOT_FOUND,
	skep.Conflict:        code.Code_ABORTED,
	skep.Precondition:    code.Code_FAILED_PRECONDITION,
	skep.Denied:          code.Code_PERMISSION_DENIED,
	skep.Unauthenticated: code.Code_UNAUTHENTICATED,
	skep.Exhausted:       code.Code_RESOURCE_EXHAUSTED,
	skep.Unavailable:     code.Code_UNAVAILABLE,
}

// HTTPStatus returns the HTTP status that carries c, 500 for a number that is no code.
func HTTPStatus(c code.Code) int {
	if row, ok := codes[c]; ok {
		return row.http
	}
	return http.StatusInternalServerError
}

// KindOf returns the kind of error that c stands for, Internal for a number that is no code.
func KindOf(c code.Code) skep.Kind { return codes[c].kind }

// CodeOf returns the code that an error of kind k is sent as, INTERNAL for an unknown kind.
func CodeOf(k skep.Kind) code.Code {
	if c, ok := kindCodes[k]; ok {
		return c
	}
	return code.Code_INTERNAL
}

// hiddenTexts replace what a handler said of a failure of the server itself (spec/prpc.md §5).
var hiddenTexts = map[code.Code]string{
	code.Code_UNKNOWN:           "Unknown server error",
	code.Code_INTERNAL:          "Internal server error",
	code.Code_DATA_LOSS:         "Unrecoverable data loss or data corruption",
	code.Code_UNIMPLEMENTED:     "API method not implemented by the server",
	code.Code_UNAVAILABLE:       "Service unavailable",
	code.Code_DEADLINE_EXCEEDED: "Request deadline exceeded",
}

func hiddenText(c code.Code) string {
	if text, ok := hiddenTexts[c]; ok {
		return text
	}
	return "Server error"
}
