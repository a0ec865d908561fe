package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/host/pool"
)

// defaultPool is where a pool is when nobody says otherwise.
const defaultPool = "/var/lib/skep/pool"

func newPoolCommand(env *Env) *cobra.Command {
	cmd := group("pool", "Keep warm containers, and use them")
	cmd.AddCommand(
		newPoolStartCommand(env), newPoolGetCommand(env), newPoolConfirmCommand(env), newPoolExecCommand(env),
		newPoolReleaseCommand(env), newPoolStatusCommand(env), newPoolRebaseCommand(env), newPoolStopCommand(env),
	)
	return cmd
}

// poolSocket is the flag that names a pool, for its clients.
type poolSocket struct {
	path string
	env  *Env
}

func (p *poolSocket) register(cmd *cobra.Command, env *Env) {
	p.env = env
	cmd.Flags().StringVar(&p.path, "socket", "", "`SOCKET` of the pool (default $SKEP_POOL, else "+filepath.Join(defaultPool, "socket")+")")
}

func (p *poolSocket) dial(ctx context.Context) (*pool.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return pool.Dial(ctx, cmp.Or(p.path, p.env.Getenv("SKEP_POOL"), filepath.Join(defaultPool, "socket")))
}

// printRoom prints a room so that a shell can take it apart.
func printRoom(env *Env, r *pool.Room) {
	fmt.Fprintf(env.Stdout, "%s %d\n", r.Room, r.Generation)
}

func newPoolGetCommand(env *Env) *cobra.Command {
	var sock poolSocket
	var timeout, hold, keep time.Duration
	cmd := &cobra.Command{
		Use: "get [ID]", Short: "Take a container from the pool",
		Long: "Take a container from the pool and print its name and generation. It waits --hold for skep pool confirm and then goes back into stock; with --keep it is confirmed at once and lives that long.\n\nID says what it is for; skep pool status shows it.",
		Args: cobra.MaximumNArgs(1),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			g := pool.Get{For: strings.Join(args, ""), TimeoutMS: timeout.Milliseconds(), HoldMS: hold.Milliseconds()}
			r, err := c.Get(ctx, g)
			if err == nil && keep > 0 {
				r, err = c.Confirm(ctx, r.Lease, keep)
			}
			if err != nil {
				return err
			}
			printRoom(env, r)
			return nil
		}),
	}
	sock.register(cmd, env)
	f := cmd.Flags()
	f.DurationVar(&timeout, "timeout", 0, "how long to wait for one; 0 = not at all")
	f.DurationVar(&hold, "hold", 10*time.Second, "how long it waits to be confirmed, at most 1m")
	f.DurationVar(&keep, "keep", 0, "confirm it, and let it live for so long, at most 24h")
	return cmd
}

func newPoolConfirmCommand(env *Env) *cobra.Command {
	var sock poolSocket
	var keep time.Duration
	cmd := &cobra.Command{
		Use: "confirm ROOM", Short: "Keep a container that was taken", Args: exactly("a ROOM"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Confirm(ctx, pool.Lease{Room: args[0]}, keep)
			if err != nil {
				return err
			}
			printRoom(env, r)
			return nil
		}),
	}
	sock.register(cmd, env)
	cmd.Flags().DurationVar(&keep, "keep", 10*time.Minute, "how long it lives from now on, at most 24h")
	return cmd
}

func newPoolExecCommand(env *Env) *cobra.Command {
	var sock poolSocket
	var binds, envs []string
	var dir string
	var task bool
	var keep time.Duration
	cmd := &cobra.Command{
		Use: "exec [flags] ROOM -- COMMAND…", Short: "Run a command in a container that was taken",
		Long: "Run a command in a container that was taken, with this standard input, output and error. Exits with the command's exit code.",
		Args: cobra.MinimumNArgs(2),
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Confirm(ctx, pool.Lease{Room: args[0]}, keep)
			if err != nil {
				return err
			}
			for _, b := range binds {
				from, at, ok := strings.Cut(b, ":")
				at, readOnly := strings.CutSuffix(at, ":ro")
				if !ok || from == "" || !filepath.IsAbs(at) {
					return usageErrorf(cmd, "--bind %q: want DIR:PATH or DIR:PATH:ro", b)
				}
				f, err := os.Open(from)
				if err != nil {
					return fmt.Errorf("--bind: %w", err)
				}
				err = c.Bind(ctx, r.Lease, f, at, readOnly)
				_ = f.Close()
				if err != nil {
					return err
				}
			}
			if len(envs) == 0 {
				envs = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
			}
			run, err := c.Start(ctx, pool.Exec{Lease: r.Lease, Args: args[1:], Env: envs, Dir: dir, Task: task}, [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
			if err != nil {
				return err
			}
			code, err := run.Wait(ctx)
			if err != nil && ctx.Err() != nil { // interrupted: the command is, too
				if serr := run.Signal(context.WithoutCancel(ctx), int(syscall.SIGTERM)); serr != nil {
					return serr
				}
				return err
			}
			if err != nil {
				return err
			}
			if code < 0 {
				code = 128 - code
			}
			if code != 0 {
				return &exitError{code: code}
			}
			return nil
		}),
	}
	sock.register(cmd, env)
	f := cmd.Flags()
	f.StringArrayVar(&binds, "bind", nil, "make `DIR:PATH[:ro]` of this host appear in it; repeatable")
	f.StringArrayVar(&envs, "env", nil, "`NAME=VALUE` of the command's environment; repeatable")
	f.StringVar(&dir, "dir", "", "working `DIR` in it")
	f.BoolVar(&task, "task", false, "run as the user for tasks, without capabilities")
	f.DurationVar(&keep, "keep", 10*time.Minute, "how long it lives after this, at most 24h")
	return cmd
}

func newPoolReleaseCommand(env *Env) *cobra.Command {
	var sock poolSocket
	cmd := &cobra.Command{
		Use: "release ROOM", Short: "End a container that was taken", Args: exactly("a ROOM"),
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, args []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Release(ctx, pool.Lease{Room: args[0]})
		}),
	}
	sock.register(cmd, env)
	return cmd
}

func newPoolStatusCommand(env *Env) *cobra.Command {
	var sock poolSocket
	var out outputFlags
	cmd := &cobra.Command{
		Use: "status", Short: "Show how a pool is", Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			st, err := c.Status(ctx)
			if err != nil {
				return err
			}
			return out.emit(env.Stdout, "table", func() (any, error) { return st, nil }, func(t *tableWriter) { printPool(t, st) })
		}),
	}
	sock.register(cmd, env)
	out.register(cmd)
	return cmd
}

func printPool(t *tableWriter, st *pool.Status) {
	state := "running"
	if !st.Running {
		state = "stopping"
	}
	t.row("pool", state, st.Socket)
	t.row("runtime", st.Runtime, st.Base)
	if st.Paused != "" {
		t.row("paused", "", st.Paused)
	}
	for _, n := range []struct {
		name  string
		value int
		what  string
	}{
		{"ready", st.Ready, fmt.Sprintf("of %d wanted, at most %d", st.Wanted, st.Capacity)},
		{"making", st.Making, ""},
		{"leased", st.Leased, "handed out, not confirmed"},
		{"used", st.Used, "confirmed"},
		{"ending", st.Ending, ""},
		{"waiting", st.Waiting, "gets"},
		{"clients", st.Clients, ""},
	} {
		t.row(n.name, fmt.Sprint(n.value), n.what)
	}
	for _, h := range st.Held {
		t.row("held", h.Room, fmt.Sprintf("for %q, %s", h.For, time.Duration(h.AgeMS)*time.Millisecond))
	}
	for _, e := range st.Errors {
		t.row("error", e.At.Format(time.RFC3339), e.Cause+": "+e.Text)
	}
}

func newPoolRebaseCommand(env *Env) *cobra.Command {
	var sock poolSocket
	var ask pool.Rebase
	cmd := &cobra.Command{
		Use: "rebase", Short: "Give a pool another base image", Args: noArgs,
		Long: "Give a pool another base image, without a restart. It returns when all containers that the pool gives out are of it; those that are in use stay as they are, and the old image goes with the last of them. Start the pool with it next time.",
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) (err error) {
			if ask.File, err = filepath.Abs(ask.File); err != nil {
				return err
			}
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Rebase(ctx, ask)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&ask.File, "base", "", "`FILE`, a tar archive of the base image; plain, gzip or zstd")
	f.StringVar(&ask.Digest, "digest", "", "its digest, `sha256:…`")
	_ = cmd.MarkFlagRequired("base")
	_ = cmd.MarkFlagRequired("digest")
	sock.register(cmd, env)
	return cmd
}

func newPoolStopCommand(env *Env) *cobra.Command {
	var sock poolSocket
	cmd := &cobra.Command{
		Use: "stop", Short: "End a pool; returns when all its containers are removed", Args: noArgs,
		RunE: env.action(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			c, err := sock.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Shutdown(ctx)
		}),
	}
	sock.register(cmd, env)
	return cmd
}
