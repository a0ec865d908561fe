package cli

import "github.com/spf13/cobra"

// newBotCommand groups what looks at one bot and steers it.
func newBotCommand(env *Env) *cobra.Command {
	cmd := group("bot", "Look at one bot and steer it")
	cmd.AddCommand(newBotShowCommand(env), newTerminateCommand(env))
	for _, v := range steerVerbs {
		cmd.AddCommand(newSteerCommand(env, v))
	}
	return cmd
}
