package bot

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/runner"
)

// fakeServer plays a server inside the process, so that a whole bot runs in a
// synctest bubble. answer decides; nil answers everything pleasantly and polls
// with sleep 1.
type fakeServer struct {
	mu    sync.Mutex
	calls []call
	polls int

	// answer returns status and body of a call, or status 0 for the default.
	answer func(s *fakeServer, c call) (int, string)
}

type call struct {
	path string // last element, or task_update etc.
	body map[string]any
	at   time.Time
	ctx  context.Context
}

func (c call) str(key string) string {
	s, _ := c.body[key].(string)
	return s
}

func (c call) state() map[string]any {
	m, _ := c.body["state"].(map[string]any)
	return m
}

func (s *fakeServer) RoundTrip(r *http.Request) (*http.Response, error) {
	c := call{path: strings.TrimPrefix(r.URL.Path, "/swarming/api/v1/bot/"), at: time.Now(), ctx: r.Context()}
	c.path, _, _ = strings.Cut(c.path, "/")
	if r.Body != nil {
		data, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(data, &c.body)
	}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	if c.path == "poll" {
		s.polls++
	}
	s.mu.Unlock()
	status, body := 0, ""
	if s.answer != nil {
		status, body = s.answer(s, c)
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if status == 0 {
		status, body = 200, defaults[c.path]
	}
	if status < 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{
		StatusCode: status, Request: r, Body: io.NopCloser(strings.NewReader(body)),
		Header: http.Header{"Content-Type": {"application/json; charset=utf-8"}},
	}, nil
}

var defaults = map[string]string{
	"handshake":   `{"session":"s1","bot_version":"v","server_version":"sv"}`,
	"poll":        `{"cmd":"sleep","duration":1,"quarantined":false}`,
	"event":       `{}`,
	"task_update": `{"ok":true,"must_stop":false}`,
	"task_error":  `{}`,
}

// of returns the calls to one path, in order.
func (s *fakeServer) of(path string) []call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []call
	for _, c := range s.calls {
		if c.path == path {
			out = append(out, c)
		}
	}
	return out
}

// trace is what was called in short: repeated polls are one.
func (s *fakeServer) trace() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, c := range s.calls {
		w := c.path
		if w == "event" {
			w = c.str("event")
		}
		if len(out) > 0 && out[len(out)-1] == w {
			continue
		}
		out = append(out, w)
	}
	return strings.Join(out, " ")
}

// script answers the polls in turn, the last one for ever.
func script(answers ...string) func(*fakeServer, call) (int, string) {
	return func(s *fakeServer, c call) (int, string) {
		if c.path != "poll" {
			return 0, ""
		}
		s.mu.Lock()
		n := min(s.polls, len(answers)) - 1
		s.mu.Unlock()
		return 200, answers[n]
	}
}

// hold keeps a poll open as long as its wait says, as skep's server does.
func hold(c call) (int, string) {
	wait, _ := c.body["wait"].(float64)
	select {
	case <-c.ctx.Done():
	case <-time.After(time.Duration(wait * float64(time.Second))):
	}
	return 200, `{"cmd":"sleep","duration":0}`
}

type fakeRunner struct {
	mu       sync.Mutex
	jobs     []runner.Job
	prepared int
	closed   int
	prepare  func() // may be nil
	run      func(context.Context, runner.Job) (runner.Summary, error)
}

func (r *fakeRunner) Prepare(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prepared++
	if r.prepare != nil {
		r.prepare()
	}
	return nil
}

func (r *fakeRunner) Run(ctx context.Context, j runner.Job) (runner.Summary, error) {
	r.mu.Lock()
	r.jobs = append(r.jobs, j)
	r.mu.Unlock()
	if r.run != nil {
		return r.run(ctx, j)
	}
	return runner.Summary{ExitCode: new(int64), Session: "after-task"}, nil
}

func (r *fakeRunner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed++
	return nil
}
func (r *fakeRunner) Method() string              { return "fake" }
func (r *fakeRunner) Isolation() (string, string) { return "none", "a fake" }

type fakeMachine struct {
	ready chan struct{}
	dims  func() map[string][]string
	ill   string

	started time.Time // zero = the running time stands still
}

func (m *fakeMachine) Dimensions() map[string][]string {
	if m.dims != nil {
		return m.dims()
	}
	return map[string][]string{"id": {"b1"}, "pool": {"default"}}
}

func (m *fakeMachine) State() map[string]any {
	s := map[string]any{"running_time": 1, "cost_usd_hour": 0.5}
	if !m.started.IsZero() {
		s["running_time"] = int64(time.Since(m.started).Seconds())
	}
	if m.ill != "" {
		s["quarantined"] = m.ill
	}
	return s
}
func (m *fakeMachine) Ready() <-chan struct{} { return m.ready }

// fixture is a bot with everything around it.
type fixture struct {
	*Bot
	server  *fakeServer
	runner  *fakeRunner
	machine *fakeMachine
}

func newFixture(t *testing.T, change func(*Config, *fixture)) *fixture {
	t.Helper()
	f := &fixture{server: &fakeServer{}, runner: &fakeRunner{}, machine: &fakeMachine{ready: make(chan struct{})}}
	close(f.machine.ready)
	client, err := botapi.NewClient(botapi.Options{Server: "http://127.0.0.1:1", BotID: "b1", Dir: "/b", Transport: f.server})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		ID: "b1", Dir: t.TempDir(), Version: "v", Server: "http://127.0.0.1:1", Client: client,
		Runner: f.runner, Machine: f.machine,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&cfg, f)
	}
	f.Bot = New(cfg)
	return f
}

// start runs the bot and returns a function that waits for its end.
func (f *fixture) start(t *testing.T) (wait func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f.Run(t.Context()) }()
	return func() {
		t.Helper()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

const runAnswer = `{"cmd":"run","manifest":{"task_id":"5a00000000000111","bot_id":"b1","hard_timeout":60,"grace_period":30,"io_timeout":0,"command":["true"]},"session":"s2"}`
