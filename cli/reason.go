package cli

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/pool"
)

// withReasons lets cmd and what is below it end their last line with the reason
// of the failure, in brackets: programs of a host are started by other programs,
// which read it there.
func withReasons(cmd *cobra.Command) *cobra.Command {
	for _, sub := range cmd.Commands() {
		withReasons(sub)
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error { return reasoned(run(cmd, args)) }
	}
	return cmd
}

// reasoned adds the reason of a pool's refusal, else the kind of the error.
func reasoned(err error) error {
	if exit := (*exitError)(nil); err == nil || errors.As(err, &exit) {
		return err
	}
	return fmt.Errorf("%w [%s]", err, cmp.Or(pool.Reason(err), skep.KindOf(err).String()))
}
