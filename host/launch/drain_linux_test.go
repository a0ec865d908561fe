package launch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/host/launch"
	"github.com/skepdev/skep/internal/stage/ownengine"
)

// build builds a program that runs in any container.
func build(t *testing.T, pkg, out string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", pkg, err, said)
	}
}

// pack makes an image of deploy/bot-image with a bot.
func pack(t *testing.T, e *ownengine.Engine, bot, name string) {
	t.Helper()
	cmd := exec.Command("../../deploy/bot-image/build.sh", bot, name)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", name, err, out)
	}
}

// runLauncher runs a launcher of the engine until the test ends.
func runLauncher(t *testing.T, e *ownengine.Engine, dir string, settings func() launch.Settings) (*launch.Launcher, *lines) {
	t.Helper()
	log := &lines{}
	l, err := launch.Open(launch.Options{
		Engine: e, Root: filepath.Join(dir, "b"), StateDir: filepath.Join(dir, "state"), LockDir: filepath.Join(dir, "locks"),
		Host: "h", FQDN: "h", Server: "http://127.0.0.1:1", Network: "none", Settings: settings,
		Log: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		_ = l.Close()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return l, log
}

// On a real engine, with bots that have a task in hand: a drain is one SIGTERM
// to the bot's main process and to nobody else, and the bot ends by itself; one
// that does not is stopped at the deadline, and killed after the grace.
// promises D2, D3, D7.
func TestBusyBotsAreDrained(t *testing.T) {
	const (
		deadline = 30 * time.Second // less than a minute, when all is looked at again
		grace    = 2 * time.Second
		late     = 20 * time.Second // a busy machine; measured are hundredths of one
	)
	e := ownengine.ForTest(t)
	dir := filepath.Dir(e.Dir)
	bot := filepath.Join(dir, "busybot")
	build(t, "./testdata/busybot", bot)
	pack(t, e, bot, "bot:1")
	l, _ := runLauncher(t, e, dir, func() launch.Settings {
		return launch.Settings{Slots: 3, Image: "bot:1", Deadline: deadline, StopGrace: grace}
	})
	in := func(slot, file string) string { return filepath.Join(dir, "b", slot, file) }
	holds := func(slot string) error { // the bot has the lock, and says who it is
		b, err := os.ReadFile(in(slot, "swarming/swarming.lck"))
		if err == nil && len(b) == 0 {
			err = errors.New("it is empty")
		}
		return err
	}
	slot := func(name string) launch.SlotStatus {
		for _, s := range l.Status().Slots {
			if s.Slot == name {
				return s
			}
		}
		return launch.SlotStatus{}
	}
	signals := func(slot string) string {
		b, _ := os.ReadFile(in(slot, "signals"))
		return strings.ReplaceAll(string(b), "\n", ";")
	}
	said := func(slot, want string) func() error {
		return func() error {
			l.Wake() // as often as it may be: nothing is signalled twice for that
			if got := signals(slot); got != want {
				return fmt.Errorf("slot %s got %q", slot, got)
			}
			return nil
		}
	}
	for _, s := range []string{"000", "001", "002"} {
		await(t, "bot in slot "+s, func() error { return holds(s) })
	}
	asked := time.Now()
	for _, s := range []string{"000", "001"} {
		if err := l.Drain(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"000", "001"} {
		await(t, "signal in slot "+s, said(s, "bot terminated;"))
	}
	await(t, "word of the drain", func() error {
		if d := slot("001").Drain; d == nil || d.Signalled.IsZero() {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	end := slot("001").Drain.Deadline

	// The first one's task ends.
	if c, err := e.Inspect(t.Context(), "000"); err != nil || c.State != engine.Running {
		t.Fatalf("with its task in hand it is %s; %v", c.State, err)
	}
	if err := os.WriteFile(in("000", "done"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, "end of a bot that finished", func() error {
		if s := slot("000"); s.Last == nil || s.State != "empty" {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if time.Now().After(end) {
		t.Fatal("this machine is too slow for this test: the deadline is over")
	}
	if last := slot("000").Last; last.ExitCode != 0 || !last.Asked || last.Cause != launch.CauseStamp {
		t.Errorf("the bot that finished ended as %+v", last)
	}
	if got := signals("000"); got != "bot terminated;" {
		t.Errorf("the bot that finished got %q", got)
	}

	// The other's does not.
	between := func(what string, from time.Time) time.Duration {
		t.Helper()
		took := time.Since(from)
		if took < 0 || took > late {
			t.Errorf("%s %v after its time", what, took)
		}
		return took
	}
	await(t, "stop", said("001", "bot terminated;container interrupt;"))
	stop := between("stop", end)
	await(t, "kill", func() error {
		if s := slot("001"); s.Last == nil {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	last := slot("001").Last
	if last.ExitCode != 137 || last.Cause != launch.CauseStamp {
		t.Errorf("the bot that did not finish ended as %+v", last)
	}
	kill := last.Ended.Sub(end.Add(grace))
	if kill < 0 || kill > late {
		t.Errorf("kill %v after its time", kill)
	}
	t.Logf("asked %v before the deadline, stopped %v after it, killed %v after the grace", end.Sub(asked), stop, kill)
	if c, err := e.Inspect(t.Context(), "002"); err != nil || c.State != engine.Running || signals("002") != "" {
		t.Errorf("one that was not drained is %s and got %q; %v", c.State, signals("002"), err)
	}

	// Drains are taken back.
	if err := os.Remove(in("000", "done")); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"000", "001"} {
		if err := l.Undrain(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{"000", "001"} {
		await(t, "bot in slot "+s, func() error {
			if s := slot(s); s.State != string(engine.Running) || s.Drain != nil {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
}
