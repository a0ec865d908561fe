// Package bot is one bot: it shakes hands with its server, polls for work,
// hands each task to a runner, and reports what goes wrong. It ends by being
// drained, stopped or terminated (decisions.md 1, 2).
//
// The package starts no process itself and knows no command line; botcli wires
// it. spec bot.md §1.9, §8.4.
package bot

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot/hook"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/runner"
)

// Runner runs tasks, one at a time. *runner.Starter is one.
type Runner interface {
	Prepare(context.Context) error // makes the next Run start sooner
	Run(context.Context, runner.Job) (runner.Summary, error)
	Close() error                     // ends what Prepare started
	Method() string                   // how a task's processes are held together
	Isolation() (kind, reason string) // what keeps tasks from the bot; reason, why it is "none"
}

// Machine says what the bot runs on. *platform.Platform is one.
type Machine interface {
	Dimensions() map[string][]string // a new map at each call
	State() map[string]any           // a new map at each call
	Ready() <-chan struct{}          // closed when both are complete
}

// Config is what a bot is made of.
type Config struct {
	ID      string
	Dir     string // bot directory, absolute
	Version string // digest of the bot's code, what the server compares
	Server  string // base URL
	Client  *botapi.Client
	Headers func() map[string]string // authentication headers for a task's calls; nil = none
	RootCAs []byte                   // PEM, for a task's calls; nil = the system's
	Runner  Runner
	Machine Machine

	Hooks Hooks // the administrator's functions; nil = there are none
	SetUp bool  // setup_bot is called before all else
	Auth  *Auth // where Headers come from, when hooks may give them; nil = Headers stand alone
	// Output runs a program for the recovery ladder; nil = none is run.
	Output func(ctx context.Context, name string, args ...string) ([]byte, error)

	Wait       time.Duration // how long the server may hold a poll; 0 = 50 s, negative = not at all
	StartAhead bool          // prepare the next run while idle

	// Restart replaces this process by a new one of the same code. It returns
	// only when that did not work; nil = it cannot be done.
	Restart func(reason string) error
	// Reboot restarts the host and waits until that happens. It returns only
	// when it did not happen, or ctx ended; nil = this bot must not.
	Reboot func(ctx context.Context, reason string) error
	// Credential is what the bot shows to the server; nil = nothing of its own.
	Credential *Credential
	// ClientCert is shown in TLS; nil = none. Client shows it already; this is for
	// a task's calls.
	ClientCert *ClientCert
	// Code is the bot's own code, for updates; nil = it is never replaced.
	Code Code
	// Become replaces this process by one that runs exe as this bot. It returns
	// only when that did not work.
	Become func(exe, reason string) error
	// Clean makes the bot's directory tidy, once, after the first handshake; nil
	// = nothing to do. Each error becomes an event.
	Clean func() []error

	Log *slog.Logger
	Now func() time.Time // nil = time.Now
}

// Bot is one bot. Drain, Stop and Status may be called from any goroutine.
type Bot struct {
	cfg     Config
	log     *slog.Logger
	session string // identity of this process, spec bot.md §2.6
	out     *outbox

	idle      context.Context // ends when no new work may be taken
	stopIdle  context.CancelFunc
	hard      context.Context // ends when work in hand must end too
	stopHard  context.CancelFunc
	preparing chan struct{} // closed when the last Prepare returned; nil before the first
	pollErrs  backoff.Exponential
	rush      backoff.Exponential // for servers that neither wait nor let us sleep
	badCmds   backoff.Exponential
	passed    context.CancelFunc // ends the trial of new code; nil when there is none

	mu        sync.Mutex
	assigned  map[string][]string // dimensions that the server sets
	hooks     hooksID
	ladder    []hook.Rung   // recovery, as the fleet's configuration says
	streak    int           // idle polls in a row
	illness   string        // quarantine until restart
	drainFile bool          // the drain file is there
	news      chan struct{} // closed, and replaced, when that changes
	draining  string        // why no new work is taken, "" while it is
	task      string        // run id in hand
	lastGood  map[string][]string
	polled    time.Time // last answered poll
	turned    time.Time // when the loop last began a turn
	costHour  float64   // USD, as last told to the server

	hk          hooked
	quarantined string // why, as last told to the server; "" = it is not
}

type hooksID struct {
	Name     string `json:"name"`
	Revision string `json:"revision"`
}

// errComplete ends a poll that was sent before the machine was fully known.
var errComplete = errors.New("the machine's dimensions are complete now")

// New returns a bot that has done nothing yet.
func New(cfg Config) *Bot {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Wait == 0 {
		cfg.Wait = 50 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	b := &Bot{
		cfg: cfg, log: cfg.Log, session: newSession(), news: make(chan struct{}),
		pollErrs: backoff.Exponential{Min: 100 * time.Millisecond, Max: 20 * time.Second},
		rush:     backoff.Exponential{Min: 20 * time.Millisecond, Max: 5 * time.Second},
		badCmds:  backoff.Exponential{Min: time.Second, Max: 5 * time.Minute},
	}
	b.hard, b.stopHard = context.WithCancel(context.Background())
	b.idle, b.stopIdle = context.WithCancel(b.hard)
	b.out = newOutbox(b)
	b.hk.settings = hook.DefaultSettings()
	if cfg.Auth != nil {
		cfg.Auth.mu.Lock()
		cfg.Auth.bot = b
		cfg.Auth.mu.Unlock()
	}
	return b
}

// newSession is unique for this process. spec bot.md §1.9.
func newSession() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return fmt.Sprintf("%s/%d", hex.EncodeToString(b[:]), os.Getpid())
}

// newUUID returns a random UUID in its canonical form.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// Drain takes no new work; Run returns when the task in hand is over. why is
// told to the server. Repeating it does nothing.
func (b *Bot) Drain(why string) {
	b.mu.Lock()
	if b.draining == "" {
		b.draining = why
		b.log.Info("draining", "reason", why)
	}
	deadline := time.Duration(b.hk.settings.Drain.DeadlineSecs * float64(time.Second))
	b.mu.Unlock()
	b.stopIdle()
	if deadline > 0 { // else the task's own limits; decisions.md 2
		t := time.AfterFunc(deadline, func() { b.Stop("the drain took longer than get_settings allows") })
		context.AfterFunc(b.hard, func() { t.Stop() })
	}
}

// Stop ends the task in hand, which then is BOT_DIED, and the bot.
func (b *Bot) Stop(why string) {
	b.Drain(why)
	b.log.Info("stopping", "reason", why)
	b.stopHard()
}

// Run is the bot's whole life. It returns nil after a drain, a stop (also by
// ctx) or a termination, and leaves no goroutine or process behind.
func (b *Bot) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { b.Stop("the bot's program ends") })()
	defer b.stopHard()
	defer b.closeRunner()
	b.prove()
	b.lookForDrain()
	watched := make(chan struct{})
	go func() { defer close(watched); b.watchDrain() }()
	defer func() { b.stopIdle(); <-watched }()
	b.begin()
	if err := b.handshake(); err != nil {
		return nil //nolint:nilerr // told to end before it began
	}
	b.clean()
	sending, stopSending := context.WithCancel(b.hard)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		pause := backoff.Exponential{Min: time.Second, Max: 5 * time.Minute}
		for sending.Err() == nil {
			b.survive(sending, &pause, func() { b.out.run(sending) })
		}
	}()
	for b.idle.Err() == nil {
		b.survive(b.idle, &b.badCmds, b.step)
	}
	stopSending()
	<-sent
	b.leave(b.endReason())
	b.closeHooks()
	return nil
}

func (b *Bot) endReason() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.draining == "" {
		return "the bot ends"
	}
	return b.draining
}

func (b *Bot) closeRunner() {
	b.waitPrepared()
	if err := b.cfg.Runner.Close(); err != nil {
		b.log.Warn("the prepared runner did not end", "err", err)
	}
}

func (b *Bot) clean() {
	if b.cfg.Clean == nil {
		return
	}
	for _, err := range b.cfg.Clean() {
		b.Error(err.Error())
	}
}

// Error reports text as a bot_error event; the same first line at most once
// per 10 minutes. spec bot.md §8.7.
func (b *Bot) Error(text string) { b.out.fail(text) }

// attributes is what the bot says of itself now.
func (b *Bot) attributes() botapi.Attributes {
	dims, state := b.lookAround()
	dims["id"] = []string{b.cfg.ID}

	b.mu.Lock()
	defer b.mu.Unlock()
	dims, state, own, machine := b.overlay(dims, state)
	dimsIll := b.hk.dimsIll
	if b.hooks.Name != "" {
		dims["bot_config"] = []string{b.hooks.Name}
	}
	maps.Copy(dims, b.assigned)
	if err := skep.Dimensions(dims).Validate(); err != nil {
		dimsIll = "dimensions: " + err.Error()
		if b.lastGood != nil {
			dims = b.lastGood
		}
	} else {
		b.lastGood = dims
	}
	b.quarantined = ""
	if why := firstReason(own, b.illness, cmp.Or(dimsIll, b.hk.cacheIll), machine); why != nil {
		state["quarantined"], b.quarantined = why, reasonText(why)
	}
	b.costHour = costOf(state["cost_usd_hour"])
	state["bot_config"] = b.hooks
	state["sleep_streak"] = b.streak
	switch {
	case b.draining != "":
		state["maintenance"] = "draining: " + b.draining
	case b.drainFile:
		state["maintenance"] = "draining: the bot's directory holds a file " + DrainFile
	}
	b.addOurs(state)
	data, err := json.Marshal(state)
	if err != nil {
		// A hook's value that JSON cannot hold must not silence the bot.
		data, _ = json.Marshal(map[string]any{
			"quarantined": "state: " + err.Error(), "sleep_streak": b.streak, "running_time": state["running_time"],
		})
	}
	b.hk.told = data
	return botapi.Attributes{Dimensions: dims, State: data, Version: b.cfg.Version}
}

// lookAround asks the machine. If that breaks, the bot is ill and can still
// poll for the version that mends it. rows B8, B37.
func (b *Bot) lookAround() (dims map[string][]string, state map[string]any) {
	defer func() {
		if r := recover(); r != nil {
			text := panicText(r, debug.Stack())
			dims, state = map[string][]string{}, map[string]any{"quarantined": text, "running_time": 0}
			b.mu.Lock()
			maps.Copy(dims, b.lastGood)
			b.mu.Unlock()
			b.Error(text)
		}
	}()
	return b.cfg.Machine.Dimensions(), b.cfg.Machine.State()
}

func (b *Bot) fallIll(reason string) {
	b.mu.Lock()
	b.illness = reason
	b.mu.Unlock()
	b.Error(reason)
}
