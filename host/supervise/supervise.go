// Package supervise keeps a fixed set of bot processes alive on this computer.
//
// A bot is a process of its own, in a process group of its own: it outlives
// its supervisor, even one that was killed, together with its task and its
// buffers. The next supervisor finds it by its lock file and watches it on
// instead of starting a second one (decisions.md 2 and 4).
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/proc"
)

// LockFile is the name of a bot's lock in its directory: while the bot lives
// it holds a flock on it, and its content is the bot's process id.
// spec/bot.md §1.6.
const LockFile = "swarming.lck"

// Bot is one bot to keep alive.
type Bot struct {
	ID  string   // for the log
	Dir string   // the bot's directory, absolute; no two bots share one
	Env []string // the bot's whole environment, "K=V"

	// Retired bots are not started: one that still runs is asked to drain.
	Retired bool

	// Prepare brings the bot's executable in Dir up to date and returns its
	// path. It is called before each start.
	Prepare func() (exe string, err error)

	// Ended reports whether the bot took leave before its process ended, so
	// that it is not started again. It is asked where the exit code cannot be
	// known, because an earlier supervisor started the bot; nil = it did not.
	Ended func() bool
}

// Options are what a Supervisor may do without.
type Options struct {
	Log *slog.Logger // nil discards

	// Pauses between restarts; 0 = 100 ms and 30 s. A bot that lived for
	// Steady (0 = 10 s) starts over with the shortest.
	MinPause, MaxPause, Steady time.Duration
}

// Supervisor keeps bots alive until it is told to drain or stop them. Its
// methods may be called at once by many; Run once.
type Supervisor struct {
	bots []*keeper
	opts Options
	log  *slog.Logger

	mu     sync.Mutex
	ending ending
	ended  chan struct{} // closed by the first Drain or Stop
}

// ending is how far a supervisor has come towards its end.
type ending int

const (
	keeping  ending = iota // ended bots are started again
	draining               // bots finish what they run
	stopping               // bots cancel what they run
	killing                // bots are killed
)

// New returns a supervisor that does nothing before Run.
func New(bots []Bot, opts Options) *Supervisor {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Steady == 0 {
		opts.Steady = 10 * time.Second
	}
	s := &Supervisor{opts: opts, log: opts.Log, ended: make(chan struct{})}
	for _, b := range bots {
		s.bots = append(s.bots, &keeper{Bot: b, s: s})
	}
	return s
}

// Run keeps the bots alive. It returns nil when no bot is left to keep: all
// have ended on request, by Drain or Stop or, each by itself, by a signal or a
// termination task. When ctx ends it returns at once and leaves the bots
// running.
func (s *Supervisor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, k := range s.bots {
		wg.Go(func() { k.keep(ctx) })
	}
	wg.Wait()
	return ctx.Err()
}

// Drain asks every bot to finish what it runs and to end; none is started
// again. It does not wait: Run returns when they have ended.
func (s *Supervisor) Drain() { s.end(draining) }

// Stop asks every bot to cancel what it runs and to end, see Drain.
func (s *Supervisor) Stop() { s.end(stopping) }

// Kill kills every bot, see Drain. What a bot runs ends with it.
func (s *Supervisor) Kill() { s.end(killing) }

func (s *Supervisor) end(how ending) {
	s.mu.Lock()
	if s.ending == keeping {
		close(s.ended)
	}
	if s.ending < how {
		s.ending = how
	}
	s.mu.Unlock()
	for _, k := range s.bots {
		k.signal(how)
	}
}

func (s *Supervisor) isEnding() ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// Has reports whether the bot is to be kept and has a process.
func (s *Supervisor) Has(id string) bool {
	for _, k := range s.bots {
		if k.ID == id && !k.Retired {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.proc != nil
		}
	}
	return false
}

// process is what a keeper needs of a bot's process, its child or not.
type process interface {
	pid() int
	// wait returns when the process has ended, or with ctx's error. clean
	// says that it ended with exit code 0: somebody asked for that.
	wait(ctx context.Context) (clean bool, err error)
	signal(how ending) error
	close()
}

// keeper keeps one bot.
type keeper struct {
	Bot
	s *Supervisor

	mu   sync.Mutex
	proc process // nil between two processes
}

// keep looks after the bot until it is told otherwise or ctx ends.
func (k *keeper) keep(ctx context.Context) {
	pause := backoff.Exponential{Min: k.s.opts.MinPause, Max: k.s.opts.MaxPause}
	log := k.s.log.With("bot", k.ID)
	for ctx.Err() == nil {
		p, err := k.find()
		switch {
		case err == nil && p != nil:
			log.InfoContext(ctx, "bot adopted", "pid", p.pid())
		case err == nil && (k.Retired || k.s.isEnding() > keeping):
			return
		case err == nil:
			if p, err = k.start(); err == nil {
				log.InfoContext(ctx, "bot started", "pid", p.pid())
			}
		}
		if err != nil {
			log.WarnContext(ctx, "bot cannot be started", "err", err)
			if k.s.isEnding() > keeping && !errors.Is(err, errHeld) {
				return
			}
			k.rest(ctx, &pause)
			continue
		}
		started := time.Now()
		clean, err := k.watch(ctx, p)
		if _, known := p.(child); !known && err == nil && k.Ended != nil {
			clean = k.Ended()
		}
		switch {
		case err != nil: // ctx ended, the bot goes on
			return
		case k.Retired || k.s.isEnding() > keeping:
			log.InfoContext(ctx, "bot ended")
			return
		case clean:
			log.InfoContext(ctx, "bot ended on request; it starts again with the next skep up")
			return
		}
		log.WarnContext(ctx, "bot ended unexpectedly, it is started again", "pid", p.pid(), "took", time.Since(started))
		if time.Since(started) >= k.s.opts.Steady {
			pause.Reset()
		}
		k.rest(ctx, &pause)
	}
}

// rest pauses before the next try, or until the end is asked for.
func (k *keeper) rest(ctx context.Context, pause *backoff.Exponential) {
	if k.s.isEnding() > keeping { // waiting for a directory that another holds
		_ = pause.Sleep(ctx, 0)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-k.s.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	_ = pause.Sleep(ctx, 0)
}

// watch waits for the end of p.
func (k *keeper) watch(ctx context.Context, p process) (clean bool, err error) {
	defer p.close()
	k.mu.Lock()
	k.proc = p
	k.mu.Unlock()
	how := k.s.isEnding()
	if k.Retired {
		how = max(how, draining)
	}
	if how > keeping { // asked for before it was visible
		k.signal(how)
	}
	defer func() {
		k.mu.Lock()
		k.proc = nil
		k.mu.Unlock()
	}()
	return p.wait(ctx)
}

func (k *keeper) signal(how ending) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proc == nil {
		return
	}
	if err := k.proc.signal(how); err != nil {
		k.s.log.Warn("bot does not take the signal", "bot", k.ID, "pid", k.proc.pid(), "err", err)
	}
}

// errHeld says that somebody holds the bot's lock who is not the bot.
var errHeld = errors.New("its directory is in use")

// find returns the bot's process if it runs already, nil if it does not.
func (k *keeper) find() (process, error) {
	pid, held, err := lockHolder(filepath.Join(k.Dir, LockFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !held:
		return nil, nil
	case pid == 0:
		return nil, fmt.Errorf("%w: %s is locked and names no process yet", errHeld, LockFile)
	}
	return openProcess(pid, k.Dir)
}

// start starts the bot as a child.
func (k *keeper) start() (process, error) {
	exe, err := k.Prepare()
	if err != nil {
		return nil, err
	}
	logs := filepath.Join(k.Dir, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(logs, "bot_stdout.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p, err := proc.Start(&proc.Cmd{
		Path:     exe,
		Args:     []string{exe, "start_bot"},
		Env:      k.Env,
		Dir:      k.Dir,
		Files:    []*os.File{nil, out, out},
		NewGroup: true,
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", exe, err)
	}
	return child{p}, nil
}

// child is a bot that this process started.
type child struct{ p *proc.Process }

func (c child) pid() int { return c.p.Pid }
func (c child) close()   {}

func (c child) wait(ctx context.Context) (bool, error) {
	select {
	case <-c.p.Done():
		status := c.p.Wait()
		return status.Code == 0 && status.Err == nil, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (c child) signal(how ending) error {
	err := signalChild(c.p, how)
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	return err
}
