//go:build unix

package botcli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/bot/code"
)

// TestMain makes this test's binary a skep-bot when it is called by a bot's
// name: the tests then run the real process tree.
func TestMain(m *testing.M) {
	if exe, err := os.Executable(); err == nil && strings.HasPrefix(filepath.Base(exe), "swarming_bot") {
		os.Exit(Main())
	}
	os.Exit(m.Run())
}

// fakeServer answers the Bot API over a real socket. The tests talk to it
// through channels, so that nothing has to be waited for by time.
type fakeServer struct {
	*httptest.Server
	calls chan apiCall // every call
	polls chan string  // answers for polls, in order; none = the poll waits
	quit  chan struct{}

	mu      sync.Mutex
	out     bytes.Buffer // of all tasks
	answers map[string]*pollAnswer
}

// pollAnswer is the answer to a poll. One that the bot gives up it sends again
// with its key, and must have the same. spec bot.md §2.7.
type pollAnswer struct {
	once  sync.Once
	given chan struct{}
	text  string
}

func (e *pollAnswer) give(text string) (first bool) {
	e.once.Do(func() {
		first, e.text = true, text
		close(e.given)
	})
	return first
}

func (s *fakeServer) answerTo(key string) *pollAnswer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		s.answers = map[string]*pollAnswer{}
	}
	e := s.answers[key]
	if e == nil {
		e = &pollAnswer{given: make(chan struct{})}
		s.answers[key] = e
	}
	return e
}

type apiCall struct {
	path string
	auth string
	at   time.Time
	body map[string]any
}

func newFakeServer(t testing.TB) *fakeServer {
	s := &fakeServer{calls: make(chan apiCall, 1000), polls: make(chan string, 100), quit: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Server.Close)
	t.Cleanup(s.CloseClientConnections)
	t.Cleanup(func() { close(s.quit) })
	return s
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := apiCall{path: strings.TrimPrefix(r.URL.Path, "/swarming/api/v1/bot/"), auth: r.Header.Get("Authorization"), at: time.Now()}
	c.path, _, _ = strings.Cut(c.path, "/")
	data, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(data, &c.body)
	if c.path == "task_update" {
		var u struct{ Output []byte }
		_ = json.Unmarshal(data, &u)
		s.mu.Lock()
		s.out.Write(u.Output)
		s.mu.Unlock()
	}
	s.calls <- c
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	switch c.path {
	case "handshake":
		io.WriteString(w, `{"session":"s1"}`)
	case "poll":
		if c.body["wait"] == nil {
			io.WriteString(w, `{"cmd":"sleep","duration":0}`)
			return
		}
		key, _ := c.body["request_uuid"].(string)
		e := s.answerTo(key)
		select {
		case a := <-s.polls:
			if !e.give(a) {
				s.polls <- a
			}
		case <-e.given:
		case <-r.Context().Done():
			return
		case <-s.quit:
			return
		}
		io.WriteString(w, e.text)
	case "task_update":
		if wait, _ := c.body["wait"].(float64); wait > 0 {
			select {
			case <-r.Context().Done():
			case <-s.quit:
			}
			return
		}
		io.WriteString(w, `{"ok":true,"must_stop":false}`)
	case "server_ping":
		io.WriteString(w, "Server up")
	default:
		io.WriteString(w, `{}`)
	}
}

// next returns the next call of that kind, skipping others.
func (s *fakeServer) next(t testing.TB, path string, match func(apiCall) bool) apiCall {
	t.Helper()
	limit := time.After(patient)
	for {
		select {
		case c := <-s.calls:
			if c.path == path && (match == nil || match(c)) {
				return c
			}
		case <-limit:
			t.Fatalf("no %s within %v", path, patient)
		}
	}
}

func event(kind string) func(apiCall) bool {
	return func(c apiCall) bool { return c.body["event"] == kind }
}

// install composes a bot from this test's binary and returns its path.
func install(t testing.TB, server string, files ...code.File) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(botDir(t), "swarming_bot")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if err := code.Compose(f, data, code.Config{Server: server, Reboot: "none"}, files...); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a started bot.
type process struct {
	*exec.Cmd
	dir    string
	stderr bytes.Buffer
}

func skepBot(t testing.TB, path string, args ...string) *process {
	p := &process{Cmd: exec.Command(path, args...), dir: filepath.Dir(path)}
	p.Env = append(os.Environ(), "SWARMING_BOT_ID=b1", "SKEP_REBOOT=none", "SKEP_BOT_TOKEN=secret-of-b1", "GOCOVERDIR="+t.TempDir())
	p.Stderr = &p.stderr
	return p
}

func startProcess(t testing.TB, path string, args ...string) *process {
	t.Helper()
	p := skepBot(t, path, args...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Cmd.Wait()
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(p.dir, "logs", "swarming_bot.log"))
			t.Logf("stderr:\n%s\nlog:\n%s", p.stderr.String(), log)
		}
	})
	return p
}

// exit waits for the end and returns the code.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.Cmd.Wait()
	}()
	select {
	case <-done:
	case <-time.After(patient):
		t.Fatalf("the bot did not end within %v", patient)
	}
	return p.ProcessState.ExitCode()
}

func runManifest(id, script string) string {
	m, _ := json.Marshal(map[string]any{"cmd": "run", "manifest": map[string]any{
		"task_id": id, "bot_id": "b1", "bot_dimensions": map[string][]string{}, "dimensions": map[string][]string{},
		"hard_timeout": 60, "grace_period": 5, "io_timeout": 0, "command": []string{"/bin/sh", "-c", script},
		"service_accounts": map[string]any{"system": map[string]any{"service_account": "none"}, "task": map[string]any{"service_account": "none"}},
	}})
	return string(m)
}

// A whole life: start, slot, task, output, drain.
func TestBotRunsATaskAndDrains(t *testing.T) {
	s := newFakeServer(t)
	p := startProcess(t, install(t, s.URL), "start_bot")
	if c := s.next(t, "poll", nil); c.auth != "Bearer secret-of-b1" {
		t.Errorf("authorization = %q", c.auth)
	}
	if args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Process.Pid)); err == nil {
		if exe, _, _ := strings.Cut(string(args), "\x00"); filepath.Base(exe) != "swarming_bot.1" {
			t.Errorf("the bot runs as %s, want slot 1", exe)
		}
	}
	s.polls <- runManifest("5a00000000000111", `echo hi; env | grep -c SKEP_; cat /proc/$PPID/environ 2>&1 | tr '\0' '\n' | grep -c secret-of; exit 3`)
	final := s.next(t, "task_update", func(c apiCall) bool { return c.body["exit_code"] != nil })
	if got := final.body["exit_code"]; got != 3.0 {
		t.Errorf("exit code = %v, want 3", got)
	}
	s.mu.Lock()
	out := s.out.String()
	s.mu.Unlock()
	if out != "hi\n0\n0\n" {
		t.Errorf("output = %q, want hi and no trace of the credential", out)
	}
	s.next(t, "poll", nil)
	if err := p.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if c := s.next(t, "event", event("bot_shutdown")); c.body["message"] != "SIGTERM was received" {
		t.Errorf("event = %v", c.body["message"])
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if p.stderr.Len() > 0 {
		t.Errorf("stderr = %s", p.stderr.String())
	}
}

func TestSecondBotIsRefused(t *testing.T) {
	s := newFakeServer(t)
	path := install(t, s.URL)
	first := startProcess(t, path, "start_bot")
	s.next(t, "poll", nil)
	second := startProcess(t, path)
	if code := second.exit(t); code != 1 {
		t.Errorf("exit code = %d, want 1", code)
	}
	want := fmt.Sprintf("a bot runs in %s already (process %d)", first.dir, first.Process.Pid)
	if !strings.Contains(second.stderr.String(), want) {
		t.Errorf("stderr = %q, want %q", second.stderr.String(), want)
	}
}

func TestForeignDirectoryIsRefused(t *testing.T) {
	s := newFakeServer(t)
	path := install(t, s.URL)
	thesis := filepath.Join(filepath.Dir(path), "thesis.tex")
	if err := os.WriteFile(thesis, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, path, "start_bot")
	if code := p.exit(t); code != 1 {
		t.Errorf("exit code = %d, want 1", code)
	}
	if !strings.Contains(p.stderr.String(), `holds "thesis.tex"`) || !strings.Contains(p.stderr.String(), "empty directory") {
		t.Errorf("stderr = %q", p.stderr.String())
	}
	entries, _ := os.ReadDir(filepath.Dir(path))
	if len(entries) != 2 {
		t.Errorf("the directory has now %v, want it untouched", entries)
	}
}

func TestLeftoversVanish(t *testing.T) {
	s := newFakeServer(t)
	path := install(t, s.URL)
	dir := filepath.Dir(path)
	if err := bot.MarkDir(dir); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"w/ir/deep", "w12", "c/ab", "logs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "c/zz"), 0o755); err != nil { // nobody's
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c/state.json"), []byte(fmt.Sprintf(`{"items":[["go",[["ab",1],%d]]],"version":3}`, time.Now().Unix())), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(dir, "w/ir"), 0o500)
	startProcess(t, path, "start_bot")
	s.next(t, "poll", nil)
	for name, want := range map[string]bool{"w12": false, "w/ir/deep": false, "c/ab": true, "c/zz": false, "c/named/go": true, "swarming.lck": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: exists = %v, want %v", name, err == nil, want)
		}
	}
}

func TestTerminateEndsTheBot(t *testing.T) {
	s := newFakeServer(t)
	p := startProcess(t, install(t, s.URL), "start_bot", "--test-mode")
	s.polls <- `{"cmd":"terminate","task_id":"5a00000000000111"}`
	s.next(t, "task_update", nil)
	s.next(t, "event", event("bot_shutdown"))
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

func TestStopEndsATask(t *testing.T) {
	for _, how := range [][]os.Signal{{syscall.SIGINT}, {syscall.SIGTERM, syscall.SIGTERM}} {
		t.Run(fmt.Sprint(how), func(t *testing.T) {
			s := newFakeServer(t)
			p := startProcess(t, install(t, s.URL), "start_bot")
			s.polls <- runManifest("5a00000000000111", `echo started; sleep 1000`)
			s.next(t, "task_update", func(c apiCall) bool { return c.body["output"] != nil })
			if err := p.Process.Signal(how[0]); err != nil {
				t.Fatal(err)
			}
			if len(how) > 1 {
				// The second must not melt into the first, and on a busy machine be
				// heard within 3 s of another.
				waitFor(t, func() bool { return strings.Contains(logOf(p), "draining") })
				waitFor(t, func() bool {
					_ = p.Process.Signal(how[1])
					return strings.Contains(logOf(p), "SIGTERM was received twice")
				})
			}
			s.next(t, "task_error", nil)
			s.next(t, "event", event("bot_shutdown"))
			if code := p.exit(t); code != 0 {
				t.Errorf("exit code = %d, want 0", code)
			}
		})
	}
}

func logOf(p *process) string {
	data, _ := os.ReadFile(filepath.Join(p.dir, "logs", "swarming_bot.log"))
	return string(data)
}

// waitFor looks at something that only shows in files, often.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patient)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("it did not happen within %v", patient)
		}
	}
}

func TestDiagnosticsDoNotEndTheBot(t *testing.T) {
	s := newFakeServer(t)
	p := startProcess(t, install(t, s.URL), "start_bot")
	s.next(t, "poll", nil)
	if err := p.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return strings.Contains(logOf(p), "stacks of all goroutines") })
	if err := p.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return strings.Contains(logOf(p), "diagnostic bundle written") })
	bundles, _ := filepath.Glob(filepath.Join(p.dir, "logs", "bundle-*.zip"))
	if len(bundles) != 1 {
		t.Fatalf("bundles = %v", bundles)
	}
	if data, err := code.ReadFile(bundles[0], "status.json"); err != nil || !bytes.Contains(data, []byte(`"id": "b1"`)) || bytes.Contains(data, []byte("secret-of")) {
		t.Errorf("status.json = %s, %v", data, err)
	}
	if err := p.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the bot is gone: %v", err)
	}
}

func TestShell(t *testing.T) {
	s := newFakeServer(t)
	path := install(t, s.URL)
	p := startProcess(t, path, "start_bot")
	s.next(t, "poll", nil)
	ask := func(in string, args ...string) (string, error) {
		c := skepBot(t, filepath.Join(p.dir, "swarming_bot.1"), append([]string{"shell"}, args...)...)
		c.Stdin, c.Stderr = strings.NewReader(in), nil
		out, err := c.Output()
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, e.Stderr)
		}
		return string(out), err
	}
	for _, c := range []struct{ name, in, want string }{
		{"an expression", "bot.id + '!'", "\"b1!\"\n"},
		{"status", "status()['id'], len(status()['dimensions']) > 0", `("b1", True)` + "\n"},
		{"several lines", "def twice(x):\n    return 2 * x\n\nfor i in range(2):\n    print(twice(i))\ntwice(21)\n", "0\n2\n42\n"},
		{"help and stacks", "help()\nstacks()", "goroutine "},
		{"an event", "bot.post_error('from the shell')", ""},
		{"no secret", "bot.session_token, bot.remote, [k for k in ['SKEP_BOT_TOKEN'] if env(k)]", "(None, None, [])\n"},
	} {
		if out, err := ask(c.in); err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v\n%s\nwant %q", c.name, err, out, c.want)
		}
	}
	s.next(t, "event", func(c apiCall) bool { return strings.Contains(fmt.Sprint(c.body["message"]), "from the shell") })
	if out, err := ask("", "print(1)\nprint(2)"); err != nil || out != "1\n2\n" {
		t.Errorf("a program in the arguments: %v\n%s", err, out)
	}
	for name, in := range map[string]string{
		"a name that is not there": "fly()", "a syntax error": "def (", "a fault after others": "print(1)\nfail('no')",
	} {
		if out, err := ask(in); err == nil {
			t.Errorf("%s succeeded: %s", name, out)
		}
	}
	if out, err := ask("", "drain('enough')"); err != nil || out != "draining\n" {
		t.Errorf("drain: %v\n%s", err, out)
	}
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if _, err := ask("status()"); err == nil {
		t.Error("shell found a bot that has ended")
	}
}

// The process is replaced in place: same id, same lock, same credential.
func TestRestartInPlace(t *testing.T) {
	s := newFakeServer(t)
	p := startProcess(t, install(t, s.URL), "start_bot")
	first := s.next(t, "handshake", nil)
	s.polls <- `{"cmd":"bot_restart","message":"because"}`
	if c := s.next(t, "event", event("bot_shutdown")); c.body["message"] != "About to restart: because" {
		t.Errorf("event = %v", c.body["message"])
	}
	second := s.next(t, "handshake", nil)
	if first.body["session_id"] == second.body["session_id"] {
		t.Error("the new process has the old session id")
	}
	if second.auth != "Bearer secret-of-b1" {
		t.Errorf("authorization after the restart = %q", second.auth)
	}
	if pid := bot.LockedBy(p.dir); pid != p.Process.Pid {
		t.Errorf("the lock names %d, want %d", pid, p.Process.Pid)
	}
	if _, err := bot.TakeLock(p.dir); err == nil {
		t.Error("the lock was free")
	}
	if data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Process.Pid)); err == nil {
		waitFor(t, func() bool {
			data, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Process.Pid))
			return err != nil || !bytes.Contains(data, []byte("secret-of"))
		})
	}
	_ = p.Process.Signal(syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

func TestInformation(t *testing.T) {
	s := newFakeServer(t)
	path := install(t, s.URL)
	version, err := code.Version(path)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct{ cmd, want string }{
		{"version", version + "\n"},
		{"server", s.URL + "\n"},
		{"config", `"server": "` + s.URL + `"`},
		{"attributes", `"version": "` + version + `"`},
		{"is_fine", ""},
		{"setup", ""},
		{"help", "start_bot"},
	}
	for _, tt := range tests {
		out, err := skepBot(t, path, tt.cmd).Output()
		if err != nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: %v\n%s\nwant %q", tt.cmd, err, out, tt.want)
		}
	}
	for _, cmd := range []string{"reboot", "bootstrap-vm", "dance"} {
		c := skepBot(t, path, cmd)
		if err := c.Run(); err == nil || c.ProcessState.ExitCode() != 1 || c.stderr.Len() == 0 {
			t.Errorf("%s: %v, %q; want exit code 1 and a reason", cmd, err, c.stderr.String())
		}
	}
}

func TestBareExecutableIsRefused(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(botDir(t), "swarming_bot")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	c := skepBot(t, path, "start_bot")
	if err := c.Run(); err == nil || c.ProcessState.ExitCode() != 1 || !strings.Contains(c.stderr.String(), "carries no configuration") {
		t.Errorf("%v: %q", err, c.stderr.String())
	}
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
