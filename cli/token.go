package cli

import "github.com/spf13/cobra"

// newTokenCommand groups what is done to API tokens.
func newTokenCommand(env *Env) *cobra.Command {
	return group("token", "Make, list and revoke API tokens")
}
