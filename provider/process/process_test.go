//go:build unix

package process

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/host/supervise"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/providertest"
)

// TestMain lets the test's executable be the bot: it locks its directory and
// ends when it is told to.
func TestMain(m *testing.M) {
	if os.Getenv("PROCESS_TEST_BOT") != "" {
		os.Exit(fakeBot())
	}
	goleak.VerifyTestMain(m)
}

func fakeBot() int {
	lock, err := os.OpenFile(supervise.LockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil || unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return 4
	}
	_ = lock.Truncate(0)
	fmt.Fprint(lock, os.Getpid())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	return 0
}

func open(t *testing.T, dir string, ended func(string) bool) *Provider {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(Options{
		Dir: dir, Host: "h", Ended: ended, Grace: 5 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Bot: func(_, dir string, _ map[string]string, _ []string) (supervise.Bot, error) {
			return supervise.Bot{Env: append(os.Environ(), "PROCESS_TEST_BOT=1"), Prepare: func() (string, error) {
				if err := os.MkdirAll(dir, 0o700); err != nil {
					return "", err
				}
				path := filepath.Join(dir, "bot")
				if _, err := os.Stat(path); err == nil {
					return path, nil
				}
				return path, copyFile(self, path)
			}}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

func TestContract(t *testing.T) {
	providertest.Run(t, providertest.Suite{Fresh: func(t *testing.T) providertest.Subject {
		p := open(t, t.TempDir(), nil)
		t.Cleanup(func() {
			p.StopAll()
			if err := p.Wait(t.Context()); err != nil && t.Context().Err() == nil {
				t.Error(err)
			}
			waitStopped(t, p)
			p.Close()
		})
		return providertest.Subject{Provider: p, Bad: provider.Order{Name: "Not A Host"}}
	}})
}

// waitStopped waits until no bot has a process.
func waitStopped(t *testing.T, p *Provider) {
	t.Helper()
	eventually(t, "bots have ended", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, in := range p.instances {
			select {
			case <-in.over:
			default:
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); {
		if time.Now().After(end) {
			t.Fatalf("not so: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// pidOf is the process of an instance's bot, 0 for none.
func pidOf(dir, name string) (pid int) {
	b, _ := os.ReadFile(filepath.Join(dir, name, supervise.LockFile))
	_, _ = fmt.Sscan(strings.TrimSpace(string(b)), &pid)
	if pid != 0 && syscall.Kill(pid, 0) != nil {
		return 0
	}
	return pid
}

// Instances outlive who made them; the next one looks after them on, and does
// not start again what ended for good.
func TestAdopted(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, nil)
	for i := range 2 {
		if _, err := p.Create(t.Context(), provider.Order{RequestID: fmt.Sprint(i), Name: fmt.Sprintf("m-%d", i)}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both run", func() bool { return pidOf(dir, "m-0") != 0 && pidOf(dir, "m-1") != 0 })
	first := pidOf(dir, "m-0")
	p.Close()
	if err := syscall.Kill(pidOf(dir, "m-1"), syscall.SIGTERM); err != nil { // it leaves while nobody looks
		t.Fatal(err)
	}
	eventually(t, "one has left", func() bool { return pidOf(dir, "m-1") == 0 })

	p = open(t, dir, func(name string) bool { return name == "m-1" })
	eventually(t, "the other is adopted", func() bool { return p.Has("m-0") })
	if pid := pidOf(dir, "m-0"); pid != first {
		t.Errorf("process %d became %d", first, pid)
	}
	if p.Has("m-1") || pidOf(dir, "m-1") != 0 {
		t.Error("what ended for good runs again")
	}
	if page, _, err := p.List(t.Context(), provider.Scope{}, ""); len(page) != 2 || err != nil {
		t.Errorf("%d instances, %v", len(page), err)
	}

	// A killed bot is started again; what lost its record is cleared away.
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is started again", func() bool { pid := pidOf(dir, "m-0"); return pid != 0 && pid != first })
	if err := os.Remove(filepath.Join(dir, "m-0.json")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Get(t.Context(), provider.Ref{Name: "m-0"}); provider.ClassOf(err) != provider.NotFound {
		t.Errorf("an instance without a record: %v", err)
	}
	eventually(t, "it is cleared away", func() bool { _, err := os.Stat(filepath.Join(dir, "m-0")); return os.IsNotExist(err) })

	// One that is being taken away when its provider ends is taken away by the next.
	if done, err := p.Delete(t.Context(), provider.Ref{Name: "m-1"}, "d"); done || err != nil {
		t.Errorf("delete: %v, %v", done, err)
	}
	p.Close()
	p = open(t, dir, nil)
	defer p.Close()
	eventually(t, "it is gone", func() bool {
		done, err := p.Delete(t.Context(), provider.Ref{Name: "m-1"}, "d")
		return done && err == nil
	})
}

// Bots of this host's processes speak to one server, under any of its names.
func TestBotsOfAnotherServer(t *testing.T) {
	p := open(t, t.TempDir(), nil)
	defer p.Close()
	p.o.Servers = []string{"https://skep.example.com", "http://127.0.0.1:8900"}
	for server, ours := range map[string]bool{"https://skep.example.com": true, "http://127.0.0.1:8900": true, "https://other.example.com": false} {
		name := map[bool]string{true: "a-0", false: "b-0"}[ours]
		done, err := p.Create(t.Context(), provider.Order{Name: name, RequestID: name, Server: server})
		if class := provider.ClassOf(err); !done || ours != (err == nil) || !ours && class != provider.Invalid {
			t.Errorf("%s: %v, %v", server, done, err)
		}
	}
	eventually(t, "it is gone", func() bool {
		done, err := p.Delete(t.Context(), provider.Ref{Name: "a-0"}, "")
		return done && err == nil
	})
}

// A stopped instance has no process and keeps its directory, also for the next
// provider; it is started by a call alone.
func TestStopped(t *testing.T) {
	dir, at := t.TempDir(), provider.Ref{Name: "m-0"}
	p := open(t, dir, nil)
	if _, err := p.Create(t.Context(), provider.Order{RequestID: "1", Name: at.Name}); err != nil {
		t.Fatal(err)
	}
	running := func() bool { return pidOf(dir, at.Name) != 0 }
	eventually(t, "it runs", running)
	kept := filepath.Join(dir, at.Name, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := func() bool { done, err := p.Stop(t.Context(), at, "s"); return done && err == nil }
	eventually(t, "it is stopped", stop)
	p.Close()
	p = open(t, dir, nil)
	eventually(t, "it is stopped still", stop)
	if running() || p.Has(at.Name) {
		t.Error("the next provider has started it")
	}
	start := func() bool { done, err := p.Start(t.Context(), at, "t"); return done && err == nil }
	eventually(t, "it is started", start)
	eventually(t, "it runs again", running)
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	// One that is stopped when its provider ends is stopped by the next.
	if _, err := p.Stop(t.Context(), at, "s"); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p = open(t, dir, nil)
	defer p.Close()
	eventually(t, "it has stopped", func() bool { return stop() && !running() })
	eventually(t, "it is gone", func() bool { done, err := p.Delete(t.Context(), at, "d"); return done && err == nil })
}
