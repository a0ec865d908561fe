package runner

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/proc"
)

// taskRunner sees one task through.
type taskRunner struct {
	setup
	Job
	manifest *botapi.Manifest
	log      *slog.Logger
	iso      *isolated
	isoErr   error // why there is none
	api      caller
	rep      *reporter
	timing   timing
	say      func(runnerNews) error // to bot_main

	began     time.Time         // monotonic, unlike ReceivedAt
	stopped   chan string       // why the task must stop; capacity 1, first reason wins
	announced chan announcement // capacity 1; how the announcement went
	delivered chan delivery     // capacity 1; how the update that was given to bot_main went
	session   string            // the newest token that bot_main told of, "" = none
	lastIO    atomic.Int64
	headers   atomic.Pointer[map[string]string]
	renewed   atomic.Pointer[string] // the newest session of an answer to us, nil = none yet
	handed    atomic.Bool            // run_isolated has a job whose headers must stay fresh
	tokens    *tokenServer           // nil when the task has no account

	giveUp   atomic.Pointer[context.CancelFunc] // ends the announcement
	finished atomic.Bool                        // all is reported: our parent need not listen any more
}

// watchParent ends everything when bot_main dies: its words end only then.
func (r *taskRunner) watchParent(words *json.Decoder) {
	for {
		var w runnerWord
		if words.Decode(&w) != nil {
			break
		}
		if w.Headers != nil {
			r.headers.Store(&w.Headers)
			r.passHeaders(w.Headers)
		}
		if w.Announced != nil {
			select {
			case r.announced <- *w.Announced:
			default:
			}
		}
		if w.Delivered != nil {
			select {
			case r.delivered <- *w.Delivered:
			default:
			}
		}
	}
	if r.finished.Load() {
		return
	}
	r.log.Error("bot_main is gone; killing the task")
	if r.iso != nil {
		_ = r.iso.p.Kill()
	}
	_ = r.Place.Kill(time.Second)
	_ = proc.SweepChildren(time.Second)
	os.Exit(1)
}

// run is spec bot.md §4.2 with the failures of §4.8.
func (r *taskRunner) run(term <-chan os.Signal) (s Summary) {
	s.Session = r.Session
	m, err := parseManifest(r.Manifest)
	r.manifest = m
	r.Place.Label = taskLabel(m.TaskID)
	r.stopped = make(chan string, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer r.end()
	// What run_isolated prepares is on the way to the command, a client of ours
	// is not; only tokens need one.
	text, client := "", (*botapi.ClientError)(nil)
	var prepErr error
	early := false
	if err == nil && r.isoErr == nil {
		text, client = unsupported(m)
		if early = client == nil && len(accountsOf(m)) == 0; early {
			prepErr = r.prepare()
		}
	}
	if cerr := r.connect(); cerr != nil {
		s.InternalError = errors.Join(err, cerr).Error()
		return s
	}
	defer func() { s.Session = cmp.Or(r.session, r.api.Session()) }()
	r.rep = &reporter{
		api: r.api, task: m.TaskID, spool: newSpool(filepath.Join(r.Dir, "output")), timing: r.timing, log: r.log,
		cost: r.cost, wake: make(chan struct{}, 1), stop: r.requestStop, renew: r.renew,
	}
	if r.Updates {
		r.rep.relay = r.relay
	}
	defer r.rep.spool.close()
	// A stop while nothing but the report is left gives the report some seconds.
	stopCtx, stopNow := context.WithCancel(ctx)
	go func() {
		for range term {
			select {
			case r.stopped <- stoppedBySignal:
			default:
			}
			if f := r.giveUp.Load(); f != nil {
				(*f)() // the task has not begun: no reason to wait for a server
			}
			time.AfterFunc(finalGrace, stopNow)
		}
	}()
	switch {
	case err != nil:
		return r.fault(stopCtx, s, err.Error(), nil)
	case r.isoErr != nil:
		return r.fault(stopCtx, s, r.isoErr.Error(), nil)
	}
	if client != nil {
		return r.fault(stopCtx, s, text, client)
	}
	if !early {
		prepErr = r.prepare()
	}
	if prepErr != nil {
		return r.fault(stopCtx, s, prepErr.Error(), nil)
	}
	canceled, err := r.announce(stopCtx)
	if err != nil && len(r.stopped) > 0 {
		time.AfterFunc(finalGrace, stopNow)
		return r.fault(stopCtx, s, "the bot was stopped before the task began", nil)
	}
	if err != nil {
		s.InternalError = "announce the task: " + err.Error()
		return s
	}
	if canceled {
		code := int64(-1)
		s.ExitCode = &code
		if err := r.rep.final(stopCtx, &botapi.TaskUpdate{Canceled: true}); err != nil {
			s.InternalError = "report the cancellation: " + err.Error()
		}
		return s
	}
	return r.execute(stopCtx, s)
}

const (
	stoppedBySignal = "task_runner was told to stop"
	finalGrace      = 10 * time.Second // what a stop leaves an undelivered report
)

func (r *taskRunner) connect() error {
	if r.api != nil {
		return nil
	}
	botID := r.manifest.BotID
	if botID == "" {
		botID = r.BotID
	}
	opt := botapi.Options{
		Server: taskServer(r.manifest.Host, r.Server), BotID: botID, Dir: r.CookieDir, RootCAs: pool(r.RootCAs), Log: r.log,
		Headers: r.authHeaders,
	}
	if len(r.ClientCert) > 0 {
		opt.Certificate = func() (*tls.Certificate, error) {
			pair, err := tls.X509KeyPair(r.ClientCert, r.ClientKey)
			if err != nil {
				return nil, errors.New("the bot's client certificate cannot be used")
			}
			return &pair, nil
		}
	}
	c, err := botapi.NewClient(opt)
	if err != nil {
		return err
	}
	c.SetSession(r.Session)
	r.api = c
	return nil
}

// cost is the hourly cost for the time since the task was received.
func (r *taskRunner) cost() *float64 {
	c := max(0, r.CostUSDHour*r.total().Hours())
	return &c
}

func (r *taskRunner) requestStop(reason string) {
	if reason == "" {
		reason = "the server wants it stopped"
	}
	select {
	case r.stopped <- reason:
	default:
	}
}

// prepare lets run_isolated set up everything while we announce the task.
func (r *taskRunner) prepare() error {
	m := r.manifest
	auth, err := r.serveTokens()
	if err != nil {
		return err
	}
	context, err := taskContext(r.Context, m, r.Server, auth)
	if err != nil {
		return err
	}
	agent, err := agentContext(m)
	if err != nil {
		return err
	}
	job := &isolatedJob{
		TaskID:  m.TaskID,
		Command: m.Command, RelativeCwd: m.RelativeCwd, HardTimeout: m.HardTimeout, GracePeriod: m.GracePeriod,
		Environ: r.environ(), Env: m.Env, EnvPrefixes: m.EnvPrefixes, Context: context, Agent: agent,
		BotFile: r.BotFile, Caches: m.Caches, CAS: r.storage(), Outputs: m.Outputs, Pool: r.Pool,
	}
	if c := m.Containment; c != nil {
		job.MaxProcesses, job.MaxMemory = c.LimitProcesses, c.LimitTotalCommittedMemory
	}
	if err := json.NewEncoder(r.iso.words).Encode(job); err != nil {
		return fmt.Errorf("run_isolated takes no job: %w", err)
	}
	if job.CAS != nil && job.CAS.Own {
		r.handed.Store(true)
		if now := r.authHeaders(); !maps.Equal(r.storageHeaders(now), job.CAS.Headers) {
			r.passHeaders(now) // they came meanwhile
		}
	}
	return nil
}

// serveTokens starts the token server of a task that has accounts.
func (r *taskRunner) serveTokens() (*localAuth, error) {
	accounts := accountsOf(r.manifest)
	api, ok := r.api.(tokenCaller)
	if len(accounts) == 0 || !ok {
		return nil, nil
	}
	email, _ := strings.CutPrefix(r.manifest.BotAuthenticatedAs, "user:")
	if !strings.HasPrefix(r.manifest.BotAuthenticatedAs, "user:") {
		email = ""
	}
	r.tokens = &tokenServer{
		api: api, task: r.manifest.TaskID, accounts: accounts, botEmail: email,
		headers: r.authHeaders, log: r.log, now: time.Now,
	}
	return r.tokens.start()
}

// authHeaders are the newest headers that bot_main gave us.
func (r *taskRunner) authHeaders() map[string]string { return *r.headers.Load() }

// environ is the task's environment up to item 1 of spec bot.md §1.4.
func (r *taskRunner) environ() []string {
	e := newEnviron(r.Environ)
	e.put("SWARMING_HEADLESS", "1")
	e.put("SWARMING_BOT_ID", r.manifest.BotID)
	e.put("SWARMING_TASK_ID", r.manifest.TaskID)
	e.put("SWARMING_SERVER", r.Server)
	e.put("CIPD_ARCHITECTURE", cipdArch())
	for k, v := range r.Job.Env {
		e.set(k, v)
	}
	return e.list()
}

// announce makes sure that the server knows that the task begins here and must
// not be given to another bot any more.
func (r *taskRunner) announce(ctx context.Context) (canceled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timing.announceFor)
	defer cancel()
	r.giveUp.Store(&cancel)
	if len(r.stopped) > 0 {
		cancel()
	}
	defer r.giveUp.Store(nil)
	if r.Announced {
		select {
		case a := <-r.announced:
			if a.Stopped {
				r.requestStop(stoppedBySignal)
				return false, errors.New(stoppedBySignal)
			}
			if a.Done {
				r.rep.watched.Store(a.Watched)
				return a.Canceled, nil
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	err = r.persist(ctx, func() error {
		res, err := r.rep.call(ctx, &botapi.TaskUpdate{TaskID: r.manifest.TaskID, CostUSD: r.cost()})
		if err == nil {
			canceled = res.MustStop
			r.rep.watched.Store(res.Watched)
		}
		return err
	})
	return canceled, err
}

// persist repeats f until it works, is refused, or ctx ends.
func (r *taskRunner) persist(ctx context.Context, f func() error) error {
	pause := r.timing.retryMin
	for {
		err := f()
		if err == nil || !botapi.IsTransient(err) {
			return err
		}
		r.log.Warn("no answer; trying again", "task", r.manifest.TaskID, "err", err)
		if !sleepUnless(ctx, nil, max(pause, retryAfter(err))) {
			return err
		}
		pause = min(2*pause, r.timing.retryMax)
	}
}

// now is monotonic.
func (r *taskRunner) now() time.Duration { return time.Since(r.began) }

// total is the time since the task was received.
func (r *taskRunner) total() time.Duration { return r.began.Sub(r.ReceivedAt) + r.now() }
