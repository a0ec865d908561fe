package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// newServerCommand: a server without bots.
func newServerCommand(env *Env) *cobra.Command {
	var flags serverFlags
	cmd := &cobra.Command{
		Use:   "server [flags]",
		Short: "Run a server",
		Long: "Run a server, without bots.\n\n" +
			"At a loopback address it is open until the first token is made. Anywhere else it needs TLS and an admin token.\n" +
			"Ctrl-C or SIGTERM ends it; tasks go on and report to the next one.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := openService(cmd.Context(), env, &flags)
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			ended := make(chan error, 1)
			s.announce(ctx, env, "")
			go func() { ended <- s.run(ctx) }()
			for interrupts := 0; ; {
				select {
				case err := <-ended:
					return err
				case <-env.Interrupts:
					if interrupts++; interrupts > 1 {
						return errInterrupted
					}
					stop()
				}
			}
		},
	}
	flags.register(cmd)
	return cmd
}
