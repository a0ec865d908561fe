package cli

import "github.com/spf13/cobra"

// newBenchCommand groups the benchmarks (decisions.md 31).
func newBenchCommand(env *Env) *cobra.Command {
	cmd := group("bench", "Measure this fleet on this machine")
	return cmd
}
