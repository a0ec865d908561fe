package cli

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newRequestShowCommand: GetRequest. spec/cli-and-ui.md §3.5.
func newRequestShowCommand(env *Env) *cobra.Command {
	var conn connection
	var path string
	cmd := &cobra.Command{
		Use:   "request-show TASK",
		Short: "Print what was asked for when a task was made",
		Args:  exactly("a task id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := checkTaskIDs(args); err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			req, err := f.GetRequest(ctx, &pb.TaskIdRequest{TaskId: args[0]})
			if err != nil {
				return err
			}
			raw, err := protoJSON(req)
			if err != nil {
				return err
			}
			return writeJSON(env.Stdout, path, raw)
		}),
	}
	cmd.Flags().StringVar(&path, "json-output", "-", "write JSON to `FILE`, - for stdout")
	conn.register(cmd)
	return cmd
}
