package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/archive"
	"github.com/skepdev/skep/cas/remote"
)

// newCASArchiveCommand: a directory into the storage. spec bot.md §5.4.
func newCASArchiveCommand(env *Env) *cobra.Command {
	var conn connection
	var st storageFlags
	var opt archive.Options
	var paths []string
	var digestFile, jsonFile, cacheFlag string
	var noStats bool
	cmd := &cobra.Command{
		Use:   "archive DIR",
		Short: "Upload a directory; prints its digest",
		Long: `Upload a directory; prints its digest as HASH/SIZE.

Patterns are as in .gitignore: without a slash they match names at any depth, with
one paths below DIR; ** matches directories, and a slash at the end directories only.
Symlinks inside DIR stay symlinks; in place of others stands what they point at.`,
		Example: "  skep cas archive src --exclude '*.o' --exclude /.git/\n  skep run -i src -- make",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			dir, err := archiveRoot(cmd, args, paths, &opt)
			if err != nil {
				return err
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			c, err := st.open(ctx, env, &conn, f, st.instance)
			if err != nil {
				if jsonFile != "" {
					_ = writeJSON(env.Stdout, jsonFile, failedTransfer(err, cas.Digest{}))
				}
				return err
			}
			defer c.Close()
			if opt.Links = archive.Materialise; !noStats {
				opt.StatCache = statFile(env, dir)
			}
			t, err := archiveDir(ctx, env, c, dir, opt)
			if err != nil {
				if jsonFile != "" {
					_ = writeJSON(env.Stdout, jsonFile, failedTransfer(err, cas.Digest{}))
				}
				return err
			}
			f.notef("%d files, %s; %d blobs were sent, %d were there", t.Files, formatBytes(t.Bytes), len(t.Stats.Cold), len(t.Stats.Hot))
			return printArchived(env, t, digestFile, jsonFile)
		}),
	}
	f := cmd.Flags()
	f.StringArrayVar(&opt.Include, "include", nil, "take only what matches `PATTERN`; repeatable")
	f.StringArrayVar(&opt.Exclude, "exclude", nil, "leave out what matches `PATTERN`, \"!\" in front takes it in again; repeatable")
	f.StringArrayVar(&paths, "paths", nil, "`DIR:PATH` as the existing client has it: PATH below DIR, or all of it; repeatable with one DIR")
	f.StringVar(&digestFile, "dump-digest", "", "write the digest to `FILE`, - for stdout")
	f.StringVar(&jsonFile, "dump-json", "", "write what was sent to `FILE` as JSON")
	f.BoolVar(&noStats, "no-stat-cache", false, "hash every file, even if it looks unchanged")
	f.StringVar(&cacheFlag, "log-level", "", "no effect; accepted for old command lines")
	_ = f.MarkHidden("log-level")
	st.register(cmd)
	st.registerInstance(cmd)
	conn.register(cmd)
	return cmd
}

// archiveRoot is the directory to archive, from its argument or from --paths.
func archiveRoot(cmd *cobra.Command, args, paths []string, opt *archive.Options) (string, error) {
	if len(args)+min(len(paths), 1) != 1 {
		return "", usageErrorf(cmd, "%s takes one directory, as an argument or with --paths", cmd.CommandPath())
	}
	if len(args) == 1 {
		return args[0], nil
	}
	root, all := "", false
	for i, p := range paths {
		cut := strings.LastIndexByte(p, ':')
		if cut < 0 {
			return "", usageErrorf(cmd, "--paths %q: want DIR:PATH", p)
		}
		dir, below := p[:cut], filepath.ToSlash(filepath.Clean(p[cut+1:]))
		if i > 0 && dir != root {
			return "", usageErrorf(cmd, "--paths: all must have the same DIR")
		}
		if root = dir; below == "." {
			all = true
			continue
		}
		if !filepath.IsLocal(below) {
			return "", usageErrorf(cmd, "--paths %q: the path leaves the directory", p)
		}
		opt.Include = append(opt.Include, archive.Escape(below))
	}
	if all {
		opt.Include = nil
	}
	return root, nil
}

func printArchived(env *Env, t *archive.Tree, digestFile, jsonFile string) error {
	text := t.Root.String()
	switch digestFile {
	case "", "-":
		fmt.Fprintln(env.Stdout, text)
	default:
		if err := os.WriteFile(digestFile, []byte(text), 0o644); err != nil {
			return fmt.Errorf("--dump-digest: %w", err)
		}
	}
	if jsonFile == "" {
		return nil
	}
	return writeJSON(env.Stdout, jsonFile, archivedJSON(t.Stats))
}

func archivedJSON(s remote.Stats) transfer { return newTransfer(s.Cold, s.Hot) }
