package cli

import "github.com/spf13/cobra"

func newUpCommand(env *Env) *cobra.Command {
	return group("up", "Run a whole fleet on this machine")
}
