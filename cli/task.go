package cli

import "github.com/spf13/cobra"

// newTaskCommand groups what looks at one task.
func newTaskCommand(env *Env) *cobra.Command {
	cmd := group("task", "Look at one task")
	cmd.AddCommand(newTaskShowCommand(env), newTaskLogCommand(env))
	return cmd
}
