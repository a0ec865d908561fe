package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/server"
)

// newTokenCreateCommand prints the new token, and nothing else, to stdout.
func newTokenCreateCommand(env *Env) *cobra.Command {
	var flags storeFlags
	var o outputFlags
	var n server.NewToken
	var bootstrap bool
	cmd := &cobra.Command{
		Use:   "create --scope SCOPE [flags]",
		Short: "Make a token and print it",
		Long: "Make a token and print it, once: only its hash is kept.\n\n" +
			"Scopes: user creates and reads tasks, cancels its own and lists bots; admin may do everything;\n" +
			"bot is for bots alone, and bound to bot ids; drone is for hosts that run bots of devices, and inventory for\n" +
			"who declares the devices. A bootstrap token (--bootstrap) buys new bots a\n" +
			"credential of their own: so many times, so long, and for these bot ids only.",
		Example: "  skep token create --scope admin --name ann > ~/.skep-token\n  skep token create --scope bot --name lab1 --bot-id 'lab1-*'\n" +
			"  skep token create --bootstrap --bot-id 'lab1-*' --count 20 --expires 2h",
		Args: noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) (err error) {
			if bootstrap {
				n.Scope = server.ScopeBootstrap
			}
			if n.Scope == "" {
				return usageErrorf(cmd, "--scope is required: user, admin, bot, drone or inventory; or --bootstrap")
			}
			n.Name = cmp.Or(n.Name, env.Getenv("USER"), n.Scope)
			tokens, err := openTokens(ctx, env, &flags)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, tokens.close()) }()
			made, err := tokens.create(ctx, n)
			if err != nil {
				return err
			}
			if o.format == "" {
				_, err := fmt.Fprintln(env.Stdout, made.Token)
				return err
			}
			return o.emit(env.Stdout, "json", func() (any, error) { return made, nil }, func(w *tableWriter) {
				w.row("ID", "TOKEN")
				w.row(made.ID, made.Token)
			})
		}),
	}
	cmd.Flags().Var(newChoice(&n.Scope, "", server.ScopeUser, server.ScopeAdmin, server.ScopeBot, server.ScopeBootstrap, server.ScopeDrone, server.ScopeInventory), "scope", "what it opens")
	cmd.Flags().StringVar(&n.Name, "name", "", "who has it, for listings and logs (default $USER)")
	cmd.Flags().StringArrayVar(&n.Bots, "bot-id", nil, "`ID` of a bot that may use it, or a prefix ending in *; repeatable")
	cmd.Flags().BoolVar(&bootstrap, "bootstrap", false, "a token for /bootstrap; short for --scope bootstrap")
	cmd.Flags().IntVar(&n.Uses, "count", 0, "how many `BOTS` a bootstrap token brings in")
	cmd.Flags().DurationVar(&n.Life, "expires", 0, "how long it is valid, as 720h; 0 = until it is revoked")
	flags.register(cmd)
	o.register(cmd)
	return cmd
}
