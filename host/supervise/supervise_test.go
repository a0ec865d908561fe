//go:build unix

package supervise

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test's executable be the bot: it locks its directory,
// tells the test of its life over a socket, and ends as a bot does.
func TestMain(m *testing.M) {
	if socket := os.Getenv("SUPERVISE_TEST_SOCKET"); socket != "" {
		os.Exit(fakeBot(socket))
	}
	os.Exit(m.Run())
}

func fakeBot(socket string) int {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 3
	}
	lock, err := os.OpenFile(LockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		fmt.Fprintln(conn, "second")
		return 4
	}
	_ = lock.Truncate(0)
	fmt.Fprint(lock, os.Getpid())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	fmt.Fprintf(conn, "started %d\n", os.Getpid())
	fmt.Fprintln(conn, (<-signals).String())
	return 0
}

// stage is where fake bots live; what they say arrives in order.
type stage struct {
	t      *testing.T
	dir    string
	socket string
	said   chan string
}

func newStage(t *testing.T) *stage {
	dir := t.TempDir()
	s := &stage{t: t, dir: filepath.Join(dir, "bot"), socket: filepath.Join(dir, "s"), said: make(chan string, 100)}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				for in := bufio.NewScanner(conn); in.Scan(); {
					s.said <- in.Text()
				}
			}()
		}
	}()
	return s
}

func (s *stage) bot() Bot {
	return Bot{
		ID: "b", Dir: s.dir, Env: append(os.Environ(), "SUPERVISE_TEST_SOCKET="+s.socket),
		Prepare: func() (string, error) {
			self, err := os.Executable()
			if err != nil {
				return "", err
			}
			exe := filepath.Join(s.dir, "swarming_bot")
			if _, err := os.Stat(exe); err == nil {
				return exe, nil
			}
			data, err := os.ReadFile(self)
			if err != nil {
				return "", err
			}
			return exe, os.WriteFile(exe, data, 0o700)
		},
	}
}

// hear waits for the next word and returns the number in it, if any.
func (s *stage) hear(want string) int {
	s.t.Helper()
	select {
	case got := <-s.said:
		if !strings.HasPrefix(got, want) {
			s.t.Fatalf("the bot said %q, want %q", got, want)
		}
		n := 0
		fmt.Sscanf(got, want+" %d", &n)
		return n
	case <-time.After(20 * time.Second):
		s.t.Fatalf("the bot did not say %q", want)
	}
	return 0
}

// supervise runs a supervisor of bot; the function waits for its end.
func (s *stage) supervise(ctx context.Context, bot Bot) (*Supervisor, func() error) {
	sup := New([]Bot{bot}, Options{Log: slog.New(slog.NewTextHandler(s.t.Output(), nil)), MinPause: time.Millisecond})
	done := make(chan error, 1)
	go func() { done <- sup.Run(ctx) }()
	return sup, func() error { return <-done }
}

func TestRestartThenDrain(t *testing.T) {
	s := newStage(t)
	sup, wait := s.supervise(t.Context(), s.bot())
	pid := s.hear("started")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if again := s.hear("started"); again == pid {
		t.Errorf("the bot has process id %d again", pid)
	}
	sup.Drain()
	s.hear("terminated") // SIGTERM drains
	if err := wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStop(t *testing.T) {
	s := newStage(t)
	sup, wait := s.supervise(t.Context(), s.bot())
	s.hear("started")
	sup.Stop()
	s.hear("interrupt")
	if err := wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestOrderlyEndIsNotRestarted(t *testing.T) {
	s := newStage(t)
	_, wait := s.supervise(t.Context(), s.bot())
	if err := syscall.Kill(s.hear("started"), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.hear("terminated")
	if err := wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestAdoption(t *testing.T) {
	s := newStage(t)
	ctx, leave := context.WithCancel(t.Context())
	_, wait := s.supervise(ctx, s.bot())
	pid := s.hear("started")
	leave()
	if err := wait(); err != context.Canceled {
		t.Errorf("Run of the first supervisor: %v, want %v", err, context.Canceled)
	}

	bot := s.bot()
	bot.Prepare = func() (string, error) { t.Error("a second bot was prepared"); return "", os.ErrExist }
	sup, wait := s.supervise(t.Context(), bot)
	sup.Drain()
	s.hear("terminated")
	if err := wait(); err != nil {
		t.Errorf("Run of the second supervisor: %v", err)
	}
	_ = pid
}

func TestAdoptedBotIsReplaced(t *testing.T) {
	s := newStage(t)
	ctx, leave := context.WithCancel(t.Context())
	_, wait := s.supervise(ctx, s.bot())
	pid := s.hear("started")
	leave()
	_ = wait()

	sup, wait := s.supervise(t.Context(), s.bot())
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.hear("started")
	sup.Drain()
	s.hear("terminated")
	if err := wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRetired(t *testing.T) {
	s := newStage(t)
	bot := s.bot()
	bot.Retired = true
	_, wait := s.supervise(t.Context(), bot)
	if err := wait(); err != nil { // nothing runs, nothing is started
		t.Errorf("Run: %v", err)
	}

	ctx, leave := context.WithCancel(t.Context())
	_, wait = s.supervise(ctx, s.bot())
	s.hear("started")
	leave()
	_ = wait()
	_, wait = s.supervise(t.Context(), bot)
	s.hear("terminated")
	if err := wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestForeignHolderIsLeftAlone(t *testing.T) {
	s := newStage(t)
	lock, err := os.OpenFile(filepath.Join(s.dir, LockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(lock, os.Getpid()) // we hold it, and we are no bot of that directory
	k := &keeper{Bot: s.bot()}
	p, err := k.find()
	if err == nil {
		t.Errorf("find = %v, want an error", p)
	}
}
