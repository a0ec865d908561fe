package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newDeleteBotsCommand: DeleteBot, one after the other. spec/cli-and-ui.md
// §3.11.
func newDeleteBotsCommand(env *Env) *cobra.Command {
	var conn connection
	var force bool
	cmd := &cobra.Command{
		Use:   "delete-bots BOT...",
		Short: "Remove bots from the server's list",
		Long:  "Remove bots from the server's list; their history stays. A bot that still runs comes back with its next call.",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageErrorf(cmd, "no bot ids")
			}
			return nil
		},
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if !force {
				if !isTerminal(env.Stdin) {
					return usageErrorf(cmd, "nobody can be asked without a terminal; --force deletes %d bots without asking", len(args))
				}
				if !confirm(env, fmt.Sprintf("Delete %d bots:\n  %s\nContinue? [y/N] ", len(args), strings.Join(args, "\n  "))) {
					return fmt.Errorf("nothing was deleted")
				}
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			for _, id := range args {
				res, err := f.DeleteBot(ctx, &pb.BotRequest{BotId: id})
				if err != nil {
					return fmt.Errorf("bot %s: %w", id, err)
				}
				if !res.Deleted {
					return fmt.Errorf("bot %s was not deleted", id)
				}
				f.notef("bot %s is deleted", id)
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	conn.register(cmd)
	return cmd
}

// confirm asks on the terminal; anything but y or yes is no.
func confirm(env *Env, question string) bool {
	fmt.Fprint(env.Stderr, question)
	line, _ := bufio.NewReader(env.Stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}
