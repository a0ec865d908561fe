// Package upgrade shows that a task which the server of the previous commit
// handed out is finished by this one (row B19, decisions.md 19).
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/internal/stage/fleet"
)

// Main runs the demonstration and returns an exit code.
func Main([]string) int {
	dir, err := os.MkdirTemp("", "skep-upgrade-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = show(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "show upgrade:", err)
		return 1
	}
	fmt.Println("passed")
	return 0
}

func show(dir string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	old, commit, err := previous(ctx, dir)
	if err != nil {
		return err
	}
	fmt.Printf("the old server is of %s\n", commit)
	now, err := filepath.Abs("bin/skep")
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	listen := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	flags := []string{"server", "--listen", listen, "--state-dir", filepath.Join(dir, "state")}
	server, err := fleet.Start(ctx, "", append([]string{filepath.Join(old, "skep")}, flags...)...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()

	home := filepath.Join(dir, "bot")
	if err := os.Mkdir(home, 0o700); err != nil {
		return err
	}
	born, err := proc.Start(&proc.Cmd{
		Path: "/bin/sh", Args: []string{"sh", "-c", "curl -fsS '" + server.URL + "/bootstrap' | sh -s -- --id upgrade"}, Dir: home,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, NewGroup: true,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(born, home)) }()
	if err := await(ctx, now, server.URL); err != nil {
		return err
	}

	// Output before, across and after the change of servers; 4 s are some turns
	// of everything. It does not end before the servers have changed.
	changing, changed := context.WithCancel(ctx)
	gate := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-changing.Done() }))
	defer gate.Close()
	defer changed()
	cmd := exec.CommandContext(ctx, now, "run", "--", "sh", "-c", "echo before; for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo $i; done; curl -fsS '"+gate.URL+"'; echo after; exit 3")
	cmd.Env = append(os.Environ(), "SKEP_SERVER="+server.URL)
	var out, diag strings.Builder
	seen := make(chan struct{})
	cmd.Stdout, cmd.Stderr = &watch{b: &out, until: "1\n", seen: seen}, &diag
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-seen:
	case err := <-ended:
		return fmt.Errorf("the task ended before the servers changed: %w\n%s%s", err, &out, &diag)
	}
	if err := server.Stop(); err != nil {
		return err
	}
	if server, err = fleet.Start(ctx, "", append([]string{now}, flags...)...); err != nil {
		return err
	}
	changed()
	err = <-ended
	exit, ok := errors.AsType[*exec.ExitError](err)
	const want = "before\n1\n2\n3\n4\n5\n6\n7\n8\nafter\n"
	if !ok || exit.ExitCode() != 3 || out.String() != want {
		return fmt.Errorf("the task printed %q, want exit code 3 and %q: %w\n%s", &out, want, err, &diag)
	}
	fmt.Println("its task ended under the new one, with all of its output and its exit code")
	return nil
}

// await returns when the bot has connected.
func await(ctx context.Context, skep, url string) error {
	for {
		cmd := exec.CommandContext(ctx, skep, "bots", "--bare")
		cmd.Env = append(os.Environ(), "SKEP_SERVER="+url)
		out, err := cmd.Output()
		if err != nil || len(out) > 0 {
			return err
		}
	}
}

// end ends the bot, and with it the shell that started it.
func end(born *proc.Process, home string) error {
	if pid, ok := bot.Running(home); ok {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Signal(syscall.SIGTERM)
		}
	} else {
		_ = born.Kill()
	}
	select {
	case <-born.Done():
		return nil
	case <-time.After(20 * time.Second):
		_ = born.Kill()
		return errors.New("the bot did not end when it was told to")
	}
}

// previous builds skep and skep-bot of the commit before this one, or where
// the clone has no history, of this one.
func previous(ctx context.Context, dir string) (bin, commit string, err error) {
	commit = "HEAD~1"
	if exec.CommandContext(ctx, "git", "rev-parse", "-q", "--verify", commit+"^{tree}").Run() != nil {
		commit = "HEAD" // a clone without history
	}
	src := filepath.Join(dir, "src")
	if err := os.Mkdir(src, 0o700); err != nil {
		return "", "", err
	}
	out, err := exec.CommandContext(ctx, "sh", "-c", `git archive "$1" | tar -x -C "$2" && git log -1 --format='%h %s' "$1"`, "sh", commit, src).CombinedOutput()
	if err != nil {
		return "", "", fmt.Errorf("%w: %s", err, out)
	}
	make := exec.CommandContext(ctx, "make", "build")
	make.Dir = src
	if out, err := make.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("make build: %w\n%s", err, out)
	}
	return filepath.Join(src, "bin"), strings.TrimSpace(string(out)), nil
}

// watch closes seen once what is written holds until.
type watch struct {
	b     *strings.Builder
	until string
	seen  chan struct{}
}

func (w *watch) Write(p []byte) (int, error) {
	w.b.Write(p)
	if w.seen != nil && strings.Contains(w.b.String(), w.until) {
		close(w.seen)
		w.seen = nil
	}
	return len(p), nil
}
