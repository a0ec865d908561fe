package prpc

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"

	"github.com/skepdev/skep/api/prpc/prpcpb"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// The headers of pRPC in canonical form, spec/prpc.md §3 and §5.
const (
	headerCode        = "X-Prpc-Grpc-Code"
	headerDetails     = "X-Prpc-Status-Details-Bin"
	headerTimeout     = "X-Prpc-Grpc-Timeout"
	headerMaxResponse = "X-Prpc-Max-Response-Size"
)

// Compression says which answers are compressed, of those that are worth it and whose caller allows it.
type Compression uint8

// The policies of spec/prpc.md §7.
const (
	CompressNever   Compression = iota // right where the network is faster than gzip
	CompressAlways                     // all formats
	CompressNotJSON                    // binary and text only
)

// compressOver is the size up to which compressing is not worth it, in bytes.
const compressOver = 1024

func (c Compression) allows(f Format) bool {
	return c == CompressAlways || c == CompressNotJSON && f != JSON
}

// Header values that every answer shares; nobody writes to them.
var (
	valueOK      = []string{"0"}
	valueGzip    = []string{"gzip"}
	valueNosniff = []string{"nosniff"}
	valuePlain   = []string{"text/plain; charset=utf-8"}
	valueMedia   = [...][]string{Binary: {mediaTypes[Binary]}, JSON: {mediaTypes[JSON]}, Text: {mediaTypes[Text]}}
)

// failure is an answer that is not a message.
type failure struct {
	code    code.Code
	http    int // 0: as the code says
	text    string
	details []*anypb.Any
	cause   error // what a handler returned; nil when this layer refused the call
}

// refuse makes a failure that this layer raises: its text is for the caller.
func refuse(c code.Code, format string, args ...any) *failure {
	return &failure{code: c, text: plainText(fmt.Sprintf(format, args...))}
}

// Refuse answers a call that never reached a Server, as one would: for what
// stands in front of it.
func Refuse(w http.ResponseWriter, err error) { failed(err).write(w, Binary) }

// failed makes a failure of what a handler returned.
func failed(err error) *failure { return failedAs(StatusOf(err), err) }

func failedAs(s *status.Status, err error) *failure {
	c := code.Code(s.Code)
	if c == code.Code_OK {
		c = code.Code_INTERNAL // an error that claims to be none
	}
	f := &failure{code: c, text: s.Message, details: s.Details, cause: err}
	if f.hidden() {
		f.text = hiddenText(c)
	}
	return f
}

// hidden says that the fault is the server's and none of the caller's business.
func (f *failure) hidden() bool { return f.cause != nil && HTTPStatus(f.code) >= 500 }

// tooBig refuses to send an answer of size bytes to a caller that accepts limit.
func tooBig(size, limit int64) *failure {
	f := refuse(code.Code_UNAVAILABLE, "the response size %d exceeds the client limit of %d bytes", size, limit)
	f.details = tooBigDetails(size, limit)
	return f
}

func tooBigDetails(size, limit int64) []*anypb.Any {
	detail, err := anypb.New(&prpcpb.ErrorDetails{Error: &prpcpb.ErrorDetails_ResponseTooBig{
		ResponseTooBig: &prpcpb.ResponseTooBig{ResponseSize: size, ResponseLimit: limit},
	}})
	if err != nil {
		panic(err) // two numbers
	}
	return []*anypb.Any{detail}
}

// write sends f. Details are encoded as the caller wants messages.
func (f *failure) write(w http.ResponseWriter, format Format) {
	h := w.Header()
	h[headerCode] = []string{strconv.Itoa(int(f.code))}
	h["Content-Type"] = valuePlain
	h["X-Content-Type-Options"] = valueNosniff
	for _, d := range f.details {
		b, err := marshalDetail(format, d)
		if err != nil {
			continue // JSON of a type that this program does not know; the text has to do
		}
		h[headerDetails] = append(h[headerDetails], base64.StdEncoding.EncodeToString(b))
	}
	text := append([]byte(f.text), '\n')
	h["Content-Length"] = []string{strconv.Itoa(len(text))}
	status := f.http
	if status == 0 {
		status = HTTPStatus(f.code)
	}
	w.WriteHeader(status)
	_, _ = w.Write(text) // whoever is gone does not read it
}

// writeMessage sends an encoded message.
func writeMessage(w http.ResponseWriter, format Format, body *bytes.Buffer, zip bool) {
	h := w.Header()
	h[headerCode] = valueOK
	h["Content-Type"] = valueMedia[format]
	h["X-Content-Type-Options"] = valueNosniff
	if zip && body.Len() > compressOver {
		small := getBuffer()
		defer putBuffer(small)
		compress(small, body.Bytes())
		h["Content-Encoding"] = valueGzip
		body = small
	}
	h["Content-Length"] = []string{strconv.Itoa(body.Len())}
	_, _ = w.Write(body.Bytes())
}
