package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/api/skeppb"
	pb "github.com/skepdev/skep/api/swarmingpb"
)

// steerVerb is one thing that an operator tells bots.
type steerVerb struct {
	name, short, did string
	do               func(ctx context.Context, f *fleet, bot, reason string, deadline time.Duration) (*skeppb.BotOrders, error)
}

var steerVerbs = []steerVerb{
	{"drain", "Let a bot finish what it runs and give it no new work", "takes no new work", func(ctx context.Context, f *fleet, bot, reason string, d time.Duration) (*skeppb.BotOrders, error) {
		return f.DrainBot(ctx, bot, reason, d)
	}},
	{"undrain", "Give a drained bot work again", "may take work again", func(ctx context.Context, f *fleet, bot, reason string, _ time.Duration) (*skeppb.BotOrders, error) {
		return f.UndrainBot(ctx, bot, reason)
	}},
	{"quarantine", "Give a bot no new work, as it is ill", "is quarantined", func(ctx context.Context, f *fleet, bot, reason string, _ time.Duration) (*skeppb.BotOrders, error) {
		return f.QuarantineBot(ctx, bot, reason)
	}},
	{"unquarantine", "Take back a quarantine; what the bot says of itself stays", "is not quarantined by an operator", func(ctx context.Context, f *fleet, bot, reason string, _ time.Duration) (*skeppb.BotOrders, error) {
		return f.UnquarantineBot(ctx, bot, reason)
	}},
}

// newSteerCommand tells bots something that lasts until it is taken back.
func newSteerCommand(env *Env, v steerVerb) *cobra.Command {
	var conn connection
	var reason string
	var deadline time.Duration
	dimensions := pairs{unique: true, what: "k=v"}
	cmd := &cobra.Command{
		Use:   v.name + " [BOT…] [flags]",
		Short: v.short,
		Args:  cobra.ArbitraryArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, bots []string) error {
			if (len(bots) == 0) == (len(dimensions.sorted()) == 0) {
				return usageErrorf(cmd, "want bot ids or -d, not both")
			}
			limit := time.Duration(-1)
			if cmd.Flags().Changed("deadline") {
				if limit = deadline; limit < 0 {
					return usageErrorf(cmd, "--deadline must not be negative")
				}
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			if len(bots) == 0 {
				found, err := f.listBots(ctx, &pb.BotsRequest{Dimensions: stringPairs(dimensions.sorted())})
				if err != nil {
					return err
				}
				for _, b := range found {
					bots = append(bots, b.BotId)
				}
			}
			var errs []error
			for _, bot := range bots {
				if _, err := v.do(ctx, f, bot, reason, limit); err != nil {
					errs = append(errs, fmt.Errorf("bot %s: %w", bot, err))
					continue
				}
				f.notef("bot %s %s", bot, v.did)
			}
			return errors.Join(errs...)
		}),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY`, for those who look later")
	cmd.Flags().VarP(&dimensions, "dimension", "d", "all bots that have it; repeatable, all must hold")
	if v.name == "drain" {
		cmd.Flags().DurationVar(&deadline, "deadline", 0, "`TIME` after which what still runs is cancelled (default: the task's own limits)")
	}
	conn.register(cmd)
	return cmd
}

// newAlarmsCommand: ListAlarms.
func newAlarmsCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	cmd := &cobra.Command{
		Use: "alarms [flags]", Short: "Show what somebody should look at", Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			as, err := f.ListAlarms(ctx)
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return protoJSON(as) }, func(w *tableWriter) {
				w.row("ALARM", "POOL", "BOT", "SINCE", "TEXT")
				for _, a := range as.Alarms {
					w.row(a.Kind, a.Pool, a.BotId, a.Since.AsTime().Format(time.RFC3339), oneLine(a.Text))
				}
			})
		}),
	}
	o.register(cmd)
	conn.register(cmd)
	return cmd
}
