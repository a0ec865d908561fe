package cli

import (
	"context"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// untilInterrupted runs a service to its end. The first interrupt ends the
// context of run, the second gives up waiting.
func untilInterrupted(ctx context.Context, env *Env, run func(context.Context) error) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
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
}

// newServerCommand: a server without bots.
func newServerCommand(env *Env) *cobra.Command {
	var flags serverFlags
	var profile string
	cmd := &cobra.Command{
		Use:   "server [flags]",
		Short: "Run a server",
		Long: "Run a server, without bots.\n\n" +
			"At a loopback address it is open until the first token is made. Anywhere else it needs TLS and an admin token.\n" +
			"Ctrl-C or SIGTERM ends it; tasks go on and report to the next one.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if profile != "" {
				f, err := os.Create(profile)
				if err != nil {
					return err
				}
				defer f.Close()
				if err := pprof.StartCPUProfile(f); err != nil {
					return err
				}
				defer pprof.StopCPUProfile()
			}
			s, err := openService(cmd.Context(), env, &flags, "")
			if err != nil {
				return err
			}
			s.announce(cmd.Context(), env, "")
			return untilInterrupted(cmd.Context(), env, s.run)
		},
	}
	flags.register(cmd)
	cmd.Flags().StringVar(&profile, "cpuprofile", "", "write a profile of the processor's time to `FILE`")
	_ = cmd.Flags().MarkHidden("cpuprofile")
	return cmd
}
