package cli

import "github.com/spf13/cobra"

// newBotCommand groups what looks at one bot.
func newBotCommand(env *Env) *cobra.Command {
	cmd := group("bot", "Look at one bot")
	cmd.AddCommand(newBotShowCommand(env))
	return cmd
}
