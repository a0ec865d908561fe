package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/server"
)

// newTokenRevokeCommand ends tokens; servers heed it within seconds.
func newTokenRevokeCommand(env *Env) *cobra.Command {
	var flags storeFlags
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "End a token",
		Args:  exactly("the id of a token"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) (err error) {
			id := strings.TrimSpace(args[0])
			if whole, ok := server.TokenID(id); ok { // a whole token was given
				id = whole
			}
			tokens, err := openTokens(ctx, env, &flags)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, tokens.close()) }()
			return tokens.revoke(ctx, id)
		}),
	}
	flags.register(cmd)
	return cmd
}
