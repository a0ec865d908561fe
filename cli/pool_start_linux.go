package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/lxc"
	"github.com/skepdev/skep/host/warm/oci"
)

func newPoolStartCommand(env *Env) *cobra.Command {
	var (
		o        warm.Options
		kind     string
		users    []int
		groups   []int
		memory   byteSize
		logLevel slog.Level
	)
	cmd := &cobra.Command{
		Use: "start", Short: "Run a pool of warm containers", Args: noArgs,
		Long: "Run a pool of warm containers until it is told to end (skep pool stop, SIGTERM or Ctrl-C). It makes containers ahead from a base image, a tar archive of a root file system that is verified by its digest, and hands one out in a fraction of a millisecond.\n\nRoot in a container is nobody on the host: ids from --first-id on are the containers', and must be nobody else's.",
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			o.Log = slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: logLevel}))
			dir, err := filepath.Abs(o.Dir)
			if err != nil {
				return err
			}
			o.Dir = dir
			if o.Runtime, err = poolRuntime(kind, dir); err != nil {
				return usageErrorf(cmd, "--runtime: %v", err)
			}
			o.Limits.Memory = int64(memory)
			for _, u := range users {
				o.Users = append(o.Users, uint32(u)) //nolint:gosec // a flag's
			}
			for _, g := range groups {
				o.Groups = append(o.Groups, uint32(g)) //nolint:gosec // a flag's
			}
			if o.Program == "" {
				if o.Program, err = os.Executable(); err != nil {
					return err
				}
			}
			s, err := warm.New(ctx, o)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultPool, "`DIR` of the pool, on a disk; its socket is DIR/socket")
	f.StringVar(&o.Socket, "socket", "", "`SOCKET` elsewhere")
	f.StringVar(&kind, "runtime", "oci", "`KIND` of containers: oci (crun, else runc), crun, runc or lxc")
	f.StringVar(&o.Base.File, "base", "", "`FILE`, a tar archive of the base image; plain, gzip or zstd")
	f.StringVar(&o.Base.Digest, "digest", "", "its digest, `sha256:…`")
	f.IntVar(&o.Size.Min, "min", 2, "containers that are ready when nobody asks")
	f.IntVar(&o.Size.Max, "max", 20, "the most that are ready when many ask")
	f.IntVar(&o.Size.Limit, "limit", 256, "the most containers in all")
	f.IntVar(&o.Size.Creators, "creators", 5, "how many are made at a time")
	f.Var(&memory, "memory", "the most memory of one container, a `SIZE`")
	f.Int64Var(&o.Limits.Processes, "processes", 4096, "the most processes and threads of one container; 0 = no limit")
	f.Int64Var(&o.Limits.MilliCPU, "milli-cpu", 0, "the most processor time of one container, in thousandths of a processor")
	f.Uint32Var(&o.FirstID, "first-id", 1_000_000, "the first of the containers' users and groups on this host")
	f.Uint32Var(&o.IDs, "ids", 65536, "how many there are")
	f.BoolVar(&o.HostNetwork, "host-network", false, "let containers use the host's network; they have none otherwise")
	f.IntSliceVar(&users, "allow-user", nil, "`UID` that may use the pool besides root; repeatable")
	f.IntSliceVar(&groups, "allow-group", nil, "`GID` that may use the pool; the socket belongs to the first; repeatable")
	f.IntVar(&o.MaxClients, "max-clients", 10240, "the most connections at a time")
	f.StringVar(&o.Program, "room-program", "", "`FILE`, a static skep that is the first process of containers (default: this one)")
	f.TextVar(&logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
	_ = f.MarkHidden("room-program")
	_ = cmd.MarkFlagRequired("base")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}

func poolRuntime(kind, dir string) (warm.Runtime, error) {
	switch kind {
	case "oci":
		return &oci.Runtime{State: filepath.Join(dir, "oci")}, nil
	case "crun", "runc":
		return &oci.Runtime{Program: kind, State: filepath.Join(dir, "oci")}, nil
	case "lxc":
		return &lxc.Runtime{}, nil
	default:
		return nil, fmt.Errorf("%q is none of oci, crun, runc and lxc", kind)
	}
}
