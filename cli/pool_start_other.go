//go:build !linux

package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
)

func newPoolStartCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "start", Short: "Run a pool of warm containers (Linux)", Args: noArgs,
		RunE: env.action(func(context.Context, *cobra.Command, []string) error {
			return errors.New("a pool of containers needs Linux")
		}),
	}
}
