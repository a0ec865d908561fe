package cli

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newCancelTasksCommand: CancelTasks, page by page. spec/cli-and-ui.md §3.8.
func newCancelTasksCommand(env *Env) *cobra.Command {
	var conn connection
	var tags []string
	var limit int
	var kill bool
	var start, end instant
	cmd := &cobra.Command{
		Use:     "cancel-tasks --tag KEY:VALUE [flags]",
		Short:   "Cancel every task with all of the given tags",
		Example: "  skep cancel-tasks --tag build:1234 --kill-running",
		Args:    noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			switch {
			case limit < 1:
				return usageErrorf(cmd, "--limit must be at least 1")
			case len(tags) == 0:
				return usageErrorf(cmd, "--tag is required, so that not every task of the fleet is canceled")
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			req := &pb.TasksCancelRequest{Tags: tags, KillRunning: kill, Start: start.proto(), End: end.proto()}
			matched := 0
			for matched < limit {
				req.Limit = int32(min(limit-matched, pageSize))
				res, err := f.CancelTasks(ctx, req)
				if err != nil {
					return err
				}
				matched += int(res.Matched)
				if req.Cursor = res.Cursor; req.Cursor == "" || res.Matched == 0 {
					break
				}
			}
			f.notef("%d tasks are being canceled", matched)
			return nil
		}),
	}
	cmd.Flags().StringArrayVar(&tags, "tag", nil, "`KEY:VALUE` the tasks have; repeatable, all must hold")
	cmd.Flags().IntVar(&limit, "limit", 200, "cancel at most this many")
	cmd.Flags().BoolVar(&kill, "kill-running", false, "stop running tasks too")
	cmd.Flags().Var(&start, "start", "created at or after")
	cmd.Flags().Var(&end, "end", "created before")
	conn.register(cmd)
	return cmd
}
