package cli

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newTaskLogCommand: GetStdout, or Watch to follow.
func newTaskLogCommand(env *Env) *cobra.Command {
	var conn connection
	var follow bool
	cmd := &cobra.Command{
		Use:   "log TASK",
		Short: "Print a task's output",
		Args:  exactly("a task id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := checkTaskIDs(args); err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			if follow {
				_, err := f.stream(ctx, args[0], 0, env.Stdout, func(pb.TaskState) {})
				return err
			}
			return f.copyStdout(ctx, args[0], env.Stdout)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task ends")
	conn.register(cmd)
	return cmd
}
