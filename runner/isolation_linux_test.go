package runner

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/skepdev/skep/internal/proc"
)

// TestIsolation hides the bot directory below a directory that only root may
// search.
func TestIsolation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	closed := t.TempDir()
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	bot := filepath.Join(closed, "bots", "b1")
	if err := os.MkdirAll(filepath.Join(bot, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.BotDir = bot })
	if kind, why := s.Isolation(); kind != proc.IsolationUser {
		t.Fatalf("isolation %s: %s", kind, why)
	}
	sum := run(t, s, server, sh(`echo x > f && cat "$PWD/f" && ls -A ../.. && echo y > "$TMPDIR/t" && cat "$TMPDIR/t" && ls "$PWD/../../../.." && wc -c < "$LUCI_CONTEXT" > n; touch ../../q 2>/dev/null && echo leak; id -u; id -G`))
	out, _, _ := server.got()
	if want := fmt.Sprintf("x\nw\ny\nbots\n%d\n%d\n", s.iso.User.UID, s.iso.User.GID); out != want || *sum.ExitCode != 0 {
		t.Errorf("output %q, want %q; %+v", out, want, sum)
	}
}

func TestIsolationOff(t *testing.T) {
	server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.Isolation = proc.IsolationNone })
	run(t, s, server, sh("id -u"))
	if out, _, _ := server.got(); out != fmt.Sprintln(os.Getuid()) {
		t.Errorf("output %q", out)
	}
}

// TestCredential lets a task try for the bot's credential: its file, and the
// memory, descriptors, environment and arguments of the bot's processes.
func TestCredential(t *testing.T) {
	t.Run("closed directory", func(t *testing.T) { testCredential(t, t.TempDir()) })
	t.Run("open directory", func(t *testing.T) { testCredential(t, filepath.Join(sharedDir(t), "bot")) })
}

func testCredential(t *testing.T, dir string) {
	const secret = "CREDENTIAL-c29tZXRoaW5n"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.BotDir = dir })
	kind, why := s.Isolation()
	file := filepath.Join(s.cfg.BotDir, "bot-credential")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	// It prints what it gets hold of: the file, w, and for each process outside
	// of the task whether something private of it opens.
	script := `
exec 2>/dev/null
cat "$1"; cat "$1/../w/task_runner_in.json"; ls "$(dirname "$1")"; grep -rs CREDENTIAL "$(dirname "$1")"
for pid in $2; do
	test -d /proc/$pid || continue
	for f in mem environ maps auxv; do head -c 1 /proc/$pid/$f >/dev/null 2>&1 && test "$(wc -c < /proc/$pid/$f)" != 0 && echo "opens /proc/$pid/$f"; done
	ls /proc/$pid/fd/ 2>/dev/null && echo "opens /proc/$pid/fd"
	kill -0 $pid 2>/dev/null && echo "may kill $pid"
done
for pid in $PPID $(cat /proc/$PPID/status 2>/dev/null | sed -n 's/^PPid:\t//p'); do
	test $pid -gt 1 && kill -0 $pid 2>/dev/null && echo "may kill its parent"
	ls /proc/$pid/fd/ 2>/dev/null && echo "opens its parent"
	head -c 1 /proc/$pid/environ 2>/dev/null
done
mount -t tmpfs x "$TMPDIR" 2>/dev/null && echo mounts
umount "$(dirname "$1")" 2>/dev/null && echo unmounts
true`
	m := sh(script, func(m map[string]any) {
		m["command"] = append(m["command"].([]string), "sh", file, strconv.Itoa(os.Getpid()))
	})
	job := Job{Manifest: m, Server: server.URL, Session: secret, Headers: map[string]string{"Authorization": "Bearer " + secret}}
	if _, err := s.Run(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	out, _, _ := server.got()
	if kind == proc.IsolationNone {
		t.Skipf("NOT TESTED: isolation=none here: %s", why)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for _, l := range lines {
		// Names in a directory that everybody may list are no secret.
		if l != "" && !strings.Contains("bot-credential c logs w", l) {
			t.Errorf("isolation=%s, and the task says: %s", kind, l)
		}
	}
}

// TestHideDir keeps tasks of a bot from the directory that its drone hides:
// where they have the bot's uid they would reach the drone's socket and the
// other bots' credentials.
func TestHideDir(t *testing.T) {
	dir := sharedDir(t)
	bot := filepath.Join(dir, "bots", "b1")
	for _, d := range []string{bot, filepath.Join(dir, "bots", "b2")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"drone.sock", "registration", "bots/b2/bot-credential"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("SECRET"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server, s := newTaskServer(t), newStarter(t, func(c *Config) { c.BotDir, c.HideDir = bot, dir })
	if kind, why := s.Isolation(); kind != proc.IsolationView {
		t.Skipf("NOT TESTED: isolation=%s here %s; see TestUnprivileged", kind, why)
	}
	sum := run(t, s, server, sh(`ls -A "$1" "$1/bots"; cat "$1"/* "$1"/bots/b2/* 2>/dev/null; echo x > f && cat f`, func(m map[string]any) {
		m["command"] = append(m["command"].([]string), "sh", dir)
	}))
	out, _, _ := server.got()
	if want := dir + ":\nbots\n\n" + dir + "/bots:\nb1\nx\n"; out != want || *sum.ExitCode != 0 {
		t.Errorf("output %q, want %q", out, want)
	}
}

func TestWider(t *testing.T) {
	for _, c := range [][3]string{
		{"/d/bots/b", "/d", "/d"},
		{"/d/bots/b", "/d/", "/d"},
		{"/d/bots/b", "/d/bots/b", "/d/bots/b"},
		{"/d/bots/b", "/other", "/d/bots/b"},
		{"/d/bots/b", "/d/bots/b/c", "/d/bots/b"},
		{"/d/bots/b", "", "/d/bots/b"},
		{"", "/d", ""},
		{"/drones", "/d", "/drones"},
	} {
		if got := wider(c[0], c[1]); got != c[2] {
			t.Errorf("wider(%q, %q) = %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

// TestUnprivileged runs the tests that depend on rights as another user too.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("this is the other user")
	}
	if testing.Short() || raceEnabled {
		t.Skip("runs other tests")
	}
	dir := sharedDir(t)
	exe := filepath.Join(dir, "runner.test")
	if err := copyFile(exe, os.Args[0]); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-test.run", "^(TestRun|TestSurvivors|TestDeath|TestSecrets|TestCredential|TestWorkDirectory|TestEnvironment|TestCancel|TestExitCodes|TestDescriptors|TestNamedCaches|TestHideDir)$", "-test.v")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=/tmp", "USER=nobody"}
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for l := range strings.Lines(string(out)) {
		if strings.Contains(l, "NOT TESTED") {
			t.Log(strings.TrimSpace(l))
		}
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
