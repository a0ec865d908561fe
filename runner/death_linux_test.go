package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
)

var methods = []proc.Method{proc.MethodCgroup2, proc.MethodCgroup1, proc.MethodPIDNS, proc.MethodSubreaper}

// eachMethod runs f with each containment forced; one that this machine lacks
// is skipped loudly.
func eachMethod(t *testing.T, f func(t *testing.T, m proc.Method)) {
	for _, m := range methods {
		t.Run(string(m), func(t *testing.T) {
			if _, err := proc.Choose(m); err != nil {
				if slices.Contains(strings.Split(os.Getenv("SKEP_TEST_REQUIRE"), ","), string(m)) {
					t.Fatalf("SKEP_TEST_REQUIRE names %s: %v", m, err)
				}
				t.Skipf("NOT TESTED: %s is not available here: %v", m, err)
			}
			f(t, m)
		})
	}
}

// eachIsolation runs f with tasks kept apart from the bot as well as this
// machine can, and not at all: means that find survivors must not rely on it.
func eachIsolation(t *testing.T, f func(t *testing.T, m proc.Method, isolation string)) {
	eachMethod(t, func(t *testing.T, m proc.Method) {
		for _, isolation := range []string{"", proc.IsolationNone} {
			t.Run("isolation="+isolation, func(t *testing.T) { f(t, m, isolation) })
		}
	})
}

// mark returns a word that names this test's processes in their arguments, and
// a function that lists those alive.
func mark(t testing.TB) (string, func() []string) {
	word := fmt.Sprintf("skep-mark-%d-%d", os.Getpid(), time.Now().UnixNano())
	return word, func() (alive []string) {
		files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil && bytes.Contains(b, []byte(word)) && f != fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
				alive = append(alive, fmt.Sprintf("%s %q", filepath.Base(filepath.Dir(f)), b))
			}
		}
		return alive
	}
}

// gone fails the test when processes are left after limit.
func gone(t testing.TB, limit time.Duration, alive func() []string) {
	t.Helper()
	began := time.Now()
	for {
		left := alive()
		if len(left) == 0 {
			t.Logf("all gone within %v", time.Since(began))
			return
		}
		if time.Since(began) > limit {
			t.Errorf("%d processes left after %v: %s", len(left), limit, left[0])
			for _, l := range left {
				pid, _, _ := strings.Cut(l, " ")
				n, _ := strconv.Atoi(pid)
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
			return
		}
		time.Sleep(5 * time.Millisecond) // another process's /proc has no event
	}
}

// strays are commands that leave processes behind in every way a shell has:
// the background, new sessions, double forks, no environment, deaf to signals,
// frozen, and chains of processes that live for a millisecond each.
func strays(t testing.TB, word string) string {
	dir := sharedDir(t)
	chain := filepath.Join(dir, "chain.sh")
	if err := os.WriteFile(chain, []byte("#!/bin/sh\nsetsid \"$0\" \"$1\" </dev/null >/dev/null 2>&1 &\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	sleep := "sh -c 'trap \"\" TERM HUP INT; sleep 300; :' " + word
	return fmt.Sprintf(`
%[1]s &
setsid %[1]s &
(setsid %[1]s >/dev/null 2>&1 </dev/null &)
(setsid env -i %[1]s >/dev/null 2>&1 </dev/null &)
(setsid sh -c 'kill -STOP $$' %[2]s &)
for i in 1 2 3 4 5 6 7 8; do (setsid %[3]s %[2]s >/dev/null 2>&1 </dev/null &); done
`, sleep, word, chain)
}

func TestSurvivors(t *testing.T) {
	eachIsolation(t, func(t *testing.T, m proc.Method, isolation string) {
		server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.Containment, c.Isolation = string(m), isolation })
		if s.Method() != string(m) {
			t.Fatalf("method %s", s.Method())
		}
		word, alive := mark(t)
		began := time.Now()
		sum := run(t, s, server, sh(strays(t, word)+"sleep 0.2; exit 4"))
		took := time.Since(began)
		gone(t, 0, alive)
		if sum.ExitCode == nil || *sum.ExitCode != 4 || sum.InternalError != "" {
			t.Errorf("summary %+v", sum)
		}
		if took > patient {
			t.Errorf("took %v: survivors must be gone 2 s after the task", took)
		}
		t.Logf("took %v", took)
	})
}

// TestForkBomb runs processes that multiply up to a bound and never stop
// forking.
func TestForkBomb(t *testing.T) {
	eachIsolation(t, func(t *testing.T, m proc.Method, isolation string) {
		server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.Containment, c.Isolation = string(m), isolation })
		word, alive := mark(t)
		// 40 loops, each of which starts a process after the other in its own session.
		bomb := fmt.Sprintf("for i in $(seq 40); do setsid sh -c 'while :; do setsid sh -c : %[1]s; done' %[1]s >/dev/null 2>&1 & done; sleep 0.5; exit 0", word)
		began := time.Now()
		sum := run(t, s, server, sh(bomb))
		took := time.Since(began)
		gone(t, 0, alive)
		if sum.ExitCode == nil || *sum.ExitCode != 0 {
			t.Errorf("summary %+v", sum)
		}
		if took > patient {
			t.Errorf("took %v", took)
		}
		t.Logf("took %v", took)
	})
}

// botMain is a bot that runs one task: it says when it is ready, and prints
// the summary.
func botMain(args []string) int {
	m, err := os.ReadFile(args[2])
	if err != nil {
		panic(err)
	}
	s := NewStarter(Config{BotDir: args[0], Containment: args[3]})
	if err := s.Prepare(context.Background()); err != nil {
		panic(err)
	}
	sum, err := s.Run(context.Background(), Job{Manifest: m, Server: args[1], Session: "s0"})
	fmt.Printf("%q %v\n", sum.InternalError, err)
	return 0
}

// bot is a running botMain.
type bot struct {
	dir              string
	cmd              *exec.Cmd
	out              *bufio.Reader
	runner, isolated int
}

// startBot starts a bot on a task that leaves strays and then waits, and
// returns when it does.
func startBot(t *testing.T, m proc.Method, server *taskServerStub, script string) *bot {
	t.Helper()
	b := &bot{dir: botDir(t)}
	path := filepath.Join(t.TempDir(), "manifest")
	if err := os.WriteFile(path, sh(script), 0o644); err != nil {
		t.Fatal(err)
	}
	b.cmd = exec.Command(os.Args[0], "bot_main", b.dir, server.URL, path, string(m))
	b.cmd.Stderr = t.Output()
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.out = bufio.NewReader(out)
	server.set(func() { server.watched = true })
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.cmd.Process.Kill(); _ = b.cmd.Wait() })
	server.until(t, "the task", func() bool { return bytes.HasSuffix(server.output, []byte("up\n")) })
	b.runner = only(t, childrenOf(b.cmd.Process.Pid))
	b.isolated = only(t, childrenNamed(b.runner, "run_isolated"))
	return b
}

func only(t *testing.T, pids []int) int {
	t.Helper()
	if len(pids) != 1 {
		t.Fatalf("processes %v, want one", pids)
	}
	return pids[0]
}

func childrenNamed(pid int, word string) (kids []int) {
	for _, k := range childrenOf(pid) {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k)); bytes.Contains(b, []byte(word)) {
			kids = append(kids, k)
		}
	}
	return kids
}

func kill9(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids { // none may act on another's death
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func running(pids ...int) (alive []string) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !bytes.Contains(b, []byte(") Z ")) {
			alive = append(alive, fmt.Sprintf("%d %s", pid, b))
		}
	}
	return alive
}

// patient is when a test gives up: whether something happens at all is asked
// here, how fast it happens is measured by `make show-1.3`.
const patient = 2 * time.Minute

const waiting = "echo up; sleep 300; :"

// TestDeath kills each of our processes.
func TestDeath(t *testing.T) {
	eachMethod(t, func(t *testing.T, m proc.Method) {
		t.Run("bot_main", func(t *testing.T) {
			server := newTaskServer(t)
			word, alive := mark(t)
			b := startBot(t, m, server, strays(t, word)+waiting)
			kill9(t, b.cmd.Process.Pid)
			gone(t, patient, func() []string { return append(alive(), running(b.runner, b.isolated)...) })
			recovered(t, b)
		})
		t.Run("task_runner", func(t *testing.T) {
			server := newTaskServer(t)
			word, alive := mark(t)
			b := startBot(t, m, server, strays(t, word)+waiting)
			kill9(t, b.runner)
			gone(t, patient, func() []string { return append(alive(), running(b.runner, b.isolated)...) })
			said, _ := b.out.ReadString('\n')
			if said != "\"task_runner ended (-9) without a report\" <nil>\n" {
				t.Errorf("bot says %q", said)
			}
		})
		t.Run("run_isolated", func(t *testing.T) {
			server := newTaskServer(t)
			word, alive := mark(t)
			b := startBot(t, m, server, strays(t, word)+waiting)
			kill9(t, b.isolated)
			gone(t, patient, alive)
			said, _ := b.out.ReadString('\n')
			if said != "\"run_isolated ended (-9) without a result\" <nil>\n" {
				t.Errorf("bot says %q", said)
			}
			if out, updates, errs := server.got(); len(errs) != 1 || out != "up\n" || slices.ContainsFunc(updates, func(u botapi.TaskUpdate) bool { return u.Final() }) {
				t.Errorf("output %q, errors %v, updates %v", out, errs, updates)
			}
		})
		t.Run("both runners", func(t *testing.T) {
			server := newTaskServer(t)
			word, alive := mark(t)
			b := startBot(t, m, server, strays(t, word)+waiting)
			kill9(t, b.runner, b.isolated)
			_, _ = b.out.ReadString('\n')
			gone(t, patient, func() []string { return lessSubreaper(m, alive()) })
		})
		t.Run("all", func(t *testing.T) {
			server := newTaskServer(t)
			word, alive := mark(t)
			b := startBot(t, m, server, strays(t, word)+waiting)
			kill9(t, b.cmd.Process.Pid, b.runner, b.isolated)
			_ = b.cmd.Wait()
			recovered(t, b)
			var limit time.Duration
			if m == proc.MethodPIDNS {
				limit = patient // the kernel ends a namespace, and nobody is left to be told when
			}
			gone(t, limit, func() []string { return lessSubreaper(m, alive()) })
		})
		t.Run("waiting", func(t *testing.T) {
			s := newStarter(t, func(c *Config) { c.Containment = string(m) })
			if err := s.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			waitIdle(t, s)
			_ = s.ready.p.Kill()
			s.ready.p.Wait()
			server := newTaskServer(t)
			if sum := run(t, s, server, sh("true")); sum.ExitCode == nil || *sum.ExitCode != 0 {
				t.Errorf("summary %+v", sum)
			}
		})
	})
}

// lessSubreaper forgives the last of the means what it cannot know: a process
// without environment all of whose parents were killed at once.
func lessSubreaper(m proc.Method, alive []string) (left []string) {
	if m != proc.MethodSubreaper {
		return alive
	}
	for _, a := range alive {
		pid, _, _ := strings.Cut(a, " ")
		env, _ := os.ReadFile("/proc/" + pid + "/environ")
		if bytes.Contains(env, []byte("SWARMING_TASK_ID=")) {
			left = append(left, a)
		} else {
			n, _ := strconv.Atoi(pid)
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	return left
}

// recovered starts the bot's directory again and looks for what is left.
func recovered(t *testing.T, b *bot) {
	t.Helper()
	var place proc.Place
	if raw, err := os.ReadFile(filepath.Join(b.dir, "w", recordFile)); err == nil {
		if err := json.Unmarshal(raw, &place); err != nil {
			t.Error(err)
		}
	}
	if err := Recover(b.dir, testLog(t)); err != nil {
		t.Error(err)
	}
	for _, dir := range place.Dirs {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cgroup %s is left", dir)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "w*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}
