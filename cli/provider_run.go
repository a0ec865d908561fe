package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/client"
	"github.com/skepdev/skep/internal/servercert"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// providerFlags are those of a provider that is a process of its own.
type providerFlags struct {
	storeFlags
	swarming        swarmingFlags
	machines        machineFlags
	config, caFile  string
	urls            []string
	listen          string
	tlsCert, tlsKey string
	metricsToken    string
	level           slog.Level
}

func (p *providerFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	p.storeFlags.register(cmd)
	f.StringVar(&p.config, "config", "", "`DIR` with vms.cfg, as the servers have it")
	f.StringArrayVar(&p.urls, "url", nil, "public `URL` of the servers, as they have it; repeatable, the first is the bots'")
	f.StringVar(&p.caFile, "ca-file", "", "`FILE` with the certificates that bots trust, for servers that made their own: ca.pem of their state directory")
	f.StringVar(&p.listen, "listen", "127.0.0.1:8901", "`ADDRESS` of /healthz, /readyz and /metrics; any but a loopback address needs TLS and a token for metrics")
	f.StringVar(&p.tlsCert, "tls-cert", "", "`FILE` with the certificate chain for that, read again when it changes")
	f.StringVar(&p.tlsKey, "tls-key", "", "`FILE` with its key")
	f.StringVar(&p.metricsToken, "metrics-token-file", "", "`FILE` with the token that may read /metrics, read again each time (default: on loopback anybody may)")
	f.TextVar(&p.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	_ = cmd.MarkFlagDirname("config")
	_ = cmd.MarkFlagFilename("ca-file")
	p.swarming.register(cmd)
	p.machines.register(cmd)
	cmd.MarkFlagsRequiredTogether("tls-cert", "tls-key")
}

// newProviderRunCommand: what servers do with pools of machines, in a process
// of its own.
func newProviderRunCommand(env *Env) *cobra.Command {
	var flags providerFlags
	cmd := &cobra.Command{
		Use:   "run --db URL --config DIR --url URL [flags]",
		Short: "Look after pools of machines, beside the servers on a PostgreSQL",
		Long: "Look after the pools of machines that vms.cfg declares, in a process of its own, beside the servers on a PostgreSQL.\n" +
			"Any number may run, and servers too that look after machines themselves (those without --no-provider): each pool is\n" +
			"looked after by one of them. SQLite is one process's: there skep server and skep up look after machines.\n\n" +
			"Ctrl-C or SIGTERM ends it; machines stay, and another one looks after them.",
		Example: "  skep server --db postgres://db.example.com/skep --config conf --no-provider\n" +
			"  skep provider run --db postgres://db.example.com/skep --config conf --url https://skep.example.com",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := openProviderProcess(cmd.Context(), env, &flags)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Stdout, "skep: provider ready; see %s\n", p.address())
			return untilInterrupted(cmd.Context(), env, p.run)
		},
	}
	flags.register(cmd)
	return cmd
}

// providerProcess is skep provider run at work.
type providerProcess struct {
	log      *slog.Logger
	stateDir string
	store    *store.Store
	config   *fleetConfig
	machines *machines
	listener net.Listener
	secure   bool
	door     *server.ProviderDoor
}

// openProviderProcess gets everything that may be refused.
func openProviderProcess(ctx context.Context, env *Env, f *providerFlags) (_ *providerProcess, err error) {
	p := &providerProcess{log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: f.level}))}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if cmp.Or(f.db, env.Getenv("SKEP_DB")) == "" {
		return nil, errors.New("skep provider run needs the servers' PostgreSQL: name it with --db postgres://… or SKEP_DB. " +
			"A SQLite database is one process's; there skep server and skep up look after machines themselves, with --config")
	}
	if f.config == "" {
		return nil, errors.New("--config is required: the directory with vms.cfg")
	}
	urls, err := serverURLs(f.urls)
	if err != nil {
		return nil, err
	}
	if len(urls) == 0 {
		return nil, errors.New("--url is required: the address at which bots reach the servers")
	}
	ca, err := readCertificates(f.caFile)
	if err != nil {
		return nil, err
	}
	if p.stateDir, err = f.directory(env); err != nil {
		return nil, err
	}
	dsn, err := f.dsn(env, p.stateDir)
	if err != nil {
		return nil, err
	}
	others, err := f.swarming.open()
	if err != nil {
		return nil, err
	}
	patience, err := f.machines.patience()
	if err != nil {
		return nil, err
	}
	token, err := p.listen(ctx, f)
	if err != nil {
		return nil, err
	}
	if p.store, err = store.Open(ctx, dsn, store.Options{}); err != nil {
		return nil, err
	}
	if p.config, err = openConfig(f.config, filepath.Join(p.stateDir, "provider"), urls, p.log); err != nil {
		return nil, err
	}
	// Bots are told to end and are forgotten as servers do that; the servers
	// that they speak to hear of it. No bot speaks to this process.
	sched := scheduler.New(p.store, scheduler.Options{Log: p.log, Version: version(), NoPolls: true, Watch: func(bot skep.BotID) {
		if p.machines != nil {
			p.machines.Rouse(bot)
		}
	}})
	parts := &machineParts{
		store: p.store, config: p.config, fleet: sched, code: releasedCode{p.store, urls}, stateDir: p.stateDir, urls: urls, ca: ca, caFile: f.caFile, closed: p.isClosed, others: others, patience: patience, log: p.log,
	}
	if p.machines, err = parts.open(ctx, env); err != nil {
		return nil, err
	}
	p.door = &server.ProviderDoor{Store: p.store, Machines: p.machines.Reconciler, Log: p.log, Token: token}
	return p, nil
}

// serverURLs reads the values of --url.
func serverURLs(raw []string) (urls []string, err error) {
	for _, r := range raw {
		u, err := client.ParseServer(r)
		if err != nil {
			return nil, fmt.Errorf("--url: %w", err)
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// readCertificates returns the text of a file of certificates, "" of none.
func readCertificates(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--ca-file: %w", err)
	}
	if _, err := certPool(pem); err != nil {
		return "", fmt.Errorf("--ca-file: %s %w", file, err)
	}
	return string(pem), nil
}

// listen opens the door to look at this process, and returns the token that a
// scraper must bring; nil = none.
func (p *providerProcess) listen(ctx context.Context, f *providerFlags) (token func() string, err error) {
	if f.metricsToken != "" {
		if token, err = metricsToken(f.metricsToken); err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	p.listener, p.secure = l, f.tlsCert != ""
	if !l.Addr().(*net.TCPAddr).IP.IsLoopback() && (!p.secure || token == nil) {
		return nil, fmt.Errorf("--listen %s is not a loopback address and needs TLS (--tls-cert and --tls-key) and --metrics-token-file", f.listen)
	}
	if p.secure {
		source, err := servercert.Files(f.tlsCert, f.tlsKey)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert: %w", err)
		}
		p.listener = tls.NewListener(l, &tls.Config{GetCertificate: source, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	return token, nil
}

// address is where this process is looked at.
func (p *providerProcess) address() string {
	scheme := map[bool]string{false: "http", true: "https"}[p.secure]
	return fmt.Sprintf("%s://%s/metrics", scheme, p.listener.Addr())
}

// isClosed reports whether bots need tokens: there is one that closes the
// servers' door, whether they are on loopback or not.
func (p *providerProcess) isClosed(ctx context.Context) (bool, error) {
	tokens, err := p.store.Tokens(ctx)
	return slices.ContainsFunc(tokens, func(t store.Token) bool { return server.Closes(t.Scope) }), err
}

// releasedCode finds the bot code that servers have released, as it is now:
// nobody tells this process of a rollout.
type releasedCode struct {
	store *store.Store
	urls  []string
}

// Code implements botCode.
func (c releasedCode) Code(ctx context.Context, bot skep.BotID, p rollout.Platform, url string) (*rollout.Build, error) {
	k, err := rollout.New(ctx, rollout.Options{Store: c.store, URLs: c.urls})
	if err != nil {
		return nil, err
	}
	return k.Code(ctx, bot, p, url)
}

// run works until ctx ends, or a part fails; then it gives up what it has, the
// pools to others first.
func (p *providerProcess) run(ctx context.Context) error {
	defer p.close()
	if os.Getenv("GOGC") == "" {
		// Its heap is a few MiB between looks at all machines and five times as much in
		// them: gcpace, which goes by the last collection, is late then. promise P4.
		debug.SetGCPercent(50)
	}
	h := &http.Server{Handler: p.door.Handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.machines.Run(ctx) })
	g.Go(func() error {
		return p.config.run(ctx, func() {
			if err := p.machines.follow(ctx); err != nil {
				p.log.ErrorContext(ctx, "the changed pools of machines are not followed", "err", err)
			}
		})
	})
	g.Go(func() error {
		return p.store.Listen(ctx, p.machines.Heard, missed(ctx, p.log, p.machines.Missed))
	})
	g.Go(func() error { return p.keepTokens(ctx) })
	g.Go(func() error { return serve(h, p.listener) })
	g.Go(func() error {
		<-ctx.Done()
		return h.Close()
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// tokensEvery is how often this process looks whether bots need tokens now:
// they wait for their next call meanwhile.
const tokensEvery = 2 * time.Second

// keepTokens registers the tokens of the bots of this host once they need them.
// Who makes the token that closes the servers may know nothing of this host.
func (p *providerProcess) keepTokens(ctx context.Context) error {
	for {
		closed, err := p.isClosed(ctx)
		if err == nil && closed {
			if err = registerBotTokens(ctx, p.store, p.stateDir); err == nil {
				return nil // later ones are registered as they are made
			}
		}
		if err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "tokens of this host's bots are not registered", "err", err)
		}
		if err := sleep(ctx, tokensEvery); err != nil {
			return err
		}
	}
}

// close gives up what openProviderProcess got.
func (p *providerProcess) close() {
	if p.listener != nil {
		_ = p.listener.Close()
	}
	if p.machines != nil {
		p.machines.end()
	}
	if p.store != nil {
		if err := p.store.Close(); err != nil {
			p.log.Error("store does not close", "err", err)
		}
		p.store = nil
	}
}

var _ machine.Fleet = (*scheduler.Scheduler)(nil)
