package cli

import (
	"context"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newBotShowCommand: GetBot.
func newBotShowCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "show BOT",
		Short: "Show a bot's state and dimensions",
		Args:  exactly("a bot id"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			bot, err := f.GetBot(ctx, &pb.BotRequest{BotId: args[0]})
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(bot) },
				func(w *tableWriter) { botFields(w, bot) })
		}),
	}
	o.register(cmd, "json-output")
	conn.register(cmd)
	return cmd
}
