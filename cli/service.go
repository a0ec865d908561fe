package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/gcpace"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/scheduler"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// service is a server in this process, as server and up run it: listener,
// matchmaker and store, ended in that order.
type service struct {
	log      *slog.Logger
	stateDir string
	door     *door
	store    *store.Store
	sched    *scheduler.Scheduler
	code     *rollout.Keeper
	server   *server.Server
	storage  storage
	config   *fleetConfig      // nil = no configuration directory
	release  *rollout.Release  // bot code without the configuration's hooks; nil = none
	parts    map[string]string // of the release: path by hash
	hooks    string            // base script last offered
	machines *machines         // nil = this server looks after none

	listener net.Listener
	admin    net.Listener // nil where it cannot be
}

// openService gets everything that may be refused, in the order in which it is
// cheap to say so. Nothing is served before run. reboot is what the bots that it
// hands out are told of rebooting their host.
func openService(ctx context.Context, env *Env, flags *serverFlags, reboot string) (_ *service, err error) {
	s := &service{log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: flags.level}))}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.stateDir, err = flags.directory(env); err != nil {
		return nil, err
	}
	dsn, err := flags.dsn(env, s.stateDir)
	if err != nil {
		return nil, err
	}
	if s.listener, err = net.Listen("tcp", flags.listen); err != nil {
		return nil, fmt.Errorf("--listen: %w", err)
	}
	if s.door, err = flags.door(s.listener.Addr().(*net.TCPAddr), s.stateDir); err != nil {
		return nil, err
	}
	if s.store, err = store.Open(ctx, dsn, store.Options{}); err != nil {
		return nil, err
	}
	if err := s.logDurability(ctx); err != nil {
		return nil, err
	}
	if err := s.checkTokens(ctx); err != nil {
		return nil, err
	}
	if s.config, err = openConfig(flags.config, s.stateDir, s.door.urls, s.log); err != nil {
		return nil, err
	}
	so := scheduler.Options{Log: s.log, Version: version(), Watch: func(bot skep.BotID) {
		if s.machines != nil {
			s.machines.Rouse(bot)
		}
	}}
	if s.config != nil {
		so.BotDeath = func() time.Duration { return s.config.store.Snapshot().Settings().BotDeath }
		so.BotLife = func() time.Duration { return s.config.store.Snapshot().Settings().RemoveDeadBots }
		so.MayCome = func(c skep.Constraints) bool { return mayCome(s.config.store.Snapshot().Machines(), s.door.urls, c) }
	}
	s.sched = scheduler.New(s.store, so)
	if err := s.sched.Load(ctx); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if err := s.openCode(ctx, flags.botDir, reboot); err != nil {
		return nil, fmt.Errorf("bot code: %w", err)
	}
	if err := s.openStorage(ctx, &flags.cas); err != nil {
		return nil, err
	}
	steered, err := s.openProvider(ctx, env, flags)
	if err != nil {
		return nil, err
	}
	o := server.Options{
		Store: s.store, Scheduler: s.sched, Log: s.log, Version: version(),
		URLs: s.door.urls, Open: s.door.open, BehindProxy: flags.behindProxy, Code: s.code,
		CASInstance: s.storage.instance, CAS: s.storage.url, Blobs: s.storage.blobs(),
	}
	if s.config != nil {
		o.Rules, o.Script = s.config.current, s.config.script
	}
	o.Machines = steered
	if s.storage.disk != nil {
		o.Usage, o.Pin = s.storage.disk.Usage, s.storage.pin
	}
	if flags.metricsToken != "" {
		if o.MetricsToken, err = metricsToken(flags.metricsToken); err != nil {
			return nil, err
		}
	}
	if s.server, err = server.New(ctx, o); err != nil {
		return nil, err
	}
	s.serveStorage()
	if s.store.Engine() == "sqlite" { // elsewhere skep token opens the store itself
		var adminErr error
		if s.admin, adminErr = listenAdmin(s.stateDir); adminErr != nil {
			s.log.WarnContext(ctx, "skep token reaches this server only after it has ended", "err", adminErr)
		}
	}
	return s, nil
}

// logDurability says what a commit survives, as the engine tells it on the
// connection that writes. skep bench reads it from here.
func (s *service) logDurability(ctx context.Context) error {
	settings, err := s.store.Durability(ctx)
	if err != nil {
		return err
	}
	attrs := []any{"engine", s.store.Engine()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		attrs = append(attrs, name, settings[name])
	}
	s.log.InfoContext(ctx, "store open", attrs...)
	return nil
}

// checkTokens refuses a door that nobody watches (decisions.md 7).
func (s *service) checkTokens(ctx context.Context) error {
	if s.door.open {
		return nil
	}
	tokens, err := s.store.Tokens(ctx)
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.Scope == server.ScopeAdmin && isValid(t, time.Now()) {
			return nil
		}
	}
	return errors.New("a server that others can reach needs an admin token first; make one: skep token create --scope admin --name NAME, with the same --state-dir or --db")
}

// isOpen reports whether anybody may do anything: there has never been a token
// that closes the door.
func (s *service) isOpen(ctx context.Context) bool {
	tokens, err := s.store.Tokens(ctx)
	return s.door.open && err == nil && !slices.ContainsFunc(tokens, func(t store.Token) bool { return server.Closes(t.Scope) })
}

// shutdownTime is how long answers under way may take when a server ends.
const shutdownTime = 5 * time.Second

// run serves until ctx ends, or a part fails. Then it closes everything:
// first the listeners, then the loops, then the store.
func (s *service) run(ctx context.Context) error {
	defer s.close()
	loops, stopLoops := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLoops()
	g, failed := errgroup.WithContext(loops)
	public := s.httpServer(s.server)
	admin := s.httpServer(adminHandler(direct{s.store, s.stateDir}))
	g.Go(func() error { return s.sched.Run(failed) })
	g.Go(func() error { return s.code.Run(failed) })
	g.Go(func() error { return s.server.Run(failed) })
	g.Go(func() error { return s.server.RunQueen(failed) })
	if s.config != nil {
		g.Go(func() error { return s.config.run(failed, func() { s.configChanged(failed) }) })
	}
	if s.machines != nil {
		g.Go(func() error { return s.machines.Run(failed) })
	}
	g.Go(func() error { return s.hearOthers(failed) })
	g.Go(func() error { gcpace.Run(failed, 96<<20); return nil })
	port := s.door.split(s.listener)
	rpc := s.storage.rpc.GRPC()
	g.Go(port.Serve)
	g.Go(func() error { return serve(public, port.HTTP1) })
	g.Go(func() error { return serve(rpc, port.HTTP2) })
	if s.storage.disk != nil {
		g.Go(func() error { return s.storage.disk.Run(failed) })
	}
	if s.admin != nil {
		g.Go(func() error { return serve(admin, s.admin) })
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
		case <-failed.Done():
		}
		s.server.Drain()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		_ = port.Close()
		_ = admin.Close()
		stopRPC := context.AfterFunc(grace, rpc.Stop) // ends the streams that GracefulStop waits for
		var ended errgroup.Group
		ended.Go(func() error { rpc.GracefulStop(); return nil })
		if err := public.Shutdown(grace); err != nil {
			_ = public.Close()
		}
		_ = ended.Wait()
		stopRPC()
		stopLoops()
		return nil
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// hearOthers follows what other processes on the database tell, until ctx ends.
func (s *service) hearOthers(ctx context.Context) error {
	return s.store.Listen(ctx, func(n store.News) {
		s.sched.Heard(ctx, n)
		if s.machines != nil && n.Topic == store.NewsMachine { // of bots, the scheduler tells it
			s.machines.Heard(n)
		}
	}, missed(ctx, s.log, func() {
		if s.machines != nil {
			s.machines.Missed()
		}
	}))
}

// missed logs that others are not heard, once each time, and does what then
// must be done.
func missed(ctx context.Context, log *slog.Logger, look func()) func(error) {
	deaf := false
	return func(err error) {
		if err != nil && !deaf {
			log.WarnContext(ctx, "other processes on the database are not heard; what they do is found by looking", "err", err)
		}
		deaf = err != nil
		look()
	}
}

func (s *service) httpServer(h http.Handler) *http.Server {
	var plain http.Protocols
	plain.SetHTTP1(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &plain,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// serve serves l until it or the server is closed.
func serve(h interface{ Serve(net.Listener) error }, l net.Listener) error {
	if err := h.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// close gives up what openService got; what is closed already stays closed.
func (s *service) close() {
	if s.admin != nil {
		_ = s.admin.Close()
	}
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.machines != nil {
		s.machines.end()
	}
	if s.storage.disk != nil {
		if err := s.storage.disk.Close(); err != nil {
			s.log.Error("storage does not close", "err", err)
		}
		s.storage.disk = nil
	}
	if s.store != nil {
		if err := s.store.Close(); err != nil {
			s.log.Error("store does not close", "err", err)
		}
		s.store = nil
	}
}

// announce says where the server is and, first of all, whether it is open.
func (s *service) announce(ctx context.Context, env *Env, more string) {
	if s.isOpen(ctx) {
		fmt.Fprintf(env.Stdout, "skep: this server is open: every user and program of this machine may run commands on its bots. skep token create --scope admin closes it.\n")
	}
	if a := s.door.authority; a != nil {
		fmt.Fprintf(env.Stdout, "skep: its certificate is its own: use --ca-file %s, or curl --cacert %[1]s\n", a.CertFile())
	}
	fmt.Fprintf(env.Stdout, "skep: ready at %s%s\n", s.door.urls[0], more)
}
