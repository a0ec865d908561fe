package runner

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/logfile"
	"github.com/skepdev/skep/internal/proc"
)

// TaskRunnerMain is the subcommand task_runner. It starts run_isolated, waits
// on standard input for one task, sees it through and exits: 0 when the task
// was handled, even if it failed. Its working directory is the bot's.
func TaskRunnerMain([]string) int {
	proc.KeepDescriptors()
	proc.Undumpable()
	_ = proc.Adopt() // what a killed run_isolated leaves comes to us
	dir, err := os.Getwd()
	if err != nil {
		fmt.Fprintln(os.Stderr, "task_runner:", err)
		return 1
	}
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "task_runner:", err)
		return 1
	}
	iso, isoErr := startIsolated(exe)
	term := catchSignals()
	words := json.NewDecoder(os.Stdin)
	var u setup
	if code, ok := nextWord(words, &u, "task_runner"); !ok {
		iso.abandon()
		return code
	}
	if iso != nil {
		isoErr = json.NewEncoder(iso.words).Encode(u)
	}
	log, closeLog := openLog(filepath.Join(dir, "logs", "task_runner.log"))
	defer closeLog()
	var job Job
	if code, ok := awaitWord(words, &job, "task_runner", u.Ahead, warmRunner); !ok {
		iso.abandon()
		return code
	}
	for len(term) > 0 { // what came while there was nothing to stop
		<-term
	}
	news := json.NewEncoder(os.NewFile(runnerNewsFD, "news"))
	r := &taskRunner{
		setup: u, Job: job, log: log, iso: iso, isoErr: isoErr, timing: defaultTiming, began: time.Now(),
		ended: func() { _ = news.Encode(runnerNews{Ended: true}) },
	}
	if r.ReceivedAt.IsZero() || r.ReceivedAt.After(r.began) {
		r.ReceivedAt = r.began
	}
	r.headers.Store(&job.Headers)
	go r.watchParent(words)
	s := r.run(term)
	if err := writeJSON(filepath.Join(r.Dir, "task_runner_out.json"), s); err != nil {
		log.Error("task_runner_out.json not written", "err", err)
	}
	r.finished.Store(true)
	if err := news.Encode(runnerNews{Summary: &summaryOnWire{
		ExitCode: s.ExitCode, HardTimeout: s.HardTimeout, IOTimeout: s.IOTimeout,
		InternalError: s.InternalError, Reported: s.InternalErrorReported, Session: s.Session,
	}}); err != nil {
		return 1
	}
	return 0
}

// nextWord reads one word of our parent into v. When there is none it says
// with which code to exit: 0 when we are not needed.
func nextWord(words *json.Decoder, v any, who string) (code int, ok bool) {
	err := words.Decode(v)
	if err == nil {
		return 0, true
	}
	if errors.Is(err, io.EOF) {
		return 0, false
	}
	fmt.Fprintln(os.Stderr, who+": a word does not decode:", err)
	return 1, false
}

// awaitWord is nextWord for a word that may take hours: when it does not come
// soon, warm gets the process ready for it. A busy bot, whose next job is there
// at once, has better uses for the processor.
func awaitWord(words *json.Decoder, v any, who string, ahead bool, warm func()) (code int, ok bool) {
	if !ahead {
		return nextWord(words, v, who)
	}
	came := make(chan struct{})
	go func() {
		defer close(came)
		code, ok = nextWord(words, v, who)
	}()
	t := time.NewTimer(idleBeforeWarm)
	defer t.Stop()
	select {
	case <-came:
		return code, ok
	case <-t.C:
		warm()
	}
	<-came
	return code, ok
}

// idleBeforeWarm tells a bot with a queue of work from one without.
const idleBeforeWarm = 20 * time.Millisecond

func openLog(path string) (*slog.Logger, func()) {
	f, err := logfile.Open(path)
	if err != nil {
		return slog.New(logfile.NewHandler(os.Stderr, slog.LevelInfo)), func() {}
	}
	return slog.New(logfile.NewHandler(f, slog.LevelDebug)), func() { _ = f.Close() }
}

// isolated is task_runner's side of run_isolated.
type isolated struct {
	p      *proc.Process
	words  *os.File // its standard input
	news   *os.File // what it says; nil where there is no descriptor for it
	output *os.File // what the task writes
}

func startIsolated(exe string) (iso *isolated, err error) {
	var open []*os.File
	defer func() {
		if err != nil {
			for _, f := range open {
				_ = f.Close()
			}
		}
	}()
	pipe := func() (r, w *os.File) {
		if err == nil {
			if r, w, err = os.Pipe(); err == nil {
				open = append(open, r, w)
			}
		}
		return r, w
	}
	wordsR, words := pipe()
	output, outputW := pipe()
	news, newsW := pipe()
	if err != nil {
		return nil, err
	}
	files := []*os.File{wordsR, outputW, os.Stderr}
	if runtime.GOOS != "windows" {
		files = append(files, newsW, os.NewFile(runnerLifeFD, "life"))
	}
	p, err := proc.Start(&proc.Cmd{
		Path: exe, Args: []string{exe, "run_isolated"}, Files: files, NewGroup: true,
		Env: append(os.Environ(), "GOMAXPROCS=1"),
	})
	if err != nil {
		return nil, fmt.Errorf("start run_isolated: %w", err)
	}
	for _, f := range []*os.File{wordsR, outputW, newsW} {
		_ = f.Close()
	}
	if runtime.GOOS == "windows" {
		_ = news.Close()
		news = nil
	}
	return &isolated{p: p, words: words, news: news, output: output}, nil
}

// abandon lets a run_isolated that got no job go.
func (iso *isolated) abandon() {
	if iso != nil {
		_ = iso.words.Close()
		iso.p.Wait()
	}
}

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
	ended    func() // the task's processes are gone; only the report is left

	began   time.Time   // monotonic, unlike ReceivedAt
	stopped chan string // why the task must stop; capacity 1, first reason wins
	lastIO  atomic.Int64
	headers atomic.Pointer[map[string]string]
	tokens  *tokenServer // nil when the task has no account

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
	if cerr := r.connect(); cerr != nil {
		s.InternalError = errors.Join(err, cerr).Error()
		return s
	}
	defer func() { s.Session = r.api.Session() }()
	r.rep = &reporter{
		api: r.api, task: m.TaskID, spool: newSpool(filepath.Join(r.Dir, "output")), timing: r.timing, log: r.log,
		cost: r.cost, wake: make(chan struct{}, 1), stop: r.requestStop,
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
	if text, client := unsupported(m); client != nil {
		return r.fault(stopCtx, s, text, client)
	}
	if err := r.prepare(); err != nil {
		return r.fault(stopCtx, s, err.Error(), nil)
	}
	canceled, err := r.announce(stopCtx)
	if err != nil && len(r.stopped) > 0 {
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
	var roots *x509.CertPool
	if len(r.RootCAs) > 0 {
		var err error
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		roots.AppendCertsFromPEM(r.RootCAs)
	}
	c, err := botapi.NewClient(botapi.Options{
		Server: taskServer(r.manifest.Host, r.Server), BotID: botID, Dir: r.CookieDir, RootCAs: roots, Log: r.log,
		Headers: r.authHeaders,
	})
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
	if len(m.Outputs) > 0 {
		r.log.Warn("outputs are not kept: this bot cannot upload them yet", "task", m.TaskID, "outputs", m.Outputs)
	}
	job := &isolatedJob{
		TaskID:  m.TaskID,
		Command: m.Command, RelativeCwd: m.RelativeCwd, HardTimeout: m.HardTimeout, GracePeriod: m.GracePeriod,
		Environ: r.environ(), Env: m.Env, EnvPrefixes: m.EnvPrefixes, Context: context, Agent: agent,
		BotFile: r.BotFile, Caches: m.Caches,
	}
	if err := json.NewEncoder(r.iso.words).Encode(job); err != nil {
		return fmt.Errorf("run_isolated takes no job: %w", err)
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

// announce tells the server that the task begins here and must not be given to
// another bot any more.
func (r *taskRunner) announce(ctx context.Context) (canceled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.timing.announceFor)
	defer cancel()
	r.giveUp.Store(&cancel)
	if len(r.stopped) > 0 {
		cancel()
	}
	defer r.giveUp.Store(nil)
	err = r.persist(ctx, func() error {
		res, err := r.api.TaskUpdate(ctx, &botapi.TaskUpdate{TaskID: r.manifest.TaskID, CostUSD: r.cost()})
		if err == nil {
			canceled = res.MustStop
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

// execute runs the announced task to its end and reports it.
func (r *taskRunner) execute(ctx context.Context, s Summary) Summary {
	news := make(chan isolatedNews, 2)
	if r.iso.news != nil {
		go func() {
			dec := json.NewDecoder(r.iso.news)
			for {
				var n isolatedNews
				if dec.Decode(&n) != nil {
					return
				}
				news <- n
			}
		}()
	} else {
		news <- isolatedNews{Started: true}
	}
	pumped := make(chan struct{})
	go func() { defer close(pumped); r.pump() }()
	r.word(isolatedWord{Go: true})

	live, endLive := context.WithCancel(ctx)
	over := make(chan struct{})
	reported, asked := make(chan struct{}), make(chan struct{})
	go func() { defer close(reported); r.rep.run(ctx, over) }()
	go func() { defer close(asked); r.rep.ask(live) }()

	why := r.watch(news)
	if !why.done {
		r.sweep()
	}
	r.drainPipe(pumped)
	r.ended()
	endLive()
	close(over)
	<-reported
	<-asked
	return r.conclude(ctx, s, why)
}

func (r *taskRunner) word(w isolatedWord) {
	if err := json.NewEncoder(r.iso.words).Encode(w); err != nil {
		r.log.Warn("run_isolated does not listen", "task", r.manifest.TaskID, "err", err)
	}
}

// endings of a task that run_isolated does not know of.
type ending struct {
	done      bool // run_isolated has cleaned up and left a result
	ioTimeout bool
	signal    bool   // we were told to stop: the bot goes away
	reason    string // why it was stopped; "" = it ended by itself
}

// watch waits for run_isolated to end, and makes it end when it must.
func (r *taskRunner) watch(news <-chan isolatedNews) (why ending) {
	m := r.manifest
	var ioTimer, hung <-chan time.Time
	stop := func(reason string) {
		if why.reason != "" {
			return // a second reason has no further effect
		}
		why.reason = reason
		r.log.Info("stopping the task", "task", m.TaskID, "reason", reason)
		r.word(isolatedWord{Stop: true})
		// One share of the grace period is the task's, one is for the rest.
		hung = time.After(time.Duration(2*m.GracePeriod)*time.Second + hungGrace)
	}
	limit := time.Duration(m.IOTimeout) * time.Second
	for {
		select {
		case <-r.iso.p.Done():
			why.done = r.lastWord(news)
			return why
		case n := <-news:
			if n.Done {
				why.done = true
				return why
			}
			if limit > 0 {
				r.lastIO.Store(int64(r.now()))
				ioTimer = time.After(limit)
			}
		case <-ioTimer:
			quiet := r.now() - time.Duration(r.lastIO.Load())
			if quiet < limit {
				ioTimer = time.After(limit - quiet)
				continue
			}
			ioTimer = nil
			if why.reason == "" {
				why.ioTimeout = true
				stop("no output for longer than io_timeout")
			}
		case reason := <-r.stopped:
			why.signal = why.signal || reason == stoppedBySignal
			stop(reason)
		case <-hung:
			r.log.Error("run_isolated hangs; killing it", "task", m.TaskID)
			_ = r.iso.p.Kill()
		}
	}
}

// lastWord reports whether run_isolated, which is gone, had said that it was
// done: the word may still be in the pipe.
func (r *taskRunner) lastWord(news <-chan isolatedNews) bool {
	if r.iso.news == nil {
		return false
	}
	late := time.After(100 * time.Millisecond)
	for {
		select {
		case n := <-news:
			if n.Done {
				return true
			}
		case <-late:
			return false
		}
	}
}

// hungGrace is what run_isolated gets beyond the grace periods to clean up.
const hungGrace = 30 * time.Second

// now is monotonic.
func (r *taskRunner) now() time.Duration { return time.Since(r.began) }

// total is the time since the task was received.
func (r *taskRunner) total() time.Duration { return r.began.Sub(r.ReceivedAt) + r.now() }

// sweep ends what run_isolated, had it been killed, would have left.
func (r *taskRunner) sweep() {
	if err := errors.Join(r.Place.Kill(sweepLimit), proc.SweepChildren(sweepLimit)); err != nil {
		r.log.Error("processes of the task survive", "task", r.manifest.TaskID, "err", err)
	}
}

const sweepLimit = 5 * time.Second

// pump takes the task's output as fast as it comes.
func (r *taskRunner) pump() {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.iso.output.Read(buf)
		if n > 0 {
			r.lastIO.Store(int64(r.now()))
			for !r.rep.spool.add(buf[:n], time.Now()) {
				// Neither memory nor disk: the task has to wait.
				sleepUnless(context.Background(), r.rep.spool.room, time.Second)
			}
			r.rep.poke()
		}
		if err != nil {
			return
		}
	}
}

// drainPipe waits for the end of the output; a process that nothing can kill
// may hold the pipe open.
func (r *taskRunner) drainPipe(pumped <-chan struct{}) {
	if sleepUnless(context.Background(), pumped, 10*time.Second) {
		_ = r.iso.output.SetReadDeadline(time.Now())
		<-pumped
	}
	if n := r.rep.spool.dropped; n > 0 {
		r.log.Warn("output beyond the limit was dropped", "task", r.manifest.TaskID, "bytes", n)
	}
}

// conclude turns run_isolated's result into reports. spec bot.md §4.8.
func (r *taskRunner) conclude(ctx context.Context, s Summary, why ending) Summary {
	res, err := readResult(r.Dir)
	s.IOTimeout = why.ioTimeout
	if res != nil {
		s.HardTimeout = res.HadHardTimeout
	}
	timedOut := s.IOTimeout || s.HardTimeout
	switch {
	case timedOut: // hides every other fault
		if res == nil {
			res = &result{}
		}
	case why.signal:
		return r.fault(ctx, s, "the bot was stopped while it ran the task", nil)
	case err != nil:
		return r.fault(ctx, s, "read run_isolated's result: "+err.Error(), nil)
	case res == nil:
		return r.fault(ctx, s, fmt.Sprintf("run_isolated ended (%d) without a result", r.iso.p.Wait().Code), nil)
	case res.InternalFailure != nil:
		return r.fault(ctx, s, *res.InternalFailure, clientError(res))
	}
	u := r.finalUpdate(res, s)
	s.ExitCode = u.ExitCode
	if err := r.rep.final(ctx, u); err != nil {
		s.InternalError = "report the task's end: " + err.Error()
	}
	return s
}

func clientError(res *result) *botapi.ClientError {
	if len(res.MissingCAS) == 0 && len(res.MissingCIPD) == 0 {
		return nil
	}
	return &botapi.ClientError{MissingCAS: res.MissingCAS, MissingCIPD: res.MissingCIPD}
}

func (r *taskRunner) finalUpdate(res *result, s Summary) *botapi.TaskUpdate {
	total := r.total().Seconds()
	duration := total
	if res.Duration != nil {
		duration = *res.Duration
	}
	overhead := max(0, total-duration)
	code := int64(-1)
	if res.ExitCode != nil {
		code = *res.ExitCode
	}
	return &botapi.TaskUpdate{
		ExitCode: &code, Duration: &duration, BotOverhead: &overhead,
		HardTimeout: s.HardTimeout, IOTimeout: s.IOTimeout,
		CASOutputRoot: res.CASOutputRoot, CIPDPins: res.CIPDPins,
		IsolatedStats: res.Stats.Isolated, CIPDStats: res.Stats.CIPD, NamedCachesStats: res.Stats.NamedCaches,
		CacheTrimStats: res.Stats.TrimCaches, CleanupStats: res.Stats.Cleanup,
	}
}

// fault delivers what output there is and ends the task with a task_error:
// what went wrong is not the command's doing. An exit code would say that it
// had completed.
func (r *taskRunner) fault(ctx context.Context, s Summary, text string, client *botapi.ClientError) Summary {
	s.InternalError = text
	r.log.Error("the task cannot be run", "task", r.manifest.TaskID, "err", text)
	if r.manifest.TaskID == "" {
		return s // nobody knows whose error it is; bot_main tells the server
	}
	if n, _ := r.rep.spool.unsent(); n > 0 {
		if err := r.rep.final(ctx, &botapi.TaskUpdate{HardTimeout: s.HardTimeout, IOTimeout: s.IOTimeout}); err != nil {
			return s
		}
	}
	if client == nil {
		client = &botapi.ClientError{MissingCAS: []botapi.MissingCAS{}, MissingCIPD: []botapi.CIPDPackage{}}
	}
	err := r.rep.fail(ctx, &botapi.TaskErrorRequest{TaskID: r.manifest.TaskID, Message: text, ClientError: client})
	s.InternalErrorReported = err == nil
	return s
}

// end makes sure that nothing runs any more, whatever happened.
func (r *taskRunner) end() {
	if r.tokens != nil {
		r.tokens.close()
	}
	if r.iso == nil {
		return
	}
	_ = r.iso.words.Close()
	select {
	case <-r.iso.p.Done():
	case <-time.After(hungGrace):
		_ = r.iso.p.Kill()
		r.iso.p.Wait()
		r.sweep()
	}
}
