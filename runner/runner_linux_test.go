package runner

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRun(t *testing.T) {
	for _, ahead := range []bool{false, true} {
		t.Run(fmt.Sprintf("ahead=%v", ahead), func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			if ahead {
				if err := s.Prepare(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			sum := run(t, s, server, sh("echo hi; echo there >&2; exit 3"))
			out, updates, errs := server.got()
			want := Summary{ExitCode: code(3), Session: fmt.Sprintf("s%d", len(updates))} // of the last answer
			if diff := cmp.Diff(want, sum); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
			if out != "hi\nthere\n" || len(errs) > 0 {
				t.Errorf("output %q, errors %v", out, errs)
			}
			if first := updates[0]; first.CostUSD == nil || first.Final() || len(first.Output) > 0 {
				t.Errorf("announcement %+v", first)
			}
			u := server.final(t)
			if *u.ExitCode != 3 || u.Duration == nil || u.BotOverhead == nil || *u.BotOverhead < 0 || u.CleanupStats == nil || u.CacheTrimStats == nil {
				t.Errorf("final update %+v", u)
			}
		})
	}
}

// TestRunMany uses one Starter as a bot does.
func TestRunMany(t *testing.T) {
	s := newStarter(t)
	for i := range 5 {
		server := newTaskServer(t)
		if err := s.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		run(t, s, server, sh("echo $0 "+strconv.Itoa(i)))
		if out, _, _ := server.got(); out != "/bin/sh "+strconv.Itoa(i)+"\n" {
			t.Errorf("output %q", out)
		}
	}
}

func code(n int64) *int64 { return &n }

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		name     string
		manifest json.RawMessage
		want     int64
		output   string
	}{
		{"success", manifest([]string{"true"}), 0, ""},
		{"by its PATH", sh("exit 7"), 7, ""},
		{"killed by a signal", sh("kill -9 $$"), -9, ""},
		{"no command", manifest(nil), 1, "no command"},
		{"no such executable", manifest([]string{"no-such-program"}), 1, `no "no-such-program" in the task's PATH`},
		{"no such path", manifest([]string{"./bin/tool"}), 1, "does not exist"},
		{"not executable", manifest([]string{"/etc/passwd"}), 1, "not executable"},
		{"a directory", manifest([]string{"/etc"}), 1, "directory"},
		{"PATH of the task", manifest([]string{"true"}, with("env", map[string]string{"PATH": "/nowhere"})), 1, "/nowhere"},
		{"first in PATH is for others only", manifest([]string{"true"}, with("env", map[string]string{"PATH": closedBin(t) + ":/usr/bin:/bin"})), 0, ""},
		{"no format we know", sh("printf 'x' > p; chmod +x p; exec ./p"), 127, ""},
		{"directory that leaves", sh("true", with("relative_cwd", "../..")), 1, "leaves the run directory"},
		{"absolute directory", sh("true", with("relative_cwd", "/tmp")), 1, "leaves the run directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			sum := run(t, s, server, tt.manifest)
			out, _, errs := server.got()
			if sum.ExitCode == nil || (*sum.ExitCode != tt.want && tt.name != "no format we know") || len(errs) > 0 {
				t.Errorf("summary %+v, errors %v, output %q", sum, errs, out)
			}
			if !strings.Contains(out, tt.output) {
				t.Errorf("output %q does not say %q", out, tt.output)
			}
		})
	}
}

// closedBin is a directory with a program true that fails, which only we may
// search.
func closedBin(t *testing.T) string {
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		return "/nowhere"
	}
	if err := os.WriteFile(filepath.Join(dir, "true"), []byte("#!/bin/sh\nexit 9\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestWorkDirectory looks at the run's files from inside.
func TestWorkDirectory(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	began := time.Now()
	run(t, s, server, sh(`pwd; stat -c '%a %u' "$PWD/../.." ; stat -c %a .; cat "$LUCI_CONTEXT"; echo; touch "$TMPDIR/x" "$HOME/x" "$1/x" y && echo written; wc -c < "$2"`,
		with("relative_cwd", "a/b"), func(m map[string]any) {
			m["command"] = append(m["command"].([]string), "arg0", "${ISOLATED_OUTDIR}", "${SWARMING_BOT_FILE}")
		}))
	out, _, _ := server.got()
	lines := strings.Split(out, "\n")
	if len(lines) < 6 {
		t.Fatalf("output %q", out)
	}
	dir := filepath.Join(s.cfg.BotDir, "w", "ir")
	want := []string{filepath.Join(dir, "a/b"), fmt.Sprintf("700 %d", taskUID(s)), "700"}
	if diff := cmp.Diff(want, lines[:3]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"written", "0", ""}, lines[4:]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var ctx struct {
		LocalAuth *json.RawMessage `json:"local_auth"`
		Deadline  deadline
		Swarming  struct {
			Task struct {
				Server     string
				TaskID     string   `json:"task_id"`
				Dimensions []string `json:"bot_dimensions"`
			}
		}
	}
	if err := json.Unmarshal([]byte(lines[3]), &ctx); err != nil {
		t.Fatalf("LUCI_CONTEXT %q: %v", lines[3], err)
	}
	soft := time.UnixMicro(int64(ctx.Deadline.SoftDeadline * 1e6))
	if started := soft.Add(-60 * time.Second); started.Before(began.Add(-time.Millisecond)) || started.After(time.Now()) || ctx.Deadline.GracePeriod != 60 {
		t.Errorf("deadline %+v of a task given at %v", ctx.Deadline, began)
	}
	if ctx.LocalAuth != nil || ctx.Swarming.Task.TaskID != "5a00000000000110" || ctx.Swarming.Task.Server != server.URL ||
		!slices.Equal(ctx.Swarming.Task.Dimensions, []string{"id:bot1", "os:Debian", "os:Linux"}) {
		t.Errorf("LUCI_CONTEXT %s", lines[3])
	}
}

func taskUID(s *Starter) uint32 {
	if s.iso.User != nil {
		return s.iso.User.UID
	}
	return uint32(os.Getuid())
}

// TestEnvironment compares the whole environment of a task.
func TestEnvironment(t *testing.T) {
	server := newTaskServer(t)
	s := newStarter(t, func(c *Config) {
		c.Environ = []string{
			"PATH=/usr/bin:/bin", "HOME=/home/bot", "USER=bot", "LC_ALL=C", "TZ=UTC", "https_proxy=http://proxy",
			"SKEP_BOT_TOKEN=secret", "AWS_SECRET=secret", "EXTRA_1=one", "PASSED=yes", "LD_PRELOAD=/x.so", "XDG_RUNTIME_DIR=/run/user/1",
		}
		c.EnvPass = []string{"EXTRA_*", "PASSED"}
	})
	sum, err := s.Run(t.Context(), Job{
		Manifest: manifest([]string{"/usr/bin/env"},
			with("env", map[string]string{"TZ": "", "A": "x${SWARMING_TASK_ID}y${EXECUTABLE_SUFFIX}", "OUT": "${ISOLATED_OUTDIR}/o"}),
			with("env_prefixes", map[string][]string{"PATH": {"bin", "tools/bin"}, "NEW": {"n"}})),
		Server: server.URL, Session: "s0", Env: map[string]string{"HOOK": "set", "LC_ALL": ""},
	})
	if err != nil || sum.ExitCode == nil || *sum.ExitCode != 0 {
		t.Fatalf("%+v, %v", sum, err)
	}
	out, _, _ := server.got()
	w := filepath.Join(s.cfg.BotDir, "w")
	temp := newEnviron(strings.Split(out, "\n")).get("TMPDIR")
	outDir := filepath.Dir(newEnviron(strings.Split(out, "\n")).get("OUT"))
	if filepath.Dir(temp) != w || !strings.HasPrefix(filepath.Base(temp), "it") || filepath.Dir(outDir) != w || !strings.HasPrefix(filepath.Base(outDir), "io") {
		t.Errorf("TMPDIR %q, OUT in %q", temp, outDir)
	}
	want := []string{
		"A=x" + testRunID + "y", "CIPD_ARCHITECTURE=" + cipdArch(), "EXTRA_1=one", "HOME=/home/bot", "HOOK=set",
		"LUCI_CONTEXT=" + filepath.Join(temp, "luci_ctx."+filepath.Base(temp)[2:]+".json"),
		"NEW=" + w + "/ir/n", "OUT=" + outDir + "/o", "PASSED=yes",
		"PATH=" + w + "/ir/bin:" + w + "/ir/tools/bin:/usr/bin:/bin",
		"SWARMING_BOT_ID=bot1", "SWARMING_HEADLESS=1", "SWARMING_SERVER=" + server.URL, "SWARMING_TASK_ID=" + testRunID,
		"TMPDIR=" + temp, "USER=bot", "XDG_RUNTIME_DIR=/run/user/1", "https_proxy=http://proxy",
	}
	if s.iso.User != nil {
		e := newEnviron(want)
		e.put("HOME", temp+"/home")
		e.put("USER", taskUserName)
		e.put("LOGNAME", taskUserName)
		e.remove("XDG_RUNTIME_DIR")
		want = e.list()
		slices.Sort(want)
	}
	got := slices.DeleteFunc(strings.Split(strings.TrimSpace(out), "\n"), func(kv string) bool {
		return raceEnabled && strings.HasPrefix(kv, "GORACE=") // internal/proc hands it on
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// TestSecrets looks for what only our processes may know wherever a task, or
// anybody who lists processes, could find it.
func TestSecrets(t *testing.T) {
	const session, header = "SESSION-c29tZXRoaW5n", "HEADER-c29tZXRoaW5n"
	server := newTaskServer(t)
	s := newStarter(t, func(c *Config) { c.Environ = append(os.Environ(), "SKEP_BOT_TOKEN="+header) })
	job := Job{
		Manifest: sh(`cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; env; ps axeww 2>/dev/null; grep -r . .. 2>/dev/null; cat /proc/$PPID/fd/* < /dev/null 2>/dev/null; true`),
		Server:   server.URL, Session: session, Headers: map[string]string{"Authorization": "Bearer " + header},
	}
	if _, err := s.Run(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	out, updates, _ := server.got()
	if updates[0].Session != session {
		t.Errorf("the server saw session %q", updates[0].Session)
	}
	for _, secret := range []string{session, header} {
		if strings.Contains(out, secret) {
			t.Errorf("the task saw %q", secret)
		}
	}
}

// TestDescriptors counts what a task inherits. One that we were given must not
// get through.
func TestDescriptors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := syscall.Dup3(int(r.Fd()), 99, 0); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(99)
	server, s := newTaskServer(t), newStarter(t)
	run(t, s, server, manifest([]string{"/bin/ls", "/proc/self/fd"}))
	if out, _, _ := server.got(); out != "0\n1\n2\n3\n" { // 3 is the directory
		t.Errorf("descriptors %q", out)
	}
}

// TestTLS verifies the server by a certificate that came with the job.
func TestTLS(t *testing.T) {
	stub, s := newTaskServer(t), newStarter(t)
	server := httptest.NewTLSServer(stub)
	defer server.Close()
	job := Job{
		Manifest: sh("echo hi"), Server: server.URL, Session: "s0",
		RootCAs: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
	}
	if sum, err := s.Run(t.Context(), job); err != nil || sum.ExitCode == nil || *sum.ExitCode != 0 {
		t.Errorf("with its certificate: %+v, %v", sum, err)
	}
	if out, _, _ := stub.got(); out != "hi\n" {
		t.Errorf("output %q", out)
	}
}

func TestAnnouncement(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		server, s := newTaskServer(t), newStarter(t)
		server.set(func() { server.stop = true })
		mark := filepath.Join(t.TempDir(), "mark")
		sum := run(t, s, server, sh("touch "+mark))
		if u := server.final(t); !u.Canceled || u.ExitCode != nil {
			t.Errorf("final update %+v", u)
		}
		if sum.ExitCode == nil || *sum.ExitCode != -1 || sum.InternalError != "" {
			t.Errorf("summary %+v", sum)
		}
		if _, err := os.Stat(mark); err == nil {
			t.Error("the task ran")
		}
	})
	t.Run("not allowed", func(t *testing.T) {
		server, s := newTaskServer(t), newStarter(t)
		server.set(func() { server.status = http.StatusForbidden })
		sum := run(t, s, server, sh("true"))
		if sum.ExitCode != nil || sum.InternalErrorReported || !strings.Contains(sum.InternalError, "403") {
			t.Errorf("summary %+v", sum)
		}
	})
}

func TestMalformedManifest(t *testing.T) {
	for _, tt := range []struct {
		name     string
		manifest string
		reported bool
		want     string
	}{
		{"required key missing", string(sh("true", with("bot_id", nil))), true, "has no bot_id"},
		{"wrong type", string(sh("true", with("hard_timeout", "soon"))), true, "hard_timeout is a string, want an integer"},
		{"negative limit", string(sh("true", with("grace_period", -1))), true, "negative"},
		{"no task id", `{"bot_id":"x"}`, false, "has no"},
		{"task id of another type", `{"task_id":7}`, false, "task_id"},
		{"not an object", `[]`, false, "not a JSON object"},
		{"bad variable", string(sh("true", with("env", map[string]string{"A=B": "x"}))), true, `env "A=B"`},
		{"inputs by no digest", string(sh("true", with("cas_input_root", map[string]any{"cas_instance": "i", "digest": map[string]any{"hash": "ab", "size_bytes": 3}}))), true, "SHA-256"},
		{"unsupported packages", string(sh("true", with("cipd_input", map[string]any{"packages": []any{map[string]any{"package_name": "p", "version": "v", "path": "."}}}))), true, "packages"},
		{"agent context without secret", string(manifest([]string{"x", agentPlaceholder})), true, "no secret bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			sum := run(t, s, server, json.RawMessage(tt.manifest))
			if !strings.Contains(sum.InternalError, tt.want) || sum.InternalErrorReported != tt.reported || sum.ExitCode != nil {
				t.Errorf("summary %+v", sum)
			}
			_, _, errs := server.got()
			if len(errs) != map[bool]int{true: 1}[tt.reported] {
				t.Fatalf("task errors %+v", errs)
			}
			if tt.reported && (errs[0].TaskID != testRunID || errs[0].Message != sum.InternalError) {
				t.Errorf("task error %+v", errs[0])
			}
		})
	}
}

func TestEmptyInputs(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	sum := run(t, s, server, sh("true", with("outputs", []string{"x"}), with("cas_input_root", map[string]any{"cas_instance": "i", "digest": map[string]any{
		"hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size_bytes": 0,
	}})))
	if sum.ExitCode == nil || *sum.ExitCode != 0 {
		t.Errorf("summary %+v", sum)
	}
}

func TestNamedCaches(t *testing.T) {
	s := newStarter(t)
	caches := with("caches", []map[string]string{{"name": "go_build", "path": "cache/go", "hint": "-1"}, {"name": "empty", "path": "e", "hint": "-1"}})
	for i, want := range []string{"", "1\n", "1\n2\n"} {
		server := newTaskServer(t)
		sum := run(t, s, server, sh(fmt.Sprintf("cat cache/go/f 2>/dev/null; echo %d >> cache/go/f", i+1), caches))
		if out, _, _ := server.got(); out != want || *sum.ExitCode != 0 {
			t.Errorf("run %d: output %q, want %q", i, out, want)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(s.cfg.BotDir, "c", "named")); len(left) != 1 {
		t.Errorf("caches kept: %v", left)
	}
}

// TestCacheBehindALink: what a task puts in a cache's way must not move
// anything that is not its own.
func TestCacheBehindALink(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	victim := sharedDir(t)
	if err := os.MkdirAll(filepath.Join(victim, "sub", "precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	caches := with("caches", []map[string]string{{"name": "a", "path": "d/sub", "hint": "-1"}})
	sum := run(t, s, server, sh("touch d/sub/x; mv d e; ln -s "+victim+" d", caches))
	if sum.ExitCode == nil || *sum.ExitCode != 0 {
		t.Errorf("summary %+v", sum)
	}
	if _, err := os.Stat(filepath.Join(victim, "sub", "precious")); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.cfg.BotDir, "c", "named")); len(left) != 0 {
		t.Errorf("caches kept: %v", left)
	}
}

// TestOutputBytes sends more than fits into memory, in every byte value.
func TestOutputBytes(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	sum := run(t, s, server, sh("head -c 5000000 /dev/urandom | tee all; exec sha256sum all >&2"))
	out, _, _ := server.got()
	if sum.ExitCode == nil || len(out) < 5000000 {
		t.Fatalf("%d bytes, %+v", len(out), sum)
	}
	want := fmt.Sprintf("%x  all\n", sha256.Sum256([]byte(out[:5000000])))
	if got := out[5000000:]; got != want || server.gaps+server.overlaps > 0 {
		t.Errorf("digest %q, want %q; %d gaps, %d bytes twice", got, want, server.gaps, server.overlaps)
	}
}

// TestOutage takes the server away while a task writes, in three ways.
func TestOutage(t *testing.T) {
	for _, tt := range []struct {
		name string
		away func(*taskServerStub) (back func())
	}{
		{"5xx", func(s *taskServerStub) func() {
			s.set(func() { s.status = http.StatusServiceUnavailable })
			return func() { s.set(func() { s.status = 0 }) }
		}},
		{"session refused", func(s *taskServerStub) func() {
			s.set(func() { s.status = http.StatusUnauthorized })
			return func() { s.set(func() { s.status = 0 }) }
		}},
		{"no server", func(s *taskServerStub) func() {
			addr := s.Listener.Addr().String()
			s.Listener.Close()
			s.CloseClientConnections()
			return func() {
				l, err := net.Listen("tcp", addr)
				for end := time.Now().Add(patient); err != nil && time.Now().Before(end); l, err = net.Listen("tcp", addr) {
					time.Sleep(10 * time.Millisecond) // another's connection got the port
				}
				if err != nil {
					panic(err)
				}
				again := &httptest.Server{Listener: l, Config: &http.Server{Handler: s}}
				again.Start()
				s.second = again
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			server, s := newTaskServer(t), newStarter(t)
			dir, pipes := fifos(t, "a", "b", "c")
			server.set(func() { server.watched = true })
			done := make(chan Summary)
			// The task says when it has written 3 MB, with nobody there to take them.
			go func() {
				done <- run(t, s, server, sh(fmt.Sprintf("echo begin; read x < %[1]s/a; seq 400000; echo written > %[1]s/b; read x < %[1]s/c; echo end", dir)))
			}()
			server.until(t, "begin", func() bool { return bytes.HasPrefix(server.output, []byte("begin\n")) })
			back := tt.away(server)
			release(t, pipes["a"])
			line(t, pipes["b"])
			back()
			server.until(t, "the outage's output", func() bool { return bytes.HasSuffix(server.output, []byte("400000\n")) })
			release(t, pipes["c"])
			sum := <-done
			var want bytes.Buffer
			want.WriteString("begin\n")
			for i := range 400000 {
				want.WriteString(strconv.Itoa(i+1) + "\n")
			}
			want.WriteString("end\n")
			out, _, errs := server.got()
			if out != want.String() || server.gaps > 0 {
				t.Errorf("%d bytes, want %d, gaps %d", len(out), want.Len(), server.gaps)
			}
			if sum.ExitCode == nil || *sum.ExitCode != 0 || sum.InternalError != "" || len(errs) > 0 {
				t.Errorf("summary %+v, errors %v", sum, errs)
			}
		})
	}
}

// TestCancel measures from the server's word to the signal in the process.
func TestCancel(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	server.set(func() { server.watched = true })
	done := make(chan Summary)
	go func() {
		done <- run(t, s, server, sh("trap 'date +%s%N; exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
	}()
	server.until(t, "ready", func() bool { return string(server.output) == "ready\n" && server.waiting > 0 })
	began := time.Now()
	server.set(func() { server.stop = true })
	sum := <-done
	out, _, errs := server.got()
	took := since(began, strings.TrimPrefix(out, "ready\n"))
	t.Logf("cancel reached the process after %.1f ms", took)
	if took < 0 || took > float64(patient.Milliseconds()) {
		t.Errorf("output %q: %.1f ms", out, took)
	}
	if sum.ExitCode == nil || *sum.ExitCode != 5 || len(errs) > 0 || sum.InternalError != "" {
		t.Errorf("summary %+v, errors %v", sum, errs)
	}
}

// TestWatched measures from a write to the server's having it.
func TestWatched(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	dir, pipes := fifos(t, "a", "b")
	done := make(chan Summary)
	go func() {
		done <- run(t, s, server, sh(fmt.Sprintf("echo one; read x < %[1]s/a; date +%%s%%N; read x < %[1]s/b", dir)))
	}()
	server.until(t, "a question", func() bool { return server.waiting > 0 })
	flip := time.Now()
	server.set(func() { server.watched = true })
	server.until(t, "what was buffered", func() bool { return len(server.output) == 4 })
	if took := time.Since(flip); took > patient {
		t.Errorf("the first reader waited for %v", took)
	}
	release(t, pipes["a"])
	server.until(t, "the date", func() bool { return len(server.output) > 4 })
	now := time.Now()
	out, _, _ := server.got()
	if took := -since(now, out[4:]); took < 0 || took > float64(patient.Milliseconds()) {
		t.Errorf("watched output took %.1f ms", took)
	} else {
		t.Logf("watched output took %.1f ms", took)
	}
	release(t, pipes["b"])
	<-done
}

// TestServerThatDoesNotWait must not be asked all the time.
func TestServerThatDoesNotWait(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	server.set(func() { server.noWait = true })
	run(t, s, server, sh("sleep 1"))
	if server.questions < 1 || server.questions > 3 {
		t.Errorf("%d questions in a second", server.questions)
	}
}

// TestTimeLimits gives a shell 10 s to begin, or to write its next line.
func TestTimeLimits(t *testing.T) {
	const stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done"
	var all sync.WaitGroup
	for _, tt := range []struct {
		name     string
		manifest json.RawMessage
		hard, io bool
		code     int64
		min, max time.Duration
	}{
		{"hard, obeyed", sh("trap 'exit 9' TERM; while :; do sleep 0.05; done", with("hard_timeout", 10)), true, false, 9, 10 * time.Second, patient},
		{"hard, ignored", sh(stubborn, with("hard_timeout", 10), with("grace_period", 1)), true, false, -9, 11 * time.Second, patient},
		{"hard, no grace", sh(stubborn, with("hard_timeout", 10), with("grace_period", 0)), true, false, -9, 10 * time.Second, patient},
		{"no output", sh("echo up; exec sleep 60", with("io_timeout", 1)), false, true, -15, time.Second, patient},
		{"no output, ignored", sh(stubborn, with("io_timeout", 10), with("grace_period", 1)), false, true, -9, 11 * time.Second, patient},
		{"output keeps it alive", sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1; echo $i; done", with("io_timeout", 10)), false, false, 0, 12 * time.Second, patient},
	} {
		all.Go(func() {
			t.Run(tt.name, func(t *testing.T) { // at once: they only wait
				server, s := newTaskServer(t), newStarter(t)
				began := time.Now()
				sum := run(t, s, server, tt.manifest)
				took := time.Since(began)
				want := Summary{ExitCode: &tt.code, HardTimeout: tt.hard, IOTimeout: tt.io, Session: sum.Session}
				if diff := cmp.Diff(want, sum); diff != "" {
					t.Errorf("summary (-want +got):\n%s", diff)
				}
				if u := server.final(t); u.HardTimeout != tt.hard || u.IOTimeout != tt.io || *u.ExitCode != tt.code {
					t.Errorf("final update %+v", u)
				}
				if took < tt.min || took > tt.max {
					t.Errorf("took %v, want %v to %v", took, tt.min, tt.max)
				}
			})
		})
	}
	all.Wait()
}

// TestStop ends Run's context: the bot is being stopped.
func TestStop(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	server.set(func() { server.watched = true })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Summary)
	go func() {
		sum, err := s.Run(ctx, Job{Manifest: sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"), Server: server.URL, Session: "s0"})
		if err != nil {
			t.Error(err)
		}
		done <- sum
	}()
	server.until(t, "up", func() bool { return string(server.output) == "up\n" })
	cancel()
	sum := <-done
	out, _, errs := server.got()
	if out != "up\nbye\n" || len(errs) != 1 || !sum.InternalErrorReported || sum.ExitCode != nil {
		t.Errorf("output %q, errors %v, summary %+v", out, errs, sum)
	}
}

// TestFinalRefused leaves the refusal to bot_main.
func TestFinalRefused(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	server.set(func() { server.watched = true })
	dir, pipes := fifos(t, "a")
	done := make(chan Summary)
	go func() { done <- run(t, s, server, sh("echo up; read x < "+dir+"/a")) }()
	server.until(t, "up", func() bool { return string(server.output) == "up\n" })
	server.set(func() { server.status = http.StatusForbidden })
	release(t, pipes["a"])
	if sum := <-done; sum.InternalErrorReported || !strings.Contains(sum.InternalError, "403") {
		t.Errorf("summary %+v", sum)
	}
}

func TestWorkDirOfAPreviousTask(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t)
	left := filepath.Join(s.cfg.BotDir, "w", "ir", "x")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, s, server, sh("ls -A; mkdir d; touch d/f; chmod 0 d"))
	if out, _, _ := server.got(); out != "" {
		t.Errorf("left from before: %q", out)
	}
}
