package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newCancelCommand: CancelTask. spec/cli-and-ui.md §3.7.
func newCancelCommand(env *Env) *cobra.Command {
	var conn connection
	var kill bool
	cmd := &cobra.Command{
		Use:   "cancel TASK",
		Short: "Cancel a task",
		Args:  exactly("a task id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := checkTaskIDs(args); err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			res, err := f.CancelTask(ctx, &pb.TaskCancelRequest{TaskId: args[0], KillRunning: kill})
			if err != nil {
				return err
			}
			switch {
			case res.Canceled:
				return nil
			case res.WasRunning && !kill:
				return fmt.Errorf("task %s was not canceled: it is running; --kill-running stops it", args[0])
			case res.WasRunning:
				return fmt.Errorf("task %s was not canceled: it is being stopped already", args[0])
			}
			return fmt.Errorf("task %s was not canceled: it has ended already", args[0])
		}),
	}
	cmd.Flags().BoolVar(&kill, "kill-running", false, "stop it even if it runs")
	conn.register(cmd)
	return cmd
}
