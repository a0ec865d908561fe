package prpc

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/prpc/discoverypb"
	"github.com/skepdev/skep/api/prpc/prpcpb"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// post makes a call; headers are pairs of name and value.
func post(s *Server, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func gzipped(s string) string {
	var b bytes.Buffer
	compress(&b, []byte(s))
	return b.String()
}

// Each row of spec/prpc.md §2 to §7 that a request can meet.
func TestCalls(t *testing.T) {
	const asJSON, asText = "application/json", "application/prpc; encoding=text"
	hello := encode(t, &pair{Key: "hello"})
	many := encode(t, &pair{Key: strings.Repeat("k", 2000)})
	for _, tc := range []struct {
		name    string
		path    string // "" is echoPath
		body    string
		headers []string
		http    int
		code    code.Code
		want    string // the body; when it ends in ..., its beginning
	}{
		{name: "binary is the default", body: hello, http: 200, want: hello},
		{name: "an empty binary body is the empty message", http: 200},
		{name: "JSON", body: `{"key":"hello"}`, headers: []string{"Content-Type", asJSON, "Accept", asJSON}, http: 200, want: ")]}'\n{\"key\":\"hello\"}\n"},
		{name: "an unknown field in JSON is ignored", body: `{"key":"hello","more":{"a":[1]}}`, headers: []string{"Content-Type", asJSON}, http: 200, want: hello},
		{name: "text", body: `key: "hello"`, headers: []string{"Content-Type", asText, "Accept", asText}, http: 200, want: "key:..."},
		{name: "an unknown field in text is ignored", body: `key: "hello" more: 1`, headers: []string{"Content-Type", asText}, http: 200, want: hello},
		{name: "an unknown field in binary is kept", body: hello + "\xf8\x07\x01", http: 200, want: hello + "\xf8\x07\x01"},
		{name: "binary in, JSON out", body: hello, headers: []string{"Accept", asJSON}, http: 200, want: ")]}'\n{..."},
		{name: "an empty JSON body is an error", headers: []string{"Content-Type", asJSON}, http: 400, code: 3, want: "could not decode body: ..."},
		{name: "broken JSON", body: "{", headers: []string{"Content-Type", asJSON}, http: 400, code: 3, want: "could not decode body: ..."},
		{name: "broken text", body: "key", headers: []string{"Content-Type", asText}, http: 400, code: 3, want: "could not decode body: ..."},
		{name: "broken binary", body: "\x0a\xff", http: 400, code: 3, want: "could not decode body: ..."},
		{name: "invalid UTF-8", body: "\x0a\x01\xff", http: 400, code: 3, want: "could not decode body: ..."},
		{name: "Content-Type not understood", headers: []string{"Content-Type", "text/plain"}, http: 415, code: 3, want: "header Content-Type: ..."},
		{name: "Accept not understood", headers: []string{"Accept", "text/plain"}, http: 406, code: 3, want: "header Accept: ..."},
		{name: "Accept malformed", headers: []string{"Accept", "application/json;q=x"}, http: 400, code: 3, want: "header Accept: ..."},
		{name: "Accept-Encoding malformed", headers: []string{"Accept-Encoding", "gzip;q=x"}, http: 400, code: 3, want: "header Accept-Encoding: ..."},
		{name: "timeout malformed", headers: []string{"X-Prpc-Grpc-Timeout", "soon"}, http: 400, code: 3, want: "header X-Prpc-Grpc-Timeout: ..."},
		{name: "largest response malformed", headers: []string{"X-Prpc-Max-Response-Size", "1k"}, http: 400, code: 3, want: "header X-Prpc-Max-Response-Size: ..."},
		{name: "largest response of 0", headers: []string{"X-Prpc-Max-Response-Size", "0"}, http: 400, code: 3, want: "header X-Prpc-Max-Response-Size: ..."},
		{name: "largest response just reached", body: hello, headers: []string{"X-Prpc-Max-Response-Size", "7"}, http: 200, want: hello},
		{name: "largest response exceeded", body: hello, headers: []string{"X-Prpc-Max-Response-Size", "6"}, http: 503, code: 14, want: "the response size 7 exceeds the client limit of 6 bytes\n"},
		{name: "the JSON prefix counts", body: hello, headers: []string{"Accept", asJSON, "X-Prpc-Max-Response-Size", "20"}, http: 503, code: 14, want: "the response size ..."},
		{name: "metadata not base64", headers: []string{"Trace-Bin", "%"}, http: 400, code: 3, want: "bad request headers: Trace-Bin: ..."},
		{name: "gzip request", body: gzipped(hello), headers: []string{"Content-Encoding", "gzip"}, http: 200, want: hello},
		{name: "another encoding is plain", body: hello, headers: []string{"Content-Encoding", "identity"}, http: 200, want: hello},
		{name: "corrupt gzip", body: hello, headers: []string{"Content-Encoding", "gzip"}, http: 400, code: 3, want: "could not decode body: ..."},
		{name: "truncated gzip", body: gzipped(many)[:20], headers: []string{"Content-Encoding", "gzip"}, http: 400, code: 3, want: "could not decode body: ..."},
		{name: "request too large", body: strings.Repeat("x", 5000), http: 503, code: 14, want: "reading the request: the request size exceeds the server limit..."},
		{name: "request too large once decompressed", body: gzipped(strings.Repeat("x", 5000)), headers: []string{"Content-Encoding", "gzip"}, http: 503, code: 14, want: "reading the request: the decompressed request size exceeds the server limit..."},
		{name: "unknown service", path: "/prpc/echo.Other/Say", http: 501, code: 12, want: "service \"echo.Other\" is not implemented\n"},
		{name: "unknown method", path: "/prpc/echo.Echo/Sing", http: 501, code: 12, want: "method \"Sing\" of service \"echo.Echo\" is not implemented\n"},
		{name: "no method", path: "/prpc/echo.Echo", http: 501, code: 12, want: "path ..."},
		{name: "more than a method", path: "/prpc/echo.Echo/Say/more", http: 501, code: 12, want: "path ..."},
		{name: "nothing", path: "/prpc/", http: 501, code: 12, want: "path ..."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := echoServer(t, Options{MaxRequest: 4096}, nil)
			if tc.path == "" {
				tc.path = echoPath
			}
			w := post(s, tc.path, tc.body, tc.headers...)
			if w.Code != tc.http || w.Header().Get("X-Prpc-Grpc-Code") != fmt.Sprint(int(tc.code)) {
				t.Errorf("got HTTP %d, code %s, %q; want %d, %d", w.Code, w.Header().Get("X-Prpc-Grpc-Code"), w.Body, tc.http, tc.code)
			}
			got := w.Body.String()
			if begin, ok := strings.CutSuffix(tc.want, "..."); ok {
				got, tc.want = got[:min(len(got), len(begin))], begin
			}
			if got != tc.want && strings.ReplaceAll(got, ": ", ":") != tc.want { // protojson varies its spaces
				t.Errorf("got body %q, want %q", got, tc.want)
			}
			if tc.http != 200 {
				if got := w.Header().Get("Content-Type"); got != "text/plain; charset=utf-8" {
					t.Errorf("got Content-Type %q of an error", got)
				}
				if !strings.HasSuffix(w.Body.String(), "\n") {
					t.Errorf("text %q does not end its line", w.Body)
				}
			}
			if got := w.Header().Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("got X-Content-Type-Options %q", got)
			}
		})
	}
}

func TestResponseContentTypes(t *testing.T) {
	s := echoServer(t, Options{}, nil)
	for accept, want := range map[string]string{
		"*/*":                             "application/prpc; encoding=binary",
		"application/prpc; encoding=json": "application/json",
		"application/prpc; encoding=text": "application/prpc; encoding=text",
	} {
		if got := post(s, echoPath, "", "Accept", accept).Header().Get("Content-Type"); got != want {
			t.Errorf("Accept %s: got %s, want %s", accept, got, want)
		}
	}
}

// Each row of spec/prpc.md §6, and the texts of §5.
func TestHandlerErrors(t *testing.T) {
	for _, tc := range []struct {
		name string
		err  error
		code code.Code
		http int
		text string
	}{
		{"cancelled", Errorf(code.Code_CANCELLED, "t"), 1, 499, "t"},
		{"unknown", Errorf(code.Code_UNKNOWN, "t"), 2, 500, "Unknown server error"},
		{"invalid argument", Errorf(code.Code_INVALID_ARGUMENT, "t"), 3, 400, "t"},
		{"deadline exceeded", Errorf(code.Code_DEADLINE_EXCEEDED, "t"), 4, 504, "Request deadline exceeded"},
		{"not found", Errorf(code.Code_NOT_FOUND, "t"), 5, 404, "t"},
		{"already exists", Errorf(code.Code_ALREADY_EXISTS, "t"), 6, 409, "t"},
		{"permission denied", Errorf(code.Code_PERMISSION_DENIED, "t"), 7, 403, "t"},
		{"resource exhausted", Errorf(code.Code_RESOURCE_EXHAUSTED, "t"), 8, 429, "t"},
		{"failed precondition", Errorf(code.Code_FAILED_PRECONDITION, "t"), 9, 400, "t"},
		{"aborted", Errorf(code.Code_ABORTED, "t"), 10, 409, "t"},
		{"out of range", Errorf(code.Code_OUT_OF_RANGE, "t"), 11, 400, "t"},
		{"unimplemented", Errorf(code.Code_UNIMPLEMENTED, "t"), 12, 501, "API method not implemented by the server"},
		{"internal", Errorf(code.Code_INTERNAL, "t"), 13, 500, "Internal server error"},
		{"unavailable", Errorf(code.Code_UNAVAILABLE, "t"), 14, 503, "Service unavailable"},
		{"data loss", Errorf(code.Code_DATA_LOSS, "t"), 15, 500, "Unrecoverable data loss or data corruption"},
		{"unauthenticated", Errorf(code.Code_UNAUTHENTICATED, "t"), 16, 401, "t"},
		{"any other", Errorf(99, "t"), 99, 500, "Server error"},
		{"an error that claims success", &Error{Text: "t"}, 13, 500, "Internal server error"},
		{"the caller went away", fmt.Errorf("wait: %w", context.Canceled), 1, 499, "wait: context canceled"},
		{"the time is up", context.DeadlineExceeded, 4, 504, "Request deadline exceeded"},
		{"no status", errors.New("t"), 2, 500, "Unknown server error"},
		{"nothing at all", nil, 13, 500, "Internal server error"},
		{"kind internal", skep.Errorf(skep.Internal, "t"), 13, 500, "Internal server error"},
		{"kind internal, but the time is up", skep.Errorf(skep.Internal, "t: %w", context.DeadlineExceeded), 4, 504, "Request deadline exceeded"},
		{"kind invalid", skep.Errorf(skep.Invalid, "t"), 3, 400, "t"},
		{"kind not found, wrapped", fmt.Errorf("step: %w", skep.Errorf(skep.NotFound, "t")), 5, 404, "t"},
		{"kind conflict", skep.Errorf(skep.Conflict, "t"), 10, 409, "t"},
		{"kind precondition", skep.Errorf(skep.Precondition, "t"), 9, 400, "t"},
		{"kind denied", skep.Errorf(skep.Denied, "t"), 7, 403, "t"},
		{"kind unauthenticated", skep.Errorf(skep.Unauthenticated, "t"), 16, 401, "t"},
		{"kind exhausted", skep.Errorf(skep.Exhausted, "t"), 8, 429, "t"},
		{"kind unavailable", skep.Errorf(skep.Unavailable, "t"), 14, 503, "Service unavailable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := echoServer(t, Options{}, func(context.Context, *pair) (*pair, error) { return nil, tc.err })
			w := post(s, echoPath, "")
			got := fmt.Sprintf("%s %d %s", w.Header().Get("X-Prpc-Grpc-Code"), w.Code, w.Body)
			if want := fmt.Sprintf("%d %d %s\n", tc.code, tc.http, tc.text); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// A handler's error can be tested for its kind before it travels as well as after.
func TestEveryKindComesBack(t *testing.T) {
	for k := skep.Internal; k <= skep.Unavailable; k++ {
		if got := KindOf(CodeOf(k)); got != k {
			t.Errorf("kind %s is sent as %s and read as %s", k, CodeOf(k), got)
		}
		if got := skep.KindOf(Errorf(CodeOf(k), "t")); got != k {
			t.Errorf("skep.KindOf of code %s is %s, want %s", CodeOf(k), got, k)
		}
	}
}

func TestDetails(t *testing.T) {
	fail := skep.Invalidf("priority", "0 is not 1 to 255")
	s := echoServer(t, Options{}, func(context.Context, *pair) (*pair, error) { return nil, fail })
	want, err := anypb.New(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: "priority", Description: "priority: 0 is not 1 to 255"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Format{Binary, JSON, Text} {
		w := post(s, echoPath, "", "Accept", f.MediaType())
		raw, err := base64.StdEncoding.DecodeString(w.Header().Get("X-Prpc-Status-Details-Bin"))
		if err != nil {
			t.Fatal(err)
		}
		got := &anypb.Any{}
		if err := unmarshal(f, raw, got); err != nil {
			t.Errorf("%v: %v in %q", f, err, raw)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%v: details differ (-want +got):\n%s", f, diff)
		}
	}
	w := post(echoServer(t, Options{}, nil), echoPath, encode(t, &pair{Key: "hello"}), "X-Prpc-Max-Response-Size", "3")
	details, err := readDetails(w.Header()["X-Prpc-Status-Details-Bin"])
	if err != nil {
		t.Fatal(err)
	}
	var got prpcpb.ErrorDetails
	if !(&Error{Details: details}).Detail(&got) || got.GetResponseTooBig().GetResponseSize() != 7 || got.GetResponseTooBig().GetResponseLimit() != 3 {
		t.Errorf("got details %v of a large response", details)
	}
}

func TestPanicIsInternal(t *testing.T) {
	var log bytes.Buffer
	s := echoServer(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(context.Context, *pair) (*pair, error) { panic("secret") })
	w := post(s, echoPath, "")
	if w.Code != 500 || w.Body.String() != "Internal server error\n" || w.Header().Get("X-Prpc-Grpc-Code") != "13" {
		t.Errorf("got HTTP %d, %q", w.Code, w.Body)
	}
	if !strings.Contains(log.String(), "panic=secret") || !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("the log does not tell of it: %s", &log)
	}
}

func TestTimeoutReachesTheHandler(t *testing.T) {
	var left time.Duration
	s := echoServer(t, Options{}, func(ctx context.Context, _ *pair) (*pair, error) {
		if end, ok := ctx.Deadline(); ok {
			left = time.Until(end)
		}
		return nil, ctx.Err()
	})
	if w := post(s, echoPath, "", "X-Prpc-Grpc-Timeout", "90S"); w.Code != 500 || left < time.Minute || left > 90*time.Second {
		t.Errorf("HTTP %d, %v left of 90 s", w.Code, left)
	}
	if w := post(s, echoPath, "", "X-Prpc-Grpc-Timeout", "0S"); w.Code != 504 || w.Header().Get("X-Prpc-Grpc-Code") != "4" {
		t.Errorf("no time at all: got HTTP %d", w.Code)
	}
}

func TestMetadata(t *testing.T) {
	var got Metadata
	s := echoServer(t, Options{}, func(ctx context.Context, p *pair) (*pair, error) {
		c := CallFrom(ctx)
		got = c.Metadata()
		c.SetHeader("X-Answer", "1", "2")
		c.SetHeader("Blob-Bin", "\x00\x01")
		if c.Service != "echo.Echo" || c.Method != "Say" {
			t.Errorf("the call is %s/%s", c.Service, c.Method)
		}
		return p, nil
	})
	w := post(s, "http://host.example:80"+echoPath, "", "X-Question", "Why", "Trace-Bin", "AAE=,AgM=", "Trace-Bin", "BA==",
		"Accept", "*/*", "X-Prpc-Other", "x", "Access-Control-Request-Method", "POST", "Vary", "x")
	want := Metadata{
		"x-question": {"Why"}, "trace-bin": {"\x00\x01", "\x02\x03", "\x04"},
		"host": {"host.example:80"}, ":authority": {"host.example:80"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metadata differ (-want +got):\n%s", diff)
	}
	if got.Get("X-Question") != "Why" || got.Get("absent") != "" {
		t.Error("Get does not find keys in any case")
	}
	if v := w.Header()["X-Answer"]; !cmp.Equal(v, []string{"1", "2"}) || w.Header().Get("Blob-Bin") != "AAE=" {
		t.Errorf("got headers %v", w.Header())
	}
}

func TestSetHeaderRefusesTheProtocolsOwn(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("SetHeader took X-Prpc-Grpc-Code")
		}
	}()
	(&Call{}).SetHeader("x-prpc-grpc-code", "0")
}

func TestBefore(t *testing.T) {
	type caller struct{}
	before := func(ctx context.Context) (context.Context, error) {
		who := CallFrom(ctx).Request.Header.Get("Authorization")
		if who == "" {
			return nil, skep.Errorf(skep.Unauthenticated, "who are you?")
		}
		return context.WithValue(ctx, caller{}, who), nil
	}
	var done []string
	opt := Options{Before: before, Done: func(c *Call, outcome code.Code, _ time.Duration, err error) {
		done = append(done, fmt.Sprintf("%s/%s %s %v", c.Service, c.Method, outcome, err))
	}}
	s := echoServer(t, opt, func(ctx context.Context, _ *pair) (*pair, error) {
		return &pair{Key: ctx.Value(caller{}).(string)}, nil
	})
	if w := post(s, echoPath, "not read"); w.Code != 401 || w.Body.String() != "who are you?\n" {
		t.Errorf("got HTTP %d, %q", w.Code, w.Body)
	}
	if w := post(s, echoPath, "", "Authorization", "me"); w.Body.String() != "\x0a\x02me" {
		t.Errorf("got HTTP %d, %q", w.Code, w.Body)
	}
	if w := post(s, "/prpc/discovery.Discovery/Describe", ""); w.Code != 200 {
		t.Errorf("discovery asks who calls: HTTP %d", w.Code)
	}
	want := []string{"echo.Echo/Say UNAUTHENTICATED who are you?", "echo.Echo/Say OK <nil>", "discovery.Discovery/Describe OK <nil>"}
	if diff := cmp.Diff(want, done); diff != "" {
		t.Errorf("done differs (-want +got):\n%s", diff)
	}
}

func TestResponseCompression(t *testing.T) {
	long := encode(t, &pair{Key: strings.Repeat("k", 1100)})
	for _, tc := range []struct {
		name           string
		policy         Compression
		body           string
		acceptEncoding string
		accept         string
		want           bool
	}{
		{"never", CompressNever, long, "gzip", "", false},
		{"always", CompressAlways, long, "gzip", "", true},
		{"always, not asked for", CompressAlways, long, "", "", false},
		{"always, not worth it", CompressAlways, long[:3], "gzip", "", false},
		{"JSON too", CompressAlways, long, "gzip", "application/json", true},
		{"not JSON", CompressNotJSON, long, "gzip", "application/json", false},
		{"not JSON, but binary", CompressNotJSON, long, "gzip", "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := echoServer(t, Options{Compress: tc.policy}, nil)
			if tc.name == "always, not worth it" {
				tc.body = encode(t, &pair{Key: strings.Repeat("k", 1000)})
			}
			w := post(s, echoPath, tc.body, "Accept-Encoding", tc.acceptEncoding, "Accept", tc.accept)
			if got := w.Header().Get("Content-Encoding") == "gzip"; w.Code != 200 || got != tc.want {
				t.Fatalf("HTTP %d, compressed %v, want %v", w.Code, got, tc.want)
			}
			if !tc.want {
				return
			}
			z, err := gzip.NewReader(w.Body)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(z)
			if err != nil || len(plain) < 1100 {
				t.Errorf("decompressed %d bytes, %v", len(plain), err)
			}
		})
	}
}

func TestCallerGone(t *testing.T) {
	s := echoServer(t, Options{}, nil)
	r := httptest.NewRequest(http.MethodPost, echoPath, io.MultiReader(strings.NewReader("\x0a"), brokenReader{}))
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if w.Code != 499 || w.Header().Get("X-Prpc-Grpc-Code") != "1" {
		t.Errorf("got HTTP %d, %q", w.Code, w.Body)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestVerbs(t *testing.T) {
	s := echoServer(t, Options{}, nil)
	for verb, want := range map[string]int{"GET": 405, "PUT": 405, "OPTIONS": 200, "POST": 200} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(verb, echoPath, nil))
		if w.Code != want {
			t.Errorf("%s: got HTTP %d, want %d", verb, w.Code, want)
		}
	}
}

func TestCORS(t *testing.T) {
	cors := &CORS{Allow: func(o string) bool { return o == "https://ui.example" }, Credentials: true, Headers: []string{"X-Extra"}}
	for _, tc := range []struct {
		name, verb, path, origin string
		cors                     *CORS
		want                     map[string]string
	}{
		{"preflight", "OPTIONS", echoPath, "https://ui.example", cors, map[string]string{
			"Access-Control-Allow-Origin": "https://ui.example", "Vary": "Origin", "Access-Control-Allow-Credentials": "true",
			"Access-Control-Allow-Headers": "X-Extra, Origin, Content-Type, Accept, Authorization, X-Prpc-Grpc-Timeout, X-Prpc-Max-Response-Size",
			"Access-Control-Allow-Methods": "OPTIONS, POST", "Access-Control-Max-Age": "600",
		}},
		{"call", "POST", echoPath, "https://ui.example", cors, map[string]string{
			"Access-Control-Allow-Origin": "https://ui.example", "Vary": "Origin", "Access-Control-Allow-Credentials": "true",
			"Access-Control-Expose-Headers": "X-Prpc-Grpc-Code, X-Prpc-Status-Details-Bin",
		}},
		{"error", "POST", "/prpc/a.B/C", "https://ui.example", cors, map[string]string{
			"Access-Control-Allow-Origin": "https://ui.example", "Vary": "Origin", "Access-Control-Allow-Credentials": "true",
			"Access-Control-Expose-Headers": "X-Prpc-Grpc-Code, X-Prpc-Status-Details-Bin",
		}},
		{"another origin", "OPTIONS", echoPath, "https://evil.example", cors, nil},
		{"no origin", "POST", echoPath, "", cors, nil},
		{"off", "OPTIONS", echoPath, "https://ui.example", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest(tc.verb, tc.path, nil)
			if tc.origin != "" {
				r.Header.Set("Origin", tc.origin)
			}
			w := httptest.NewRecorder()
			echoServer(t, Options{CORS: tc.cors}, nil).ServeHTTP(w, r)
			var got map[string]string
			for k, v := range w.Header() {
				if strings.HasPrefix(k, "Access-Control-") || k == "Vary" {
					if got == nil {
						got = map[string]string{}
					}
					got[k] = strings.Join(v, "; ")
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("headers differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRegisterFindsWhatIsForgotten(t *testing.T) {
	say := Unary(func(context.Context, *pair) (*pair, error) { return nil, nil })
	for _, tc := range []struct {
		name    string
		methods Methods
		want    string
	}{
		{"no handler", Methods{}, "method echo.Echo.Say has no handler"},
		{"no method", Methods{"Say": say, "Sing": say}, "service echo.Echo has no method Sing"},
		{"not made by Unary", Methods{"Say": {}}, "method echo.Echo.Say has a handler that Unary did not make"},
		{
			"other messages",
			Methods{"Say": Unary(func(context.Context, *discoverypb.Void) (*pair, error) { return nil, nil })},
			"method echo.Echo.Say takes swarming.v2.StringListPair and returns swarming.v2.StringListPair, its handler discovery.Void and swarming.v2.StringListPair",
		},
		{"complete", Methods{"Say": say}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := ""
			if err := NewServer(Options{}).Register(echoService(t), tc.methods); err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	s := echoServer(t, Options{}, nil)
	if err := s.Register(echoService(t), Methods{"Say": say}); err == nil {
		t.Error("a service can be registered twice")
	}
}

func TestDescribe(t *testing.T) {
	w := post(echoServer(t, Options{}, nil), "/prpc/discovery.Discovery/Describe", "")
	var got discoverypb.DescribeResponse
	if err := proto.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"discovery.Discovery", "echo.Echo"}, got.Services); diff != "" {
		t.Errorf("services differ (-want +got):\n%s", diff)
	}
	seen := map[string]bool{}
	for _, f := range got.Description.GetFile() {
		for _, dep := range f.Dependency {
			if !seen[dep] {
				t.Errorf("%s comes before its import %s", f.GetName(), dep)
			}
		}
		if seen[f.GetName()] {
			t.Errorf("%s comes twice", f.GetName())
		}
		seen[f.GetName()] = true
	}
	if !seen["echo.proto"] || !seen["swarmingpb/common.proto"] || !seen["google/protobuf/descriptor.proto"] {
		t.Errorf("files are missing from %v", seen)
	}
}

// A body decodes or is refused with code 3; nothing else, whatever it is.
func FuzzBody(f *testing.F) {
	f.Add("", "", "")
	f.Add(`{"key":"a","value":["b"]}`, "application/json", "")
	f.Add(`key: "a"`, "application/prpc; encoding=text", "")
	f.Add("\x0a\x01a", "application/prpc; encoding=binary", "")
	f.Add(gzipped("\x0a\x01a"), "", "gzip")
	s := echoServer(f, Options{MaxRequest: 1 << 20}, nil)
	f.Fuzz(func(t *testing.T, body, contentType, contentEncoding string) {
		w := post(s, echoPath, body, "Content-Type", contentType, "Content-Encoding", contentEncoding)
		got := w.Header().Get("X-Prpc-Grpc-Code")
		if got == "14" && strings.Contains(w.Body.String(), "exceeds") {
			return
		}
		if got != "0" && got != "3" {
			t.Errorf("code %s, HTTP %d, %q", got, w.Code, w.Body)
		}
	})
}

// Headers are accepted or refused with code 3 or 4.
func FuzzHeaders(f *testing.F) {
	f.Add("Trace-Bin", "AAE=,")
	f.Add("X-Prpc-Grpc-Timeout", "1n")
	f.Add("X-Prpc-Max-Response-Size", "18446744073709551615")
	f.Add("Accept-Encoding", "gzip, ;")
	s := echoServer(f, Options{}, func(ctx context.Context, _ *pair) (*pair, error) {
		CallFrom(ctx).Metadata()
		return &pair{}, nil
	})
	f.Fuzz(func(t *testing.T, name, value string) {
		w := post(s, echoPath, "", name, value)
		if got := w.Header().Get("X-Prpc-Grpc-Code"); got != "0" && got != "3" && got != "4" {
			t.Errorf("code %s, HTTP %d, %q", got, w.Code, w.Body)
		}
	})
}
