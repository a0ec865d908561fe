package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/cas"
)

// newCASDownloadCommand: a tree of the storage into a directory. spec bot.md
// §5.4.
func newCASDownloadCommand(env *Env) *cobra.Command {
	var conn connection
	var st storageFlags
	var digest, dir, jsonFile string
	var force bool
	var ignored [4]string
	cmd := &cobra.Command{
		Use:     "download HASH/SIZE DIR",
		Short:   "Write a directory of the storage to the disk",
		Long:    "Write a directory of the storage to DIR, which must be new or empty unless --force is given.\n\nNothing is written outside of DIR: a tree with names or symlinks that would leave it is refused.",
		Example: "  skep cas download 8a3f…/164 out",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if digest == "" && len(args) > 0 {
				digest, args = args[0], args[1:]
			}
			if dir == "" && len(args) > 0 {
				dir, args = args[0], args[1:]
			}
			if digest == "" || dir == "" || len(args) > 0 {
				return usageErrorf(cmd, "%s takes a digest and a directory", cmd.CommandPath())
			}
			root, err := cas.ParseDigest(digest)
			if err != nil {
				return usageErrorf(cmd, "%w", err)
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			c, err := st.open(ctx, env, &conn, f, st.instance)
			if err != nil {
				if jsonFile != "" {
					_ = writeJSON(env.Stdout, jsonFile, failedTransfer(err, root))
				}
				return err
			}
			defer c.Close()
			out, err := fetch(ctx, env, c, root, dir, force)
			if err != nil {
				if jsonFile != "" {
					_ = writeJSON(env.Stdout, jsonFile, failedTransfer(err, root))
				}
				return forceHint(err)
			}
			f.notef("%d files, %s", len(out.Files), formatBytes(out.Bytes))
			if jsonFile == "" {
				return nil
			}
			return writeJSON(env.Stdout, jsonFile, newTransfer(out.Fetched, nil))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&digest, "digest", "", "`HASH/SIZE` of the directory")
	f.StringVar(&dir, "dir", "", "`DIR` to write to")
	f.BoolVar(&force, "force", false, "write into a directory that holds files; those in the way are replaced")
	f.StringVar(&jsonFile, "dump-json", "", "write what was fetched to `FILE` as JSON")
	for i, name := range []string{"cache-dir", "cache-max-size", "cache-min-free-space", "log-level"} {
		f.StringVar(&ignored[i], name, "", "no effect; accepted for old command lines")
		_ = f.MarkHidden(name)
	}
	st.register(cmd)
	st.registerInstance(cmd)
	conn.register(cmd)
	return cmd
}
