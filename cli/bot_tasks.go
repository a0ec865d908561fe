package cli

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newBotTasksCommand: ListBotTasks. spec/cli-and-ui.md §3.10.
func newBotTasksCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	var l taskListing
	var id string
	cmd := &cobra.Command{
		Use:   "bot-tasks --id BOT [flags]",
		Short: "List the tasks that a bot ran, newest first",
		Args:  noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if id == "" {
				return usageErrorf(cmd, "--id is required")
			}
			state, err := l.query(cmd)
			if err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			items, err := f.listBotTasks(ctx, &pb.BotTasksRequest{BotId: id, Start: l.start.proto(), State: state}, l.limit)
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "json", func() (any, error) { return protoJSONList(items) },
				func(w *tableWriter) { tasksTable(w, items) })
		}),
	}
	cmd.Flags().StringVar(&id, "id", "", "the `BOT`")
	l.register(cmd)
	o.register(cmd, "json-output", "json")
	conn.register(cmd)
	return cmd
}
