package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas/archive"
)

// Exit codes of skep run beside the task's own.
const (
	exitTimedOut = 124 // TIMED_OUT, as timeout(1)
	exitNoResult = 125 // the task could not be run, or skep could not follow it
	exitSignal   = 128 // + the signal that ended the command
	exitCanceled = 130 // CANCELED, KILLED, or Ctrl-C
)

// newRunCommand: one task, from submission to its exit code.
func newRunCommand(env *Env) *cobra.Command {
	var t taskFlags
	var conn connection
	var st storageFlags
	var in, out string
	var exclude []string
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND...",
		Short: "Run one task, stream its output, return its exit code",
		Long: `Run one task, stream its output, return its exit code.

Ctrl-C cancels the task and waits for its end; a second Ctrl-C leaves at once.

Exit codes:
  the command's own, 128 + N when signal N ended it
  124  the task exceeded one of its time limits (TIMED_OUT)
  125  the task gave no exit code (BOT_DIED, NO_RESOURCE, EXPIRED, CLIENT_ERROR),
       or skep run could not submit or follow it
  130  the task was canceled, by Ctrl-C or by somebody else`,
		Example:     "  skep run -- sh -c 'echo hi; exit 3'\n  skep run -i src -O out -- sh -c 'make && cp app ${ISOLATED_OUTDIR}'\n  skep run -d os=Linux --cache go=cache --env GOCACHE=cache -- go test ./...",
		Annotations: map[string]string{annotationStops: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return runError(usageErrorf(cmd, "no command; write it after --, as in: skep run -- echo hi"))
			case in != "" && t.digest != "":
				return runError(usageErrorf(cmd, "-i/--in and --digest both give the inputs; use one"))
			case out != "":
				if err := archive.CheckTarget(out, false); err != nil {
					return runError(fmt.Errorf("-O/--out: %w", err))
				}
			}
			f, err := conn.open(env)
			if err != nil {
				return runError(err)
			}
			if in != "" {
				if err := t.uploadInputs(cmd, env, &conn, &st, f, in, exclude); err != nil {
					return runError(err)
				}
			}
			req, err := t.request(cmd, env, args, func() string { return path.Base(args[0]) })
			if err != nil {
				return runError(err)
			}
			req.ParentTaskId = parentTask(env, f.url)
			s := &session{env: env, fleet: f}
			if out != "" {
				s.outputs = func(ctx context.Context, r *pb.TaskResultResponse) error {
					return fetchOutputs(ctx, env, &conn, &st, f, r, out)
				}
			}
			return s.run(cmd.Context(), req)
		},
	}
	t.expiration, t.hardTimeout, t.ioTimeout, t.gracePeriod = 3600, 3600, 0, 30
	t.register(cmd)
	t.registerStorage(cmd)
	cmd.Flags().StringVarP(&in, "in", "i", "", "`DIR` with input files, which the task finds in its directory")
	cmd.Flags().StringArrayVar(&exclude, "exclude", nil, "leave out of the inputs what matches `PATTERN`; see skep cas archive --help")
	cmd.Flags().StringVarP(&out, "out", "O", "", "`DIR`, new or empty, for what the task leaves in ${ISOLATED_OUTDIR} and for its --output paths")
	st.register(cmd)
	conn.register(cmd)
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return runError(flagError(cmd, err)) })
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runError is a failure of skep run itself, apart from any exit code a task
// may have.
func runError(err error) error {
	if exit := (*exitError)(nil); err == nil || errors.As(err, &exit) {
		return err
	}
	return &exitError{code: exitNoResult, err: err}
}

// session is one skep run.
type session struct {
	env     *Env
	fleet   *fleet
	outputs func(context.Context, *pb.TaskResultResponse) error // nil: nobody wants them
}

// submitGrace is how long the first Ctrl-C lets a submission go on: the task
// may exist already, and then it must be canceled rather than forgotten.
const submitGrace = 2 * time.Second

// run submits the task and follows it; the error holds the exit code.
func (s *session) run(ctx context.Context, req *pb.NewTaskRequest) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	submitted := make(chan string, 1)
	ended := make(chan error, 1)
	submitCtx, stopSubmit := context.WithCancel(ctx)
	defer stopSubmit()
	go func() {
		res, err := s.fleet.NewTask(submitCtx, req)
		if err != nil {
			ended <- runError(err)
			return
		}
		submitted <- res.TaskId
		result, err := s.follow(ctx, res.TaskId)
		if err != nil {
			ended <- runError(err)
			return
		}
		err = outcome(result)
		if s.outputs != nil {
			if fetched := s.outputs(ctx, result); fetched != nil && err == nil {
				err = runError(fetched)
			} else if fetched != nil { // the task's own end says more
				s.fleet.notef("%v", fetched)
			}
		}
		ended <- err
	}()
	var id string
	interrupts := 0
	for {
		select {
		case err := <-ended:
			if interrupts > 0 && id == "" {
				return errInterrupted
			}
			return err
		case id = <-submitted:
			if interrupts > 0 {
				go s.cancel(ctx, id)
			}
		case <-s.env.Interrupts:
			interrupts++
			switch {
			case interrupts > 1 && id != "":
				return &exitError{code: exitCanceled, err: fmt.Errorf("left task %s, which is being canceled", id)}
			case interrupts > 1:
				return errInterrupted
			case id != "":
				go s.cancel(ctx, id)
			default:
				time.AfterFunc(submitGrace, stopSubmit)
			}
		}
	}
}

func (s *session) cancel(ctx context.Context, id string) {
	s.fleet.notef("canceling task %s; Ctrl-C again leaves at once", id)
	if _, err := s.fleet.CancelTask(ctx, &pb.TaskCancelRequest{TaskId: id, KillRunning: true}); err != nil && ctx.Err() == nil {
		s.fleet.notef("cancel task %s: %v", id, err)
	}
}

// pendingNote is how long a task waits before a person is told so.
const pendingNote = 700 * time.Millisecond

// follow streams the task to stdout. On a terminal it says why nothing
// happens while the task waits for a bot.
func (s *session) follow(ctx context.Context, id string) (*pb.TaskResultResponse, error) {
	note := time.AfterFunc(pendingNote, func() {
		if isTerminal(s.env.Stderr) {
			s.fleet.notef("task %s waits for a bot; skep task show %s tells for what", id, id)
		}
	})
	defer note.Stop()
	return s.fleet.stream(ctx, id, 0, s.env.Stdout, func(state pb.TaskState) {
		if state != pb.TaskState_PENDING {
			note.Stop()
		}
	})
}

// outcome turns the end of a task into the end of skep run: nil for success,
// the command's exit code without a word, and a sentence for everything else.
func outcome(r *pb.TaskResultResponse) error {
	switch r.State {
	case pb.TaskState_COMPLETED:
		if r.ExitCode == 0 {
			return nil
		}
		return &exitError{code: exitCode(r.ExitCode)}
	case pb.TaskState_TIMED_OUT:
		return &exitError{exitTimedOut, fmt.Errorf("task %s exceeded a time limit and was stopped; see --hard-timeout and --io-timeout", r.TaskId)}
	case pb.TaskState_CANCELED, pb.TaskState_KILLED:
		return &exitError{exitCanceled, fmt.Errorf("task %s was canceled", r.TaskId)}
	case pb.TaskState_BOT_DIED:
		return &exitError{exitNoResult, fmt.Errorf("bot %s died while it ran task %s; run it again", r.BotId, r.TaskId)}
	case pb.TaskState_NO_RESOURCE:
		return &exitError{exitNoResult, fmt.Errorf("no bot has what task %s asks for; skep bots -o table shows what there is, --wait-for-capacity waits for one", r.TaskId)}
	case pb.TaskState_EXPIRED:
		return &exitError{exitNoResult, fmt.Errorf("no bot was free for task %s in time; see --expiration", r.TaskId)}
	case pb.TaskState_CLIENT_ERROR:
		return &exitError{exitNoResult, fmt.Errorf("inputs of task %s are missing; skep task show %s tells which", r.TaskId, r.TaskId)}
	default:
		return &exitError{exitNoResult, fmt.Errorf("task %s ended as %s", r.TaskId, r.State)}
	}
}

// exitCode fits a task's exit code into a process's: a signal as shells
// write it, and never 0 for a failure.
func exitCode(code int64) int {
	switch {
	case code < 0 && code > -exitSignal:
		return exitSignal + int(-code)
	case code&0xff == 0:
		return 1
	}
	return int(code & 0xff)
}
