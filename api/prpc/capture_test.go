package prpc

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	pb "github.com/skepdev/skep/api/swarmingpb"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/testing/protocmp"
)

// capture is one exchange with an existing client, as api/testdata/captures records it.
type capture struct {
	Method, Path string
	Headers      map[string]string
	Request      json.RawMessage
	Status       int
	Response     json.RawMessage
}

func captures(t *testing.T) map[string]capture {
	t.Helper()
	files, err := filepath.Glob("../testdata/captures/cli_*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no captures: %v", err)
	}
	all := map[string]capture{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c capture
		if err := json.Unmarshal(b, &c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = c
	}
	return all
}

// stub is a handler of any method that says what it is told.
func stub(t *testing.T, d protoreflect.MethodDescriptor, say func(proto.Message) (proto.Message, error)) Handler {
	t.Helper()
	in, err := protoregistry.GlobalTypes.FindMessageByName(d.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	return Handler{
		in: d.Input(), out: d.Output(),
		request: func() proto.Message { return in.New().Interface() },
		serve:   func(_ context.Context, m proto.Message) (proto.Message, error) { return say(m) },
	}
}

// Every recorded request of an existing client is understood as it stands, and its recorded answer can be given.
func TestCaptures(t *testing.T) {
	for name, c := range captures(t) {
		t.Run(name, func(t *testing.T) {
			var got, answer proto.Message
			var failure *Error
			s := NewServer(Options{})
			services := pb.File_swarmingpb_services_proto.Services()
			for i := range services.Len() {
				methods := Methods{}
				for j := range services.Get(i).Methods().Len() {
					d := services.Get(i).Methods().Get(j)
					methods[string(d.Name())] = stub(t, d, func(m proto.Message) (proto.Message, error) {
						got = m
						if failure != nil {
							return nil, failure
						}
						return answer, nil
					})
				}
				if err := s.Register(services.Get(i), methods); err != nil {
					t.Fatal(err)
				}
			}
			m := s.methods[strings.TrimPrefix(c.Path, Prefix)]
			if m == nil {
				t.Fatalf("no method serves %s", c.Path)
			}
			if m.service == "discovery.Discovery" {
				return // recorded from a server without it
			}
			want := m.request()
			if err := protojson.Unmarshal(c.Request, want); err != nil {
				t.Fatalf("the request has fields that we do not know: %v", err)
			}
			answer = newMessage(t, m.out)
			if c.Status == http.StatusOK {
				if err := protojson.Unmarshal(c.Response, answer); err != nil {
					t.Fatalf("the response has fields that we do not know: %v", err)
				}
			} else {
				var e struct {
					Code    int `json:"grpc_code"`
					Message string
				}
				if err := json.Unmarshal(c.Response, &e); err != nil {
					t.Fatal(err)
				}
				failure = Errorf(code.Code(e.Code), "%s", e.Message)
			}

			w := replay(t, s, c, want)
			if w.Code != c.Status || w.Header().Get(headerCode) == "" {
				t.Fatalf("HTTP %d, %q; want %d", w.Code, w.Body, c.Status)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("the handler gets another request (-want +got):\n%s", diff)
			}
			if failure != nil {
				if w.Body.String() != failure.Text+"\n" {
					t.Errorf("got text %q, want %q", w.Body, failure.Text)
				}
				return
			}
			sent := newMessage(t, m.out)
			body, f := w.Body.Bytes(), Binary
			if w.Header().Get("Content-Type") == "application/json" {
				body, f = bytes.TrimPrefix(body, []byte(jsonPrefix)), JSON
			}
			if err := unmarshal(f, body, sent); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(answer, sent, protocmp.Transform()); diff != "" {
				t.Errorf("the client gets another answer (-want +got):\n%s", diff)
			}
		})
	}
}

// replay sends a recorded request. Our encoding of it must be as long as the one that was recorded, which it would
// hardly be if the number of a field were wrong.
func replay(t *testing.T, s *Server, c capture, req proto.Message) *httptest.ResponseRecorder {
	t.Helper()
	body := encode(t, req)
	if c.Headers["Content-Type"] == "application/json" {
		body = string(c.Request) + "\n"
	}
	if got := strconv.Itoa(len(body)); got != c.Headers["Content-Length"] {
		t.Errorf("the request has %s bytes, %s were recorded", got, c.Headers["Content-Length"])
	}
	r := httptest.NewRequest(c.Method, c.Path, strings.NewReader(body))
	for name, value := range c.Headers {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

func newMessage(t *testing.T, d protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	m, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return m.New().Interface()
}
