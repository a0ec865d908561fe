package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newTerminateCommand: TerminateBot. spec/cli-and-ui.md §3.12.
func newTerminateCommand(env *Env) *cobra.Command {
	var conn connection
	var reason string
	var wait bool
	cmd := &cobra.Command{
		Use:   "terminate BOT",
		Short: "Tell a bot to finish what it runs and end for good",
		Args:  exactly("a bot id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			res, err := f.TerminateBot(ctx, &pb.TerminateRequest{BotId: args[0], Reason: reason})
			if err != nil {
				return err
			}
			id := res.TaskId
			if !wait {
				f.notef("bot %s ends when task %s is done", args[0], id)
				fmt.Fprintln(env.Stdout, id)
				return nil
			}
			delay := newPollDelay()
			for {
				res, err := f.GetResult(ctx, &pb.TaskIdWithPerfRequest{TaskId: id})
				switch {
				case err != nil && isTransient(err) && ctx.Err() == nil: // the task stays where it is; a server comes back
					f.notef("%v; waiting on", err)
				case err != nil:
					return err
				}
				if err == nil && isFinal(res.State) {
					if res.State != pb.TaskState_COMPLETED {
						return fmt.Errorf("bot %s was not terminated: task %s ended as %s", args[0], id, res.State)
					}
					return nil
				}
				if err := delay.sleep(ctx); err != nil {
					return err
				}
			}
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the task's name")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the bot has ended")
	conn.register(cmd)
	return cmd
}
