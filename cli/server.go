package cli

import "github.com/spf13/cobra"

func newServerCommand(env *Env) *cobra.Command {
	return group("server", "Run a server")
}
