package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
)

// TestMain makes the test binary the executable whose subcommands it tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "task_runner":
			os.Exit(TaskRunnerMain(os.Args[2:]))
		case "run_isolated":
			os.Exit(RunIsolatedMain(os.Args[2:]))
		case "bot_main":
			os.Exit(botMain(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// taskServerStub speaks task_update and task_error as a server does.
type taskServerStub struct {
	*httptest.Server

	mu        sync.Mutex
	changed   *sync.Cond
	output    []byte // by offset
	updates   []botapi.TaskUpdate
	errors    []botapi.TaskErrorRequest
	overlaps  int  // bytes that came twice
	gaps      int  // updates that began beyond the end
	stop      bool // answer must_stop
	watched   bool
	noWait    bool // ignore wait
	status    int  // answer everything with this status
	waiting   int  // questions that wait now
	questions int
	second    *httptest.Server // after the first was taken away
}

func newTaskServer(t testing.TB) *taskServerStub {
	s := &taskServerStub{}
	s.changed = sync.NewCond(&s.mu)
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.set(func() { s.stop = true })
		s.Server.CloseClientConnections()
		s.Server.Close()
		if s.second != nil {
			s.second.CloseClientConnections()
			s.second.Close()
		}
	})
	return s
}

func (s *taskServerStub) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.changed.Broadcast()
}

// until waits for cond, which is looked at whenever something came.
func (s *taskServerStub) until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	late := time.AfterFunc(patient, func() { s.set(func() {}) })
	defer late.Stop()
	end := time.Now().Add(patient)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v; output so far %q", what, patient, s.output)
		}
		s.changed.Wait()
	}
}

func (s *taskServerStub) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.changed.Broadcast()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if s.status != 0 {
		w.WriteHeader(s.status)
		fmt.Fprint(w, `{"error":"as the test wants it"}`)
		return
	}
	switch {
	case strings.HasPrefix(req.URL.Path, botapi.PathTaskError):
		var e botapi.TaskErrorRequest
		if err := json.Unmarshal(body, &e); err != nil {
			w.WriteHeader(400)
			return
		}
		s.errors = append(s.errors, e)
		fmt.Fprint(w, `{}`)
	case strings.HasPrefix(req.URL.Path, botapi.PathTaskUpdate):
		var u botapi.TaskUpdate
		if err := json.Unmarshal(body, &u); err != nil {
			w.WriteHeader(400)
			return
		}
		if u.Wait > 0 {
			s.question(w, req, u)
			return
		}
		s.updates = append(s.updates, u)
		s.store(u)
		_ = json.NewEncoder(w).Encode(botapi.TaskUpdateResponse{OK: true, MustStop: s.stop, Session: fmt.Sprintf("s%d", len(s.updates))})
	default:
		w.WriteHeader(404)
	}
}

func (s *taskServerStub) question(w http.ResponseWriter, req *http.Request, u botapi.TaskUpdate) {
	s.questions++
	s.waiting++
	defer func() { s.waiting-- }()
	gone := false
	defer time.AfterFunc(time.Duration(u.Wait*float64(time.Second)), func() { s.set(func() { gone = true }) }).Stop()
	go func() {
		<-req.Context().Done()
		s.set(func() { gone = true })
	}()
	s.changed.Broadcast()
	for !s.noWait && !gone && !s.stop && s.watched == u.Watched {
		s.changed.Wait()
	}
	_ = json.NewEncoder(w).Encode(botapi.TaskUpdateResponse{OK: true, MustStop: s.stop, Watched: s.watched && !s.noWait})
}

func (s *taskServerStub) store(u botapi.TaskUpdate) {
	start := int(u.OutputChunkStart)
	if start > len(s.output) {
		s.gaps++
		s.output = append(s.output, make([]byte, start-len(s.output))...)
	}
	if len(u.Output) > 0 {
		s.overlaps += len(s.output) - start
	}
	s.output = append(s.output[:start:start], slices.Concat(u.Output, s.output[min(len(s.output), start+len(u.Output)):])...)
}

func (s *taskServerStub) got() (out string, updates []botapi.TaskUpdate, errs []botapi.TaskErrorRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.output), slices.Clone(s.updates), slices.Clone(s.errors)
}

// final returns the last update when it ends the task.
func (s *taskServerStub) final(t testing.TB) botapi.TaskUpdate {
	t.Helper()
	_, updates, errs := s.got()
	if len(updates) == 0 || !updates[len(updates)-1].Final() {
		t.Fatalf("no final update; updates %+v, errors %+v", updates, errs)
	}
	return updates[len(updates)-1]
}

const testRunID = "5a00000000000111"

// manifest returns a manifest for command; change may edit it.
func manifest(command []string, change ...func(map[string]any)) json.RawMessage {
	m := map[string]any{
		"task_id": testRunID, "bot_id": "bot1", "bot_dimensions": map[string]any{"id": []string{"bot1"}, "os": []string{"Debian", "Linux"}},
		"dimensions": map[string]any{}, "hard_timeout": 60, "grace_period": 60, "io_timeout": 60, "command": command,
		"relative_cwd": "", "env": map[string]string{}, "env_prefixes": map[string]any{}, "outputs": nil,
		"service_accounts": map[string]any{"system": map[string]string{"service_account": "none"}, "task": map[string]string{"service_account": "none"}},
	}
	for _, f := range change {
		f(m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func sh(script string, change ...func(map[string]any)) json.RawMessage {
	return manifest([]string{"/bin/sh", "-c", script}, change...)
}

func with(key string, value any) func(map[string]any) {
	return func(m map[string]any) {
		if value == nil {
			delete(m, key)
			return
		}
		m[key] = value
	}
}

func newStarter(t testing.TB, change ...func(*Config)) *Starter {
	t.Helper()
	cfg := Config{BotDir: botDir(t), Log: testLog(t)}
	for _, f := range change {
		f(&cfg)
	}
	s := NewStarter(cfg)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"task_runner.log", "run_isolated.log", "task_runner_stdout.log"} {
			if b, err := os.ReadFile(cfg.BotDir + "/logs/" + name); err == nil && t.Failed() && len(bytes.TrimSpace(b)) > 0 {
				t.Logf("%s:\n%s", name, b)
			}
		}
		if left, _ := os.ReadDir(cfg.BotDir); !t.Failed() {
			for _, e := range left {
				if strings.HasPrefix(e.Name(), "w") {
					t.Errorf("%s is left in the bot directory", e.Name())
				}
			}
		}
	})
	return s
}

func run(t testing.TB, s *Starter, server *taskServerStub, m json.RawMessage) Summary {
	t.Helper()
	sum, err := s.Run(t.Context(), Job{Manifest: m, Server: server.URL, BotID: "bot1", Session: "s0", ReceivedAt: time.Now()})
	if err != nil {
		t.Fatalf("Run: %v", err)
	}
	return sum
}

// botDir is a directory for a bot. Its processes go within moments of the bot,
// not with it, so removing the directory may take more than one try.
func botDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skep-bot-test-") //nolint:usetesting // t.TempDir tries once
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) { // their end has no event here
			err := os.RemoveAll(dir)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Error(err)
				return
			}
		}
	})
	return dir
}
