package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/runner"
)

// runTask runs one task to its end and makes sure that the server knows the
// end. spec bot.md §3.2.
func (b *Bot) runTask(m *botapi.Manifest, raw json.RawMessage) {
	received := b.cfg.Now()
	if m == nil {
		b.refuseManifest(raw)
		return
	}
	cost := b.setTask(m.TaskID)
	defer b.setTask("")
	b.waitPrepared()
	log := b.log.With("task", m.TaskID)
	job := runner.Job{
		Manifest: raw, Server: b.cfg.Server, BotID: b.cfg.ID, Session: b.cfg.Client.Session(),
		Headers: b.headers(), RootCAs: b.cfg.RootCAs, CostUSDHour: cost, ReceivedAt: received,
		CookieDir: "w", Update: b.taskUpdate,
	}
	if b.cfg.ClientCert != nil {
		job.ClientCert, job.ClientKey = b.cfg.ClientCert.PEM()
	}
	b.beforeTask(&job, m)
	told := false
	job.After = func(sum runner.Summary) {
		told = true
		b.afterTask(m, sum)
	}
	fresh, stale := context.WithCancel(b.hard)
	b.keepFresh(fresh)
	sum, err := b.runSafely(b.hard, job)
	stale()
	if !told { // it did not begin
		b.afterTask(m, runner.Summary{InternalError: b.failure(sum, err)})
	}
	b.worked()
	b.cfg.Client.SetSession(sum.Session)
	log.Info("task ends", "took", b.cfg.Now().Sub(received), "err", err, "internal_error", sum.InternalError)
	text := b.failure(sum, err)
	b.keepGood(text == "" && sum.ExitCode != nil && *sum.ExitCode == 0)
	if text != "" {
		if !sum.InternalErrorReported {
			b.taskError(m.TaskID, text)
		}
		if b.hard.Err() == nil {
			b.Error(fmt.Sprintf("task %s: %s", m.TaskID, text))
		}
	}
}

// taskUpdate is runner.Job.Update.
func (b *Bot) taskUpdate(ctx context.Context, u *botapi.TaskUpdate) (res *botapi.TaskUpdateResponse, err error) {
	if !b.contain(func() { res, err = b.cfg.Client.TaskUpdate(ctx, u) }) {
		err = errors.New("the update could not be sent: panic")
	}
	return res, err
}

// failure says why the run, not the command, failed; "" if it did not.
func (b *Bot) failure(sum runner.Summary, err error) string {
	switch {
	case sum.InternalError == "" && err == nil:
		return ""
	case b.hard.Err() != nil && !sum.InternalErrorReported:
		return "the bot was stopped while the task ran: " + b.endReason()
	case sum.InternalError != "":
		return sum.InternalError
	}
	return err.Error()
}

// runSafely lets nothing that goes wrong in this process leave a task without
// an end.
func (b *Bot) runSafely(ctx context.Context, job runner.Job) (sum runner.Summary, err error) {
	defer func() {
		if r := recover(); r != nil {
			b.log.Error("panic", "err", r, "stack", string(debug.Stack()))
			err = errors.New(panicText(r, debug.Stack()))
		}
	}()
	return b.cfg.Runner.Run(ctx, job)
}

// refuseManifest ends a task whose manifest cannot be read, as far as it says
// which task it is.
func (b *Bot) refuseManifest(raw json.RawMessage) {
	var m botapi.Manifest
	text := "the manifest has no task_id"
	if err := json.Unmarshal(raw, &m); err != nil {
		text = "the manifest is malformed: " + err.Error()
	}
	if id := botapi.ManifestTask(raw); id != "" {
		b.taskError(id, text)
	}
	b.Error(text)
	_ = b.badCmds.Sleep(b.idle, 0)
}

// taskError tells the server that the task ended without a result. It is
// repeated until the server has it, for a poll before would lose the reason;
// a stopping bot tries for some seconds only.
func (b *Bot) taskError(task, text string) {
	b.log.Error("task failed internally", "task", task, "err", text)
	ctx, cancel := b.patience(10 * time.Second)
	defer cancel()
	var pause backoff.Exponential
	for {
		err := b.cfg.Client.TaskError(ctx, &botapi.TaskErrorRequest{TaskID: task, Message: text, ClientError: noClientError})
		if err == nil {
			return
		}
		b.log.Warn("report the task's failure", "task", task, "err", err)
		if !botapi.IsTransient(err) || pause.Sleep(ctx, retryAfter(err)) != nil {
			return
		}
	}
}

// noClientError is what existing servers expect of an ordinary failure: two
// empty lists. spec bot.md §2.11.
var noClientError = &botapi.ClientError{MissingCAS: []botapi.MissingCAS{}, MissingCIPD: []botapi.CIPDPackage{}}

// patience returns a context that lasts as long as the bot, and d longer.
func (b *Bot) patience(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.hard))
	stop := context.AfterFunc(b.hard, func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

func (b *Bot) headers() map[string]string {
	if b.cfg.Headers == nil {
		return nil
	}
	return b.cfg.Headers()
}

// setTask notes the task in hand and returns what an hour of it costs, in USD.
func (b *Bot) setTask(id string) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.task = id
	return b.costHour
}
