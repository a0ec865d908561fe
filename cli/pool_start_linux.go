package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/warm"
	"github.com/skepdev/skep/host/warm/docker"
	"github.com/skepdev/skep/host/warm/lxc"
	"github.com/skepdev/skep/host/warm/oci"
)

func newPoolStartCommand(env *Env) *cobra.Command {
	var (
		o        warm.Options
		kind     string
		engine   string
		users    []int
		groups   []int
		metrics  string
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
			if o.Runtime, err = poolRuntime(kind, dir, engine); err != nil {
				return usageErrorf(cmd, "--runtime: %v", err)
			}
			if d, ok := o.Runtime.(*docker.Runtime); ok {
				defer d.Close()
				if err := d.Check(ctx); err != nil {
					return err
				}
				if !cmd.Flags().Changed("first-id") {
					o.FirstID = d.FirstID()
				}
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
			var scrape net.Listener
			if metrics != "" {
				if scrape, err = listenLoopback(ctx, "--metrics", metrics); err != nil {
					return err
				}
				defer scrape.Close()
			}
			s, err := warm.New(ctx, o)
			if err != nil {
				return err
			}
			if scrape == nil {
				return s.Run(ctx)
			}
			var serving sync.WaitGroup
			defer serving.Wait()
			srv := &http.Server{Handler: s.Metrics(), ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
			defer srv.Close()
			serving.Go(func() { _ = srv.Serve(scrape) }) // ends with Close
			return s.Run(ctx)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultPool, "`DIR` of the pool, on a disk; its socket is DIR/socket")
	f.StringVar(&o.Socket, "socket", "", "`SOCKET` elsewhere")
	f.StringVar(&kind, "runtime", "oci", "`KIND` of containers: oci (crun, else runc), crun, runc, lxc or docker")
	f.StringVar(&engine, "engine", "", "`URL` of the container engine of --runtime docker, which must map users (default unix:///var/run/docker.sock)")
	f.StringVar(&o.Base.File, "base", "", "`FILE`, a tar archive of the base image; plain, gzip or zstd")
	f.StringVar(&o.Base.Digest, "digest", "", "its digest, `sha256:…`")
	f.IntVar(&o.Size.Min, "min", 2, "containers that are ready when nobody asks")
	f.IntVar(&o.Size.Max, "max", 20, "the most that are ready when many ask")
	f.IntVar(&o.Size.Limit, "limit", 256, "the most containers in all")
	f.IntVar(&o.Size.Creators, "creators", 5, "how many are made at a time")
	f.Var(&memory, "memory", "the most memory of one container, a `SIZE`")
	f.Int64Var(&o.Limits.Processes, "processes", 4096, "the most processes and threads of one container; 0 = no limit")
	f.Int64Var(&o.Limits.MilliCPU, "milli-cpu", 0, "the most processor time of one container, in thousandths of a processor")
	f.Uint32Var(&o.FirstID, "first-id", 1_000_000, "the first of the containers' users and groups on this host; with --runtime docker the engine's")
	f.Uint32Var(&o.IDs, "ids", 65536, "how many there are")
	f.BoolVar(&o.HostNetwork, "host-network", false, "let containers use the host's network; they have none otherwise")
	f.IntSliceVar(&users, "allow-user", nil, "`UID` that may use the pool besides root; repeatable")
	f.IntSliceVar(&groups, "allow-group", nil, "`GID` that may use the pool; the socket belongs to the first; repeatable")
	f.IntVar(&o.MaxClients, "max-clients", 10240, "the most connections at a time")
	f.StringVar(&metrics, "metrics", "", "`ADDRESS` on loopback, as 127.0.0.1:9101, where GET / answers in the format of Prometheus (default: nowhere)")
	f.StringVar(&o.Program, "room-program", "", "`FILE`, a static skep that is the first process of containers (default: this one)")
	f.TextVar(&logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
	_ = f.MarkHidden("room-program")
	_ = cmd.MarkFlagRequired("base")
	_ = cmd.MarkFlagRequired("digest")
	return cmd
}

func poolRuntime(kind, dir, engine string) (warm.Runtime, error) {
	switch kind {
	case "oci":
		return &oci.Runtime{State: filepath.Join(dir, "oci")}, nil
	case "crun", "runc":
		return &oci.Runtime{Program: kind, State: filepath.Join(dir, "oci")}, nil
	case "lxc":
		return &lxc.Runtime{}, nil
	case "docker":
		return &docker.Runtime{Host: engine}, nil
	default:
		return nil, fmt.Errorf("%q is none of oci, crun, runc, lxc and docker", kind)
	}
}

// listenLoopback listens at an address that nobody else reaches: there is no
// token. flag names it in errors.
func listenLoopback(ctx context.Context, flag, address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return nil, skep.Errorf(skep.Invalid, "%s is %q, want an address on loopback, as 127.0.0.1:9101", flag, address)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, skep.Errorf(skep.Conflict, "%s: %w; name another port", flag, err)
	}
	return l, nil
}
