package bot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/proc"
)

// GraceInterval is how long a bot that was told to terminate may take before
// it is killed.
const GraceInterval = 3 * time.Minute

// killLimit is how long the kernel may take to end all processes of a bot once
// they are killed, a fork bomb too.
const killLimit = 10 * time.Second

// again is the time between the two SIGTERM that tell a bot to stop its task;
// one alone drains it. decisions.md 2 and 3.
const again = time.Second

// Bot is a started bot. All methods may be called at any time, by many, and
// repeated.
type Bot interface {
	// Wait returns when the bot's process has ended and nothing of it is left:
	// no process and no cgroup. It returns nil when the bot ended with exit code
	// 0, and an *ExitError when it did not.
	Wait() error
	// Drain tells the bot to finish its task and to end: by the drain file
	// Config.DrainFile, and by one SIGTERM. It does not wait for that.
	Drain() error
	// TerminateOrKill sends SIGTERM twice, a second apart, which makes a bot
	// cancel its task and end, and returns when Wait does. After the grace period
	// everything that it started is killed.
	TerminateOrKill() error
}

// Config is what a bot is started with.
type Config struct {
	// BotID is the full id of the bot.
	BotID string
	// WorkDirectory is the bot's directory. It must exist, and belong to no
	// other bot. Files beside it, in its parent, hold the bot's output
	// (WorkDirectory + ".log") and tell it to drain (WorkDirectory + ".drain").
	WorkDirectory string
	// Resources limit the bot and everything that it starts: CPU, memory,
	// pids, block I/O, huge pages, and files of cgroup v2 by name. nil = no
	// limits. A limit that this host cannot keep is an error of Start.
	Resources *specs.LinuxResources
	// PythonVersion is the interpreter of a bot whose code is no executable
	// but a zip; "" = python3.
	PythonVersion string

	// Env is added to the bot's environment, "K=V"; it wins over Starter.Env.
	Env []string
	// Grace is the time between the order to terminate and the kill; 0 =
	// GraceInterval.
	Grace time.Duration
	// Admit is asked right before the bot's process is started, when its code is
	// there; its error is that of Start. nil = the bot may start.
	Admit func() error
}

// DrainFile is the path of the file that tells the bot to drain.
func (c Config) DrainFile() string { return c.WorkDirectory + ".drain" }

// LogFile is the path of the bot's standard output and error.
func (c Config) LogFile() string { return c.WorkDirectory + ".log" }

// ExitError is the end of a bot with another exit code than 0, or by a signal.
type ExitError struct {
	BotID string
	Code  int // −N when signal N killed it
}

func (e *ExitError) Error() string {
	if e.Code < 0 {
		return fmt.Sprintf("bot %s was killed by signal %d", e.BotID, -e.Code)
	}
	return fmt.Sprintf("bot %s ended with exit code %d", e.BotID, e.Code)
}

// process is a Bot.
type process struct {
	cfg    Config
	proc   *proc.Process
	place  place  // nil = a process group only
	forget func() // called when nothing is left of it
	log    *slog.Logger
	done   chan struct{} // closed when nothing is left of it
	err    error         // of Wait; set when done is closed

	mu      sync.Mutex
	drained bool // SIGTERM was sent
}

// place is what holds everything that a bot starts: a *proc.Place.
type place interface {
	Kill(limit time.Duration) error
	Remove() error
}

// follow waits for the end of the bot and clears away what is left. Until that
// is done the bot has not ended: who waits for that may start another one, or
// give its device away. A task does not outlive its bot.
func (b *process) follow() {
	defer close(b.done)
	st := b.proc.Wait()
	if st.Err != nil {
		b.err = fmt.Errorf("wait for bot %s: %w", b.cfg.BotID, st.Err)
	} else if st.Code != 0 {
		b.err = &ExitError{BotID: b.cfg.BotID, Code: st.Code}
	}
	if b.place != nil {
		b.clearAway(b.place)
	}
	b.forget()
}

// clearAway clears a place until nothing of it is left.
func (b *process) clearAway(pl place) {
	pause := backoff.Exponential{Max: time.Minute}
	for {
		err := clear(pl)
		if err == nil {
			return
		}
		b.log.Warn("what a bot started is not gone, it is killed again", "bot", b.cfg.BotID, "err", err)
		_ = pause.Sleep(context.Background(), 0)
	}
}

// clear ends all processes of a place, and the place.
func clear(pl place) error {
	if err := pl.Kill(killLimit); err != nil {
		return err
	}
	return pl.Remove()
}

func (b *process) Wait() error {
	<-b.done
	return b.err
}

func (b *process) Drain() error {
	select {
	case <-b.done:
		return nil
	default:
	}
	if err := os.WriteFile(b.cfg.DrainFile(), nil, 0o644); err != nil {
		return fmt.Errorf("drain bot %s: %w", b.cfg.BotID, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drained { // a second one would stop its task
		return nil
	}
	if err := ignoreGone(b.proc.Terminate()); err != nil {
		return fmt.Errorf("drain bot %s: %w", b.cfg.BotID, err)
	}
	b.drained = true
	return nil
}

func (b *process) TerminateOrKill() error {
	b.mu.Lock()
	b.drained = true
	b.mu.Unlock()
	grace := b.cfg.Grace
	if grace == 0 {
		grace = GraceInterval
	}
	kill := time.NewTimer(grace)
	defer kill.Stop()
	second := time.NewTimer(again)
	defer second.Stop()
	_ = b.proc.Terminate() // what does not take it is killed
	pause := backoff.Exponential{Max: time.Minute}
	for {
		select {
		case <-b.done:
			return nil
		case <-second.C:
			_ = b.proc.Terminate()
		case <-kill.C:
			if err := b.kill(); err != nil {
				b.log.Warn("bot not killed, it is tried again", "bot", b.cfg.BotID, "err", err)
			}
			kill.Reset(pause.Next())
		}
	}
}

// kill ends everything of the bot at once. Its end is then noticed by follow.
func (b *process) kill() error {
	if b.place == nil {
		return ignoreGone(b.proc.Kill())
	}
	if err := b.place.Kill(killLimit); err != nil {
		return errors.Join(err, ignoreGone(b.proc.Kill()))
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	return err
}

// removeStale removes the drain file of an earlier bot.
func removeStale(c Config) error {
	if err := os.Remove(c.DrainFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
