package cli

import (
	"context"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// newCASListCommand: what a tree of the storage holds.
func newCASListCommand(env *Env) *cobra.Command {
	var conn connection
	var st storageFlags
	var o outputFlags
	cmd := &cobra.Command{
		Use:     "ls HASH/SIZE",
		Short:   "List a directory of the storage, with all below it",
		Example: "  skep cas ls 8a3f…/164",
		Args:    exactly("a digest"),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			root, err := cas.ParseDigest(args[0])
			if err != nil {
				return usageErrorf(cmd, "%w", err)
			}
			f, err := conn.open(env)
			if err != nil {
				return err
			}
			c, err := st.open(ctx, env, &conn, f, st.instance)
			if err != nil {
				return err
			}
			defer c.Close()
			dirs, err := c.Tree(ctx, root)
			if err != nil {
				return err
			}
			entries := listEntries(dirs, "", root)
			return o.emit(env.Stdout, "table",
				func() (any, error) { return entries, nil },
				func(w *tableWriter) { entriesTable(w.w, entries) })
		}),
	}
	o.register(cmd)
	st.register(cmd)
	st.registerInstance(cmd)
	conn.register(cmd)
	return cmd
}

// listed is an entry of a tree, as cas ls prints it.
type listed struct {
	Path       string `json:"path"`
	Type       string `json:"type"` // file, directory, symlink
	Digest     string `json:"digest,omitempty"`
	Size       int64  `json:"size"` // of a file
	Executable bool   `json:"executable,omitempty"`
	Target     string `json:"target,omitempty"`
}

func listEntries(dirs map[cas.Hash]*cas.Directory, at string, root cas.Digest) []listed {
	out := []listed{}
	d := dirs[root.Hash]
	for _, f := range d.Files {
		out = append(out, listed{Path: path.Join(at, f.Name), Type: "file", Digest: f.Digest.String(), Size: f.Digest.Size, Executable: f.Executable})
	}
	for _, l := range d.Symlinks {
		out = append(out, listed{Path: path.Join(at, l.Name), Type: "symlink", Target: l.Target})
	}
	for _, s := range d.Dirs {
		p := path.Join(at, s.Name)
		out = append(append(out, listed{Path: p, Type: "directory", Digest: s.Digest.String()}), listEntries(dirs, p, s.Digest)...)
	}
	return out
}

// entriesTable prints as ls -l does.
func entriesTable(w io.Writer, entries []listed) {
	for _, e := range entries {
		mode, name := "-rw-", strings.Map(printable, e.Path)
		switch {
		case e.Type == "directory":
			mode, name = "drwx", name+"/"
		case e.Type == "symlink":
			mode, name = "lrwx", name+" -> "+strings.Map(printable, e.Target)
		case e.Executable:
			mode = "-rwx"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\n", mode, e.Size, name)
	}
}

// forceHint tells of --force where that helps.
func forceHint(err error) error {
	if skep.KindOf(err) == skep.Conflict {
		return fmt.Errorf("%w; --force writes into it", err)
	}
	return err
}
