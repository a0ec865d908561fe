package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/api/skeppb"
)

// newRolloutCommand groups what an operator does to the rollout of bot code.
func newRolloutCommand(env *Env) *cobra.Command {
	cmd := group("rollout", "See and steer how new bot code reaches the fleet")
	cmd.AddCommand(
		newRolloutVerb(env, "status", "Show where the rollout stands", func(ctx context.Context, f *fleet, _ string) (*skeppb.Rollout, error) {
			return f.GetRollout(ctx)
		}),
		newRolloutVerb(env, "halt", "Give the new code to nobody any more; bots that have it go back", func(ctx context.Context, f *fleet, reason string) (*skeppb.Rollout, error) {
			return f.HaltRollout(ctx, reason)
		}),
		newRolloutVerb(env, "resume", "Begin a halted rollout again", func(ctx context.Context, f *fleet, _ string) (*skeppb.Rollout, error) {
			return f.ResumeRollout(ctx)
		}),
	)
	return cmd
}

func newRolloutVerb(env *Env, name, short string, do func(context.Context, *fleet, string) (*skeppb.Rollout, error)) *cobra.Command {
	var conn connection
	var o outputFlags
	var reason string
	cmd := &cobra.Command{
		Use: name + " [flags]", Short: short, Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			r, err := do(ctx, f, reason)
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(r) }, func(w *tableWriter) { rolloutTable(w, r) })
		}),
	}
	if name == "halt" {
		cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for those who look later")
	}
	o.register(cmd)
	conn.register(cmd)
	return cmd
}

const otherCode = "downloaded other code than it was told to, and did not run it"

func rolloutTable(w *tableWriter, r *skeppb.Rollout) {
	w.row("RELEASE", "VERSION", "STATE", "SINCE", "WAITING", "CONFIRMED", "CRASHED", "QUARANTINED")
	w.row(short(r.StableRelease), short(r.StableVersion), "stable", "", "", "", "", "")
	for _, bot := range r.MismatchedBots {
		if !slices.Contains(r.CrashedBots, bot) {
			w.row("", "", bot+": "+otherCode, "", "", "", "", "")
		}
	}
	if r.NextRelease == "" {
		return
	}
	state := r.Stage
	if r.Halted != "" {
		state = "halted: " + r.Halted
	}
	w.row(short(r.NextRelease), short(r.NextVersion), state, r.Since.AsTime().Format(time.RFC3339),
		fmt.Sprint(r.Waiting), fmt.Sprint(r.Confirmed), fmt.Sprint(r.Crashed), fmt.Sprint(r.Quarantined))
	for _, bot := range r.CrashedBots {
		why := "did not come back with the new code"
		if slices.Contains(r.MismatchedBots, bot) {
			why = otherCode
		}
		w.row("", "", bot+": "+why, "", "", "", "", "")
	}
}
