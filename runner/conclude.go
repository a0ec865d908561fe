package runner

import (
	"context"
	"fmt"

	"github.com/skepdev/skep/api/botapi"
)

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
