package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// newBotsCommand: ListBots or CountBots. spec/cli-and-ui.md §3.9.
func newBotsCommand(env *Env) *cobra.Command {
	var conn connection
	var o outputFlags
	var fields []string
	var count, bare bool
	dimensions := pairs{unique: true, what: "k=v"}
	cmd := &cobra.Command{
		Use:     "bots [flags]",
		Short:   "List or count bots",
		Example: "  skep bots -d pool=default -o table",
		Args:    noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if count && bare {
				return usageErrorf(cmd, "--count and --bare exclude each other")
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			if count {
				res, err := f.CountBots(ctx, &pb.BotsCountRequest{Dimensions: stringPairs(dimensions.sorted())})
				if err != nil {
					return err
				}
				return o.emit(env.Stdout, "json", func() (any, error) { return protoJSON(res) },
					func(w *tableWriter) {
						w.row("ALL", "BUSY", "QUARANTINED", "MAINTENANCE", "DEAD")
						w.row(fmt.Sprint(res.Count), fmt.Sprint(res.Busy), fmt.Sprint(res.Quarantined), fmt.Sprint(res.Maintenance), fmt.Sprint(res.Dead))
					})
			}
			bots, err := f.listBots(ctx, &pb.BotsRequest{Dimensions: stringPairs(dimensions.sorted())})
			if err != nil {
				return err
			}
			if bare {
				for _, b := range bots {
					fmt.Fprintln(env.Stdout, b.BotId)
				}
				return nil
			}
			return o.emit(env.Stdout, "json", func() (any, error) { return protoJSONList(bots) },
				func(w *tableWriter) { botsTable(w, bots) })
		}),
	}
	cmd.AddCommand(newRolloutCommand(env), newAlarmsCommand(env))
	cmd.Flags().VarP(&dimensions, "dimension", "d", "only bots that have it; repeatable, all must hold")
	cmd.Flags().BoolVar(&count, "count", false, "count them")
	cmd.Flags().BoolVar(&bare, "bare", false, "print ids only, one per line")
	cmd.Flags().StringArrayVar(&fields, "field", nil, "no effect; accepted for old command lines")
	_ = cmd.Flags().MarkHidden("field")
	o.register(cmd, "json-output", "json")
	conn.register(cmd)
	return cmd
}
