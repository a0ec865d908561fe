package runner

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/internal/logfile"
	"github.com/skepdev/skep/internal/proc"
)

// Starter starts runners for one bot, one task at a time. Its methods may be
// used by several goroutines, Run by one.
type Starter struct {
	cfg    Config
	method proc.Method
	iso    proc.Isolation

	cacheDir string // Storage.Cache as it was configured
	checked  string // the cache that SetCache found usable last
	err      error  // why nothing can be started

	tidied atomic.Bool // the work directory is as tidyWork left it

	mu      sync.Mutex
	ready   *pair
	busy    bool           // a task runs
	running *pair          // which has a job
	exiting sync.WaitGroup // runners that have reported and are about to exit
}

// pair is a task_runner with its run_isolated that waits for a job, and the
// directory and place made for it.
type pair struct {
	p     *proc.Process
	words *os.File
	life  *os.File
	news  *os.File
	dir   string
	out   string // in dir, see makeWork
	temp  string
	place *proc.Place

	reported bool // its Summary is here: the task is over
}

// recordFile, in w, says where the processes of the task in w are, from before
// they start until they are gone.
const recordFile = "cgroup"

// manifestFile, in w, is the task as the server sent it. spec bot.md §4.1.
const manifestFile = "task_runner_in.json"

// NewStarter finds out how tasks can be contained and isolated here, by
// trying. A failure is returned by Prepare and Run.
func NewStarter(cfg Config) *Starter {
	s := &Starter{cfg: cfg}
	if s.cfg.Log == nil {
		s.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if s.cfg.Environ == nil {
		s.cfg.Environ = os.Environ()
	}
	if s.cfg.Exe == "" {
		s.cfg.Exe, s.err = os.Executable()
	}
	if st := &s.cfg.Storage; st.Cache == "" {
		st.Cache = filepath.Join(cfg.BotDir, "cas_cache")
	}
	s.cacheDir = s.cfg.Storage.Cache
	if st := &s.cfg.Storage; st.Method == cache.Auto {
		st.Method = cache.Method(os.Getenv("SKEP_INPUTS"))
	}
	want := cmp.Or(cfg.Containment, os.Getenv("SKEP_CONTAINMENT"))
	var err error
	if s.method, err = proc.Choose(proc.Method(want)); err != nil {
		s.err = errors.Join(s.err, fmt.Errorf("contain tasks: %w", err))
	}
	if cfg.Isolation == proc.IsolationNone {
		s.iso = proc.Isolation{Kind: proc.IsolationNone, Reason: "switched off"}
	} else {
		s.iso = proc.Isolate(cfg.BotDir, cfg.TaskUser)
		s.iso.Hide = wider(s.iso.Hide, cmp.Or(cfg.HideDir, os.Getenv(HideDirEnv)))
	}
	return s
}

// HideDirEnv names the variable by which a program that keeps several bots
// tells each what to hide from its tasks; see Config.HideDir.
const HideDirEnv = "SKEP_HIDE_DIR"

// wider returns what to hide in place of hide: all of around, if hide is in
// there.
func wider(hide, around string) string {
	if hide == "" || around == "" {
		return hide
	}
	real, _ := filepath.EvalSymlinks(around)
	for _, dir := range []string{around, real} {
		if rel, err := filepath.Rel(dir, hide); dir != "" && err == nil && filepath.IsLocal(rel) {
			return filepath.Clean(dir)
		}
	}
	return hide
}

// Method is how surviving processes of a task are found: "cgroup2", "cgroup1",
// "pidns", "subreaper"; elsewhere "group" or "job"; "" when nothing works.
func (s *Starter) Method() string { return string(s.method) }

// Isolation is what keeps tasks from the bot's credential: "user" (they run
// under another user id), "view" (namespaces hide the bot), or "none", and
// then why. decisions.md 11.
func (s *Starter) Isolation() (kind, reason string) { return s.iso.Kind, s.iso.Reason }

// Prepare makes sure that one runner waits for a job, so that Run need not
// start one. It does nothing while one waits, and while a task runs: w is the
// task's.
func (s *Starter) Prepare(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		return nil
	}
	if s.ready != nil {
		select {
		case <-s.ready.p.Done():
			_ = s.discard(s.ready) // it died: nothing ran
			s.ready = nil
		default:
			return nil
		}
	}
	p, err := s.start(true)
	if err != nil {
		return err
	}
	s.ready = p
	return nil
}

// Close ends a waiting runner and removes the work directory.
func (s *Starter) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.exiting.Wait()
	if s.ready != nil {
		err := s.discard(s.ready)
		if s.ready = nil; err != nil {
			return err
		}
	}
	w := filepath.Join(s.cfg.BotDir, workDir)
	if fi, err := os.Lstat(filepath.Join(w, recordFile)); s.busy || err == nil && fi.Size() > 0 {
		return nil // a task is in it, or processes that could not be ended: Recover tries again
	}
	return removeWork(w)
}

// take returns a runner that waits.
func (s *Starter) take() (*pair, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = true
	if p := s.ready; p != nil {
		s.ready = nil
		select {
		case <-p.p.Done():
			_ = s.discard(p)
		default:
			return p, nil
		}
	}
	return s.start(false)
}

// start starts a task_runner and, while that comes up, makes what its task
// will need.
func (s *Starter) start(ahead bool) (*pair, error) {
	if s.err != nil {
		return nil, s.err
	}
	p := &pair{}
	if err := s.startRunner(p); err != nil {
		return nil, fmt.Errorf("start task_runner: %w", err)
	}
	if err := s.furnish(p); err != nil {
		for _, f := range []*os.File{p.words, p.life} {
			_ = f.Close()
		}
		p.p.Wait() // it has been told nothing, so it just goes
		_ = p.news.Close()
		return nil, err
	}
	if err := json.NewEncoder(p.words).Encode(s.setup(p, ahead)); err != nil {
		_ = s.discard(p)
		return nil, fmt.Errorf("task_runner takes no setup: %w", err)
	}
	return p, nil
}

// furnish makes the work directory and the place, and records the place before
// anything can be in it. What it made is gone when it fails.
func (s *Starter) furnish(p *pair) (err error) {
	d, w, err := makeWork(s.cfg.BotDir, s.iso.User, s.tidied.Swap(false))
	if err != nil {
		return fmt.Errorf("work directory: %w", err)
	}
	p.dir, p.out, p.temp = w, d.out, d.temp
	place, err := proc.Plan(s.method, "skep-"+strings.ToLower(rand.Text()[:16]))
	if err != nil {
		return fmt.Errorf("contain a task: %w", err)
	}
	place.Hidden = s.iso.Kind == proc.IsolationView
	if err = rewriteJSON(filepath.Join(p.dir, recordFile), place); err != nil { // cut off it names nothing, and there is nothing yet
		return err
	}
	if err = place.Make(); err != nil {
		return errors.Join(fmt.Errorf("contain a task: %w", err), place.Remove())
	}
	p.place = place
	return nil
}

// startRunner starts the process with its pipes.
func (s *Starter) startRunner(p *pair) (err error) {
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
	lifeR, life := pipe()
	news, newsW := pipe()
	if err != nil {
		return err
	}
	raw, err := s.rawLog()
	if err != nil {
		return err
	}
	defer raw.Close()
	files := []*os.File{wordsR, newsW, raw}
	if runtime.GOOS != "windows" {
		files = append(files, lifeR)
	}
	p.p, err = proc.Start(&proc.Cmd{
		Path: s.cfg.Exe, Args: []string{s.cfg.Exe, "task_runner"}, Dir: s.cfg.BotDir, Files: files, NewGroup: true, Calm: true,
		// One processor: it mostly waits, and a second one is a sixth of what its start costs.
		Env: append(baseEnviron(s.cfg.Environ, s.cfg.EnvPass), "GOMAXPROCS=1"),
	})
	if err != nil {
		return err
	}
	for _, f := range []*os.File{wordsR, lifeR, newsW} {
		_ = f.Close()
	}
	p.words, p.life, p.news = words, life, news
	return nil
}

func (s *Starter) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
}

func (s *Starter) setRunning(p *pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = p
}

// SetHeaders gives the task that runs, if any, new authentication headers in
// place of Job.Headers, which may have a shorter life than the task.
func (s *Starter) SetHeaders(headers map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	if headers == nil {
		headers = map[string]string{}
	}
	return json.NewEncoder(s.running.words).Encode(runnerWord{Headers: headers})
}

// say gives the runner that runs a word; others get none.
func (s *Starter) say(p *pair, w runnerWord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != p {
		return nil
	}
	return json.NewEncoder(p.words).Encode(w)
}

func (s *Starter) setup(p *pair, ahead bool) *setup {
	u := &setup{
		BotDir: s.cfg.BotDir, Dir: p.dir, Out: p.out, Temp: p.temp, Environ: baseEnviron(s.cfg.Environ, s.cfg.EnvPass),
		Place: *p.place, User: s.iso.User, Hide: s.iso.Hide, Ahead: ahead,
		Storage: s.storage(),
	}
	if path := newEnviron(s.cfg.Environ).get("LUCI_CONTEXT"); path != "" {
		if b, err := os.ReadFile(path); err == nil && json.Valid(b) {
			u.Context = b
		}
	}
	return u
}

// rawLog is where panics of our processes go. spec bot.md §1.7.
func (s *Starter) rawLog() (*os.File, error) {
	path := filepath.Join(s.cfg.BotDir, "logs", "task_runner_stdout.log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if fi, err := os.Stat(path); err == nil && fi.Size() >= 5<<20 {
		logfile.Roll(path, 9)
	}
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
}

// discard ends a runner and removes what was made for it. One that has
// reported needs no waiting for.
func (s *Starter) discard(p *pair) error {
	_ = p.words.Close()
	_ = p.life.Close()
	end := func() {
		t := time.AfterFunc(sweepLimit, func() { _ = p.p.Kill() })
		p.p.Wait()
		t.Stop()
	}
	if p.reported {
		s.exiting.Go(end)
	} else {
		end()
	}
	_ = p.news.Close()
	err := errors.Join(p.place.Kill(sweepLimit), p.place.Remove())
	if err != nil {
		return err // the record must stay: Recover tries again
	}
	if p.dir == filepath.Join(s.cfg.BotDir, workDir) {
		err := tidyWork(p.dir)
		s.tidied.Store(err == nil)
		return err
	}
	return removeWork(p.dir)
}

// Run runs one task and returns when it is over, reported, and nothing of it is
// left. When ctx ends, the task is stopped: SIGTERM, grace period, SIGKILL.
// What went wrong with the task is in the Summary; an error means that it did
// not begin, or that something of it could not be removed.
func (s *Starter) Run(ctx context.Context, job Job) (Summary, error) {
	if job.ReceivedAt.IsZero() {
		job.ReceivedAt = time.Now()
	}
	sum := Summary{Session: job.Session}
	if !json.Valid(job.Manifest) {
		sum.InternalError = "the manifest is not JSON"
		return sum, nil
	}
	l, bad := manifestLimits(job.Manifest)
	said, done := job.announce(ctx, l.TaskID, bad == nil)
	defer done()
	p, err := s.take()
	defer s.free()
	if err != nil {
		return sum, err
	}
	if err := p.hand(job, l.TaskID); err != nil {
		// It died while it waited, and did nothing yet.
		s.cfg.Log.Warn("the waiting runner takes no job; starting another", "err", err)
		_ = s.discard(p)
		if p, err = s.start(false); err != nil {
			return sum, err
		}
		if err := p.hand(job, l.TaskID); err != nil {
			return sum, errors.Join(fmt.Errorf("task_runner takes no job: %w", err), s.discard(p))
		}
	}
	s.setRunning(p)
	if job.Announced {
		go func() {
			a := <-said
			a.Stopped = !a.Done && ctx.Err() != nil // not to be repeated, and SIGTERM may have come too early to be heeded
			_ = s.say(p, runnerWord{Announced: &a})
		}()
	}
	if err := os.WriteFile(filepath.Join(p.dir, manifestFile), job.Manifest, 0o600); err != nil {
		s.cfg.Log.Warn("the manifest is not kept", "err", err) // the runner has it
	}
	s.cfg.Log.Info("task begins", "task", l.TaskID)
	sum = s.await(ctx, p, job, l)
	s.setRunning(nil)
	if job.After != nil {
		job.After(sum)
	}
	return sum, s.discard(p)
}

// hand gives a waiting runner its job.
func (p *pair) hand(job Job, task string) error {
	if p.place.Method == proc.MethodSubreaper && task != "" {
		p.place.Label = taskLabel(task)
		if err := writeJSON(filepath.Join(p.dir, recordFile), p.place); err != nil {
			return err
		}
	}
	return json.NewEncoder(p.words).Encode(job)
}

// taskLabel is what every process of a task was started with in its
// environment.
func taskLabel(task string) string { return "SWARMING_TASK_ID=" + task }

// limits are what bot_main needs of a manifest, as far as it can be read.
type limits struct {
	TaskID string `json:"task_id"`
	Hard   int64  `json:"hard_timeout"`
	IO     int64  `json:"io_timeout"`
	Grace  int64  `json:"grace_period"`
}

// manifestLimits returns what can be read, and why the manifest will be
// refused if it will.
func manifestLimits(raw json.RawMessage) (limits, error) {
	m, err := parseManifest(raw)
	return limits{TaskID: m.TaskID, Hard: max(0, m.HardTimeout), IO: max(0, m.IOTimeout), Grace: max(0, m.GracePeriod)}, err
}

// lastDitch is how long a runner may take; 0 = as long as it likes.
// spec bot.md §9.3.
func (l limits) lastDitch() time.Duration {
	if l.Hard == 0 {
		return 0
	}
	return time.Duration(l.Hard+3*max(l.Grace, 30)+max(l.IO, 1200)) * time.Second
}

// await follows a runner to its end, and ends it when it takes too long.
func (s *Starter) await(ctx context.Context, p *pair, job Job, l limits) Summary {
	sum := Summary{Session: job.Session}
	news := make(chan runnerNews)
	go func() {
		defer close(news)
		dec := json.NewDecoder(p.news)
		for {
			var n runnerNews
			if dec.Decode(&n) != nil {
				return
			}
			news <- n
			if n.Summary != nil {
				return
			}
		}
	}()
	var hung, kill <-chan time.Time
	if d := l.lastDitch(); d > 0 {
		hung = time.After(d)
	}
	done, told, isHung := ctx.Done(), false, false
	stop := func() {
		if !told {
			told = true
			_ = p.p.Terminate()
			kill = time.After(2 * time.Duration(max(l.Grace, 30)) * time.Second)
		}
	}
	for {
		select {
		case n, ok := <-news:
			if !ok {
				sum.InternalError = "task_runner hung"
				if !isHung {
					sum.InternalError = fmt.Sprintf("task_runner ended (%d) without a report", p.p.Wait().Code)
				}
				return sum
			}
			if n.Update != nil {
				go func() {
					d := job.deliver(ctx, n.Update)
					_ = s.say(p, runnerWord{Delivered: &d})
				}()
			}
			if n.Ended { // what is left is the report, which may take an outage long
				hung = time.After(defaultTiming.finalFor + 10*time.Minute)
			}
			if w := n.Summary; w != nil {
				p.reported = true
				return Summary{
					ExitCode: w.ExitCode, HardTimeout: w.HardTimeout, IOTimeout: w.IOTimeout,
					InternalError: w.InternalError, InternalErrorReported: w.Reported, Session: cmp.Or(w.Session, job.Session),
				}
			}
		case <-done:
			done = nil
			stop()
		case <-hung:
			isHung, hung = true, nil
			s.cfg.Log.Error("task_runner hangs", "task", l.TaskID)
			stop()
		case <-kill:
			kill = nil
			_ = p.p.Kill()
			_ = p.life.Close() // run_isolated goes too
		}
	}
}
