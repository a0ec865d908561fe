package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

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
	words := json.NewDecoder(inherited(0, "words"))
	var u setup
	var raw json.RawMessage
	code, ok := nextWord(words, &raw, "task_runner")
	if ok && json.Unmarshal(raw, &u) != nil {
		code, ok = 1, false
	}
	if !ok {
		iso.abandon()
		return code
	}
	if iso != nil {
		_, isoErr = iso.words.Write(raw) // it needs the same
	}
	log, closeLog := openLog(filepath.Join(dir, "logs", "task_runner.log"))
	defer closeLog()
	var job Job
	if code, ok := awaitWord(words, &job, "task_runner", u.Ahead, warmRunner()); !ok {
		iso.abandon()
		return code
	}
	for len(term) > 0 { // what came while there was nothing to stop
		<-term
	}
	news := json.NewEncoder(inheritedOutput(runnerNewsFD, "news"))
	r := &taskRunner{
		setup: u, Job: job, log: log, iso: iso, isoErr: isoErr, timing: defaultTiming, began: time.Now(),
		announced: make(chan announcement, 1), delivered: make(chan delivery, 1),
		say: func(n runnerNews) error { return news.Encode(n) },
	}
	if r.ReceivedAt.IsZero() || r.ReceivedAt.After(r.began) {
		r.ReceivedAt = r.began
	}
	r.headers.Store(&job.Headers)
	go r.watchParent(words)
	s := r.run(term)
	r.finished.Store(true)
	if err := r.say(runnerNews{Summary: &summaryOnWire{
		ExitCode: s.ExitCode, HardTimeout: s.HardTimeout, IOTimeout: s.IOTimeout,
		InternalError: s.InternalError, Reported: s.InternalErrorReported, Session: s.Session,
	}}); err != nil {
		// Nobody listens any more; whoever looks into w finds how it went.
		if err := writeJSON(filepath.Join(r.Dir, "task_runner_out.json"), s); err != nil {
			log.Error("task_runner_out.json not written", "err", err)
		}
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
// soon, warm gets the process ready for it, step by step until the word is
// there. A busy bot, whose next job comes at once, has better uses for the
// processor.
func awaitWord(words *json.Decoder, v any, who string, ahead bool, warm []func()) (code int, ok bool) {
	if !ahead {
		return nextWord(words, v, who)
	}
	came := make(chan struct{})
	go func() {
		defer close(came)
		code, ok = nextWord(words, v, who)
	}()
	next := time.After(idleBeforeWarm)
	for _, step := range warm {
		select {
		case <-came:
			return code, ok
		case <-next:
			step()
			next = now
		}
	}
	<-came
	return code, ok
}

// now is a time that has come.
var now = func() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}()

// idleBeforeWarm tells a bot with a queue of work from one without.
const idleBeforeWarm = 12 * time.Millisecond

func openLog(path string) (*slog.Logger, func()) {
	f, err := logfile.Open(path)
	if err != nil {
		return slog.New(logfile.NewHandler(os.Stderr, slog.LevelInfo)), func() {}
	}
	return slog.New(logfile.NewHandler(f, slog.LevelDebug)), func() { _ = f.Close() }
}
