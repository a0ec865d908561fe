package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newTokenListCommand lists tokens, never their text.
func newTokenListCommand(env *Env) *cobra.Command {
	var flags storeFlags
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tokens",
		Args:  noArgs,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) (err error) {
			tokens, err := openTokens(ctx, env, &flags)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, tokens.close()) }()
			all, err := tokens.list(ctx)
			if err != nil {
				return err
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return all, nil }, func(w *tableWriter) {
				w.row("ID", "NAME", "SCOPE", "STATE", "CREATED", "EXPIRES", "BOTS")
				for _, t := range all {
					w.row(t.ID, t.Name, t.Scope, t.state(time.Now()), day(t.Created), day(t.Expires), strings.Join(t.Bots, ","))
				}
			})
		}),
	}
	flags.register(cmd)
	o.register(cmd)
	return cmd
}

func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}
