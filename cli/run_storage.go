package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
)

// uploadInputs makes dir the inputs of the task.
func (t *taskFlags) uploadInputs(cmd *cobra.Command, env *Env, conn *connection, st *storageFlags, f *fleet, dir string, exclude []string) error {
	if _, err := os.Stat(dir); err != nil { // before anybody is asked
		return fmt.Errorf("-i/--in: %w", err)
	}
	return env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
		c, err := st.open(ctx, env, conn, f, t.casInstance)
		if err != nil {
			return err
		}
		defer c.Close()
		tree, err := archiveDir(ctx, env, c, dir, archive.Options{
			Exclude: exclude, Links: archive.Materialise, StatCache: statFile(env, dir),
		})
		if err != nil {
			return fmt.Errorf("-i/--in: %w", err)
		}
		t.digest, t.casInstance = tree.Root.String(), c.Instance()
		return nil
	})(cmd, nil)
}

// fetchOutputs writes what the task left to dir, which is empty if that is
// nothing.
func fetchOutputs(ctx context.Context, env *Env, conn *connection, st *storageFlags, f *fleet, r *pb.TaskResultResponse, dir string) error {
	instance, root := "", cas.Empty
	if r.CasOutputRoot != nil {
		var err error
		if instance, root, err = reference(r.CasOutputRoot); err != nil {
			return fmt.Errorf("outputs of task %s: %w", r.TaskId, err)
		}
	}
	c, err := st.open(ctx, env, conn, f, instance)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fetch(ctx, env, c, root, dir, false); err != nil {
		return fmt.Errorf("outputs of task %s: %w", r.TaskId, err)
	}
	return nil
}
