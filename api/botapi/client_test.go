package botapi

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

func newTestClient(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c, err := NewClient(Options{
		Server: s.URL, BotID: "b1", Dir: "/b/swarming",
		Headers: func() map[string]string { return map[string]string{"Authorization": "Bearer tok"} },
		Now:     func() time.Time { return time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

func TestRequestOnTheWire(t *testing.T) {
	var got *http.Request
	var body []byte
	c := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
		io.WriteString(w, `{"session":"next"}`)
	})
	c.SetSession("tok1")
	err := c.Event(t.Context(), &EventRequest{
		Attributes: Attributes{Dimensions: map[string][]string{"id": {"b1"}}, State: json.RawMessage(`{"a":1}`), Version: "v"},
		Event:      EventError, Message: "m", RequestUUID: "u",
	})
	if err != nil {
		t.Fatal(err)
	}
	headers := map[string]string{}
	for k := range got.Header {
		headers[k] = got.Header.Get(k)
	}
	host, _ := os.Hostname()
	want := map[string]string{
		"Accept": "*/*", "Authorization": "Bearer tok", "Content-Length": headers["Content-Length"],
		"Content-Type": "application/json; charset=UTF-8", "Cookie": "GOOGAPPUID=491",
		"User-Agent": "swarming_bot/1.0.0@" + host, "X-Luci-Swarming-Bot-Id": "b1",
	}
	if d := cmp.Diff(want, headers); d != "" {
		t.Errorf("headers (-want +got):\n%s", d)
	}
	wantBody := `{"dimensions":{"id":["b1"]},"state":{"a":1},"version":"v","session":"tok1","event":"bot_error","message":"m","request_uuid":"u"}`
	if string(body) != wantBody {
		t.Errorf("body = %s\nwant   %s", body, wantBody)
	}
	if got := c.Session(); got != "next" {
		t.Errorf("session = %q, want the answer's", got)
	}
}

func TestOutcomes(t *testing.T) {
	const json, text = "application/json; charset=utf-8", "text/plain; charset=utf-8"
	tests := []struct {
		name      string
		status    int
		kind      string
		body      string
		transient bool
		want      Error
	}{
		{
			"a refusal of ours", 400, json, `{"error":"id: bad","reason":"invalid","field":"id"}`, false,
			Error{Status: 400, Reason: "invalid", Field: "id", Text: "id: bad"},
		},
		{"a refusal of the Python server", 403, json, `{"text":"go away"}`, false, Error{Status: 403, Text: "go away"}},
		{"a refusal of the Go server", 401, text, "bad session\nmore", false, Error{Status: 401, Text: "bad session"}},
		{"too many", 429, json, `{"error":"later"}`, true, Error{Status: 429, Text: "later"}},
		{"timeout", 408, text, "", true, Error{Status: 408, Text: "Request Timeout"}},
		{"broken server", 502, "text/html", "<html>", true, Error{Status: 502, Text: "Bad Gateway"}},
		{"no such task", 404, json, `{"error":"task 1"}`, false, Error{Status: 404, Text: "task 1"}},
		{"not the API at all", 404, "text/html", "<html>", true, Error{Status: 404, Text: "Not Found"}},
		{"redirect", 302, text, "", false, Error{Status: 302, Text: "Found"}},
		{"success without JSON", 200, "text/html", "<html>", true, Error{Status: 200, Text: "the answer is not a JSON object"}},
		{"success with null", 200, json, "null", true, Error{Status: 200, Text: "the answer is not a JSON object"}},
		{"success with an error", 200, json, `{"error":"busy"}`, true, Error{Status: 200, Text: "busy"}},
		{"an empty object", 200, json, `{}`, true, Error{Status: 200, Text: "the answer is an empty object"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls := 0
			c := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.Header().Set("Content-Type", tt.kind)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				io.WriteString(w, tt.body)
			})
			_, err := c.TaskUpdate(t.Context(), &TaskUpdate{TaskID: "5a1"})
			e, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("err = %v, want an *Error", err)
			}
			got := Error{Status: e.Status, Reason: e.Reason, Field: e.Field, Text: e.Text}
			if d := cmp.Diff(tt.want, got, cmp.AllowUnexported(Error{})); d != "" {
				t.Errorf("error (-want +got):\n%s", d)
			}
			if IsTransient(err) != tt.transient {
				t.Errorf("transient = %v, want %v", IsTransient(err), tt.transient)
			}
			if calls != 1 {
				t.Errorf("%d attempts, want 1", calls)
			}
		})
	}
}

func TestNoAnswerIsTransient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c, err := NewClient(Options{Server: "http://" + addr})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()); !IsTransient(err) {
		t.Errorf("refused connection: %v, want transient", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Ping(ctx); IsTransient(err) || !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v, want context.Canceled, not transient", err)
	}
}

func TestRetryAfter(t *testing.T) {
	c := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(503)
	})
	err := c.Ping(t.Context())
	if e, ok := errors.AsType[*Error](err); !ok || e.RetryAfter != 7*time.Second {
		t.Errorf("err = %#v, want to retry after 7 s", err)
	}
}

func TestAnswersAreBounded(t *testing.T) {
	c := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		for range maxAnswer>>20 + 1 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	if _, err := c.TaskUpdate(t.Context(), &TaskUpdate{}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("err = %v, want the limit", err)
	}
}

// A server that is restarted closes kept connections; the next call must not
// see that.
func TestKeptConnectionThatDied(t *testing.T) {
	var mu sync.Mutex
	var conns []net.Conn
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `{"ok":true}`)
	}))
	s.Config.ConnState = func(c net.Conn, st http.ConnState) {
		if st == http.StateNew {
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
		}
	}
	s.Start()
	defer s.Close()
	c, err := NewClient(Options{Server: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.TaskUpdate(t.Context(), &TaskUpdate{TaskID: "1"}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
	}
}

func TestServerURLs(t *testing.T) {
	tests := []struct{ server, want, err string }{
		{"https://skep.example", "https://skep.example", ""},
		{"https://skep.example:8443/", "https://skep.example:8443", ""},
		{"http://127.0.0.1:8900", "http://127.0.0.1:8900", ""},
		{"http://localhost:8900", "http://localhost:8900", ""},
		{"http://[::1]:8900", "http://[::1]:8900", ""},
		{"http://skep.example", "", "plain HTTP"},
		{"http://10.0.0.1", "", "plain HTTP"},
		{"http://127.0.0.1.evil.example", "", "plain HTTP"},
		{"https://skep.example/path", "", "more than"},
		{"https://u:p@skep.example", "", "more than"},
		{"ftp://skep.example", "", "https"},
		{"", "", "https"},
		{":", "", "URL"},
	}
	for _, tt := range tests {
		got, err := CheckServer(tt.server)
		if got != tt.want || (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("CheckServer(%q) = %q, %v; want %q, %q", tt.server, got, err, tt.want, tt.err)
		}
		if err != nil && (skep.FieldOf(err) != "server" || strings.Contains(err.Error(), "u:p@")) {
			t.Errorf("CheckServer(%q): error %v names field %q", tt.server, err, skep.FieldOf(err))
		}
	}
}

func TestPollAnswers(t *testing.T) {
	tests := []struct {
		name, answer string
		want         *PollResponse
		err          string
	}{
		{"sleep", `{"cmd":"sleep","duration":1.5,"quarantined":true,"session":"s"}`, &PollResponse{Cmd: "sleep", Duration: ptr(1.5), Quarantined: ptr(true), Session: "s"}, ""},
		{"sleep without a duration", `{"cmd":"sleep"}`, nil, "duration"},
		{"sleep for a word", `{"cmd":"sleep","duration":"long"}`, nil, "duration"},
		{"terminate", `{"cmd":"terminate","task_id":"5a1"}`, &PollResponse{Cmd: "terminate", TaskID: "5a1"}, ""},
		{"terminate nothing", `{"cmd":"terminate"}`, nil, "task_id"},
		{"update", `{"cmd":"update","version":"abc","task_id":7}`, &PollResponse{Cmd: "update", Version: "abc"}, ""},
		{"restart without a reason", `{"cmd":"bot_restart","message":null}`, &PollResponse{Cmd: "bot_restart"}, ""},
		{"unknown", `{"cmd":"dance","manifest":1}`, &PollResponse{Cmd: "dance"}, ""},
		{"run", `{"cmd":"run","manifest":{"task_id":"5a1"},"rbe":{}}`, &PollResponse{Cmd: "run", Manifest: &Manifest{TaskID: "5a1"}}, ""},
		{"run with a broken manifest", `{"cmd":"run","manifest":{"task_id":"5a1","command":1}}`, &PollResponse{Cmd: "run"}, ""},
		{"run nothing", `{"cmd":"run"}`, nil, "manifest"},
		{"no cmd", `{"duration":1}`, nil, "no cmd"},
		{"a session that is none", `{"cmd":"update","version":"v","session":5}`, &PollResponse{Cmd: "update", Version: "v"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, raw, err := DecodePoll([]byte(tt.answer))
			if (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Fatalf("err = %v, want %q", err, tt.err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("answer (-want +got):\n%s", d)
			}
			if err == nil && got.Cmd == CmdRun && ManifestTask(raw) != "5a1" {
				t.Errorf("manifest = %s", raw)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// Answers recorded from a server that existing bots accept.
func TestRecordedAnswers(t *testing.T) {
	for name, data := range captures(t) {
		if !strings.HasPrefix(name, "bot_poll_") {
			continue
		}
		if _, _, err := DecodePoll(data); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// captures returns the answers in api/testdata, where the repository has them.
func captures(t testing.TB) map[string][]byte {
	out := map[string][]byte{}
	files, _ := filepath.Glob("../testdata/captures/bot_*.json")
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ Response json.RawMessage }
		if err := json.Unmarshal(data, &c); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[filepath.Base(f)] = c.Response
	}
	return out
}

func FuzzDecodePoll(f *testing.F) {
	for _, data := range captures(f) {
		f.Add([]byte(data))
	}
	f.Add([]byte(`{"cmd":"sleep","duration":1}`))
	f.Add([]byte(`{"cmd":"run","manifest":{"task_id":"5a1","hard_timeout":1e30}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		res, raw, err := DecodePoll(data)
		switch {
		case err != nil && (res != nil || raw != nil):
			t.Error("an answer beside an error")
		case err != nil:
		case res.Cmd == "":
			t.Error("no command")
		case res.Cmd == CmdSleep && res.Duration == nil:
			t.Error("sleep without a duration")
		case res.Cmd == CmdRun && raw == nil:
			t.Error("run without a manifest")
		case res.Manifest != nil && ManifestTask(raw) != res.Manifest.TaskID:
			t.Errorf("task %q, in the raw manifest %q", res.Manifest.TaskID, ManifestTask(raw))
		}
	})
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "Server up") }))
	defer s.Close()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for _, trusted := range []bool{true, false} {
		opt := Options{Server: s.URL}
		if trusted {
			opt.RootCAs = roots
		}
		c, err := NewClient(opt)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(t.Context()); (err == nil) != trusted {
			t.Errorf("trusted %v: err = %v", trusted, err)
		}
		c.CloseIdle()
	}
}

func TestToken(t *testing.T) {
	var got TokenRequest
	c := newTestClient(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		if r.URL.Path == PathIDToken {
			w.WriteHeader(400)
			io.WriteString(w, `{"error":"no such account"}`)
			return
		}
		io.WriteString(w, `{"service_account":"none"}`)
	})
	c.SetSession("s")
	req := &TokenRequest{AccountID: "task", TaskID: "5a1", Scopes: []string{"x"}}
	if res, err := c.Token(t.Context(), PathOAuthToken, req); err != nil || res.ServiceAccount != "none" {
		t.Errorf("answer = %+v, %v", res, err)
	}
	if want := (TokenRequest{AccountID: "task", ID: "b1", TaskID: "5a1", Session: "s", Scopes: []string{"x"}}); !cmp.Equal(want, got) {
		t.Errorf("request = %+v, want %+v", got, want)
	}
	if _, err := c.Token(t.Context(), PathIDToken, req); StatusOf(err) != 400 || IsTransient(err) {
		t.Errorf("err = %v, want a final 400", err)
	}
}
