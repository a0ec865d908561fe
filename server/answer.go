package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/prpc"
)

// httpStatus is the one table from kinds of errors to HTTP. Transient trouble must
// be 408, 429 or 5xx: an existing bot gives up its task on any other 4xx.
// spec bot.md §2.17.
var httpStatus = map[skep.Kind]int{
	skep.Internal: http.StatusInternalServerError, skep.Invalid: http.StatusBadRequest, skep.NotFound: http.StatusNotFound,
	skep.Conflict: http.StatusConflict, skep.Precondition: http.StatusBadRequest, skep.Denied: http.StatusForbidden,
	skep.Unauthenticated: http.StatusUnauthorized, skep.Exhausted: http.StatusTooManyRequests, skep.Unavailable: http.StatusServiceUnavailable,
}

// refuse writes an error, to an RPC as pRPC does and to others as JSON. An
// unknown error is logged whole and told as "internal error".
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if strings.HasPrefix(r.URL.Path, prpc.Prefix) {
		prpc.Refuse(w, err)
		return
	}
	kind := skep.KindOf(err)
	code, text := httpStatus[kind], err.Error()
	switch tooBig, ok := errors.AsType[*http.MaxBytesError](err); {
	case ok:
		code, kind, text = http.StatusRequestEntityTooLarge, skep.Invalid, fmt.Sprintf("the body is larger than %d bytes", tooBig.Limit)
	case quiet(err):
		code = 499
	case kind == skep.Internal:
		s.log.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		text = "internal error"
	case kind == skep.Unavailable && errors.Unwrap(err) != nil:
		// The cause may name hosts and users. During an outage every call ends here.
		if now, last := s.o.Now().Unix(), s.lastAway.Load(); now != last && s.lastAway.CompareAndSwap(last, now) {
			s.log.ErrorContext(r.Context(), "not available", "method", r.Method, "path", r.URL.Path, "err", err)
		}
		text = "the server cannot serve this now; try again"
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(botapi.ErrorResponse{Error: text, Reason: kind.String(), Field: skep.FieldOf(err)})
}

// Bodies of the Bot API: what describes a bot is small, an update may carry
// output (250 kB before base64 from an existing bot).
const (
	maxDescription = 1 << 20
	maxUpdate      = 8 << 20
)

// bodyPatience is how long a body may take to come in.
const bodyPatience = time.Minute

// timedBody lifts the deadline of reading once the body is in: the connection
// is watched on, so that a wait ends when its caller goes.
type timedBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (b timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

// limitBody gives the body of r a time limit, where the connection can have
// one.
func limitBody(w http.ResponseWriter, r *http.Request) {
	conn := http.NewResponseController(w)
	if r.Body == nil || r.Body == http.NoBody || conn.SetReadDeadline(time.Now().Add(bodyPatience)) != nil {
		return
	}
	if r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, casPrefix) {
		return // net/http must know the body as its own: then a refusal does not wait for it (Expect)
	}
	r.Body = timedBody{r.Body, conn}
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// read decodes a JSON body of at most limit bytes into v, strictly as to its
// types; unknown fields are ignored, as bots of other versions send some.
func read(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	return readWith(w, r, limit, func(body []byte) error { return decode(body, v) })
}

// readWith hands a body of at most limit bytes to use, which must not keep it.
func readWith(w http.ResponseWriter, r *http.Request, limit int64, use func(body []byte) error) error {
	if ct := r.Header.Get("Content-Type"); !isJSON(ct) {
		return skep.Invalidf("Content-Type", "is %q, want application/json; charset=utf-8", ct)
	}
	buf := buffers.Get().(*bytes.Buffer)
	buf.Reset()
	defer func() {
		if buf.Cap() <= maxDescription { // a large one is not worth keeping
			buffers.Put(buf)
		}
	}()
	if _, err := io.Copy(buf, http.MaxBytesReader(w, r.Body, limit)); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return err
		}
		return skep.Errorf(skep.Unavailable, "the body could not be read: %w", err)
	}
	if !utf8.Valid(buf.Bytes()) {
		return skep.Invalidf("body", "is not valid UTF-8")
	}
	return use(buf.Bytes())
}

// isJSON reports whether a Content-Type is that of JSON.
func isJSON(contentType string) bool {
	if strings.EqualFold(contentType, "application/json; charset=utf-8") { // what nearly all send
		return true
	}
	ct, _, err := mime.ParseMediaType(contentType)
	return err == nil && ct == "application/json"
}

func decode(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return skep.Invalidf(firstOf(strings.TrimPrefix(te.Field, "Attributes."), "body"), "is a JSON %s, want %s", te.Value, te.Type)
	}
	if err != nil {
		return skep.Invalidf("body", "is not the JSON expected: %v", err)
	}
	return nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// write sends v as JSON.
func write(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	_, err = w.Write(b)
	if err != nil {
		return nil //nolint:nilerr // the caller is gone; there is nobody to tell
	}
	return nil
}

// empty is the answer {} that existing bots want where more would crash them.
type empty struct{}

// clean drops what the database and terminals cannot hold.
func clean(s string) string { return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "") }
