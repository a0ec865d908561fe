package cli

import "github.com/spf13/cobra"

// newCASCommand: content-addressed storage.
func newCASCommand(env *Env) *cobra.Command {
	cmd := group("cas", "Move files to and from content-addressed storage")
	cmd.AddCommand(newCASArchiveCommand(env), newCASDownloadCommand(env), newCASListCommand(env))
	return cmd
}
