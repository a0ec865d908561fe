package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/gofrs/flock"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/config"
	"github.com/skepdev/skep/host/bot"
	"github.com/skepdev/skep/host/drone"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/reconcile"
	"github.com/skepdev/skep/runner"
)

// newDroneCommand runs the bots of this host: spec/host.md §3.3.
func newDroneCommand(env *Env) *cobra.Command {
	var conn connection
	f := droneFlags{}
	cmd := &cobra.Command{
		Use:   "drone --config FILE [flags]",
		Short: "Run the bots of this host",
		Long: "Run the bots of this host, each with limits of its own: those that drone.cfg names, or those whose devices the\n" +
			"server assigns. A change of the file is followed; a bad one is refused, with its line, and the last good one holds.\n" +
			"Ctrl-C or SIGTERM terminates all bots. To drain instead: skep drone drain, or a file " + drone.DrainFile + " in --dir.",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.config == "" {
				return usageErrorf(cmd, "--config is required")
			}
			cfg, err := config.ReadDrone(f.config)
			if err != nil || f.check {
				return err
			}
			d, err := openDrone(env, &conn, &f, cfg)
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- d.run(ctx) }()
			for interrupts := 0; ; {
				select {
				case err := <-ended:
					return err
				case <-env.Interrupts:
					if interrupts++; interrupts > 2 {
						return errInterrupted
					}
					stop()
				}
			}
		},
	}
	cmd.Flags().StringVar(&f.config, "config", "", "`FILE` drone.cfg")
	cmd.Flags().BoolVar(&f.check, "check", false, "read the configuration, say what is wrong with it, and do nothing else")
	cmd.Flags().TextVar(&f.level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	_ = cmd.MarkFlagFilename("config")
	f.register(cmd)
	conn.register(cmd)
	cmd.AddCommand(
		newDroneVerb(env, "status", "Show the drone's bots and its lease", http.MethodGet),
		newDroneVerb(env, "drain [BOT…]", "Let bots, or the whole drone, finish and take no new work", http.MethodPost),
		newDroneVerb(env, "undrain [BOT…]", "Take a drain back", http.MethodPost),
	)
	return cmd
}

type droneFlags struct {
	dir, config string
	check       bool
	level       slog.Level
}

func (f *droneFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dir, "dir", "", "`DIR` of the drone (default $SKEP_DRONE_DIR, or /var/lib/skep/drone)")
	_ = cmd.MarkFlagDirname("dir")
}

func (f *droneFlags) directory(env *Env) string {
	return cmp.Or(f.dir, env.Getenv("SKEP_DRONE_DIR"), "/var/lib/skep/drone")
}

// newDroneVerb asks a running drone through its socket.
func newDroneVerb(env *Env, use, short, method string) *cobra.Command {
	f := droneFlags{}
	var o outputFlags
	cmd := &cobra.Command{
		Use: use + " [flags]", Short: short,
		RunE: env.action(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			socket := filepath.Join(f.directory(env), drone.SocketFile)
			client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			}}}
			defer client.CloseIdleConnections()
			req, err := http.NewRequestWithContext(ctx, method, "http://drone/"+cmd.Name()+"?"+url.Values{"bots": args}.Encode(), nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if errors.Is(err, fs.ErrPermission) {
				return skep.Errorf(skep.Denied, "this user may not ask the drone at %s: %v", socket, err)
			}
			if err != nil {
				return skep.Errorf(skep.Unavailable, "no drone answers at %s; is skep drone running with this --dir? %v", socket, err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
			if err != nil {
				return err
			}
			if resp.StatusCode != http.StatusOK {
				var said struct{ Reason, Error string }
				_ = json.Unmarshal(body, &said)
				return skep.Errorf(skep.ParseKind(said.Reason), "%s: %s", resp.Status, cmp.Or(said.Error, string(bytes.TrimSpace(body))))
			}
			var s drone.DoorStatus
			if err := json.Unmarshal(body, &s); err != nil {
				return err
			}
			return o.emit(env.Stdout, "table", func() (any, error) { return s, nil }, func(w *tableWriter) {
				w.row("BOT", "STATE", "STARTED", "STARTS", "ERROR")
				for _, b := range s.Bots {
					started := ""
					if !b.Started.IsZero() {
						started = b.Started.Format(time.RFC3339)
					}
					w.row(b.ID, string(b.State), started, fmt.Sprint(b.Attempts), b.Error)
				}
			})
		}),
	}
	if method == http.MethodGet {
		cmd.Args = noArgs
	}
	f.register(cmd)
	o.register(cmd)
	return cmd
}

// droneService is skep drone at work.
type droneService struct {
	dir, config string
	log         *slog.Logger
	lock        *flock.Flock
	journal     *reconcile.FileJournal
	starter     *bot.Starter
	homes       *bot.DroneStarter
	manager     drone.Manager
	agent       *drone.Agent // nil = a declared list
	door        *drone.Door

	mu       sync.Mutex
	cfg      *config.Drone // with the token that could be read last
	draining bool
}

func openDrone(env *Env, conn *connection, f *droneFlags, cfg *config.Drone) (_ *droneService, err error) {
	_ = proc.HideSelf() // it holds a token, and may have the tasks' user
	d := &droneService{config: f.config, cfg: cfg, log: slog.New(slog.NewTextHandler(env.Stderr, &slog.HandlerOptions{Level: f.level}))}
	if d.dir, err = filepath.Abs(f.directory(env)); err != nil {
		return nil, err
	}
	bots := filepath.Join(d.dir, "bots")
	if err := os.MkdirAll(bots, 0o755); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the drone cannot write its --dir: %w", err)
	}
	d.lock = flock.New(filepath.Join(d.dir, drone.LockFile))
	if ok, err := d.lock.TryLock(); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the drone cannot lock its --dir: %w", err)
	} else if !ok {
		return nil, skep.Errorf(skep.Conflict, "another skep drone uses %s; give this one another --dir", d.dir)
	}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if d.journal, err = reconcile.OpenJournal(filepath.Join(d.dir, "journal")); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the drone's --dir: %w", err)
	}
	fl, err := conn.open(env)
	if err != nil {
		return nil, err
	}
	d.starter = bot.NewStarter(&http.Client{Transport: droneTransport(fl)}, fl.url)
	d.starter.CacheDir, d.starter.Journal, d.starter.Log = filepath.Join(d.dir, "code"), d.journal, d.log
	d.starter.Token = func() string { return fl.token }
	d.homes = &bot.DroneStarter{
		WorkingDir: bots, StartBotFunc: d.starter.Start, BotConfigFunc: d.botConfig,
		LogFunc: func(format string, args ...any) { d.log.Warn(fmt.Sprintf(format, args...)) },
	}
	d.manager.Start, d.manager.Log = d.homes.Start, d.log
	d.door = &drone.Door{Dir: d.dir, Manager: &d.manager, Drain: d.drain, Log: d.log}
	if err := d.door.Load(); err != nil {
		return nil, skep.Errorf(skep.Precondition, "the drone's --dir: %w", err)
	}
	if cfg.Queen != nil {
		key, err := registrationKey(filepath.Join(d.dir, "registration"))
		if err != nil {
			return nil, err
		}
		host, _ := os.Hostname()
		hive := func() string { return d.current().Queen.Hive }
		d.agent = &drone.Agent{
			Queen:   &drone.Remote{Client: fl.Client, Key: key, Description: host, Hive: hive, Version: droneVersion(buildTime())},
			Manager: &d.manager, Terms: d.terms, Log: d.log,
		}
		d.door.Agent = d.agent
	}
	return d, nil
}

func (d *droneService) close() {
	if d.journal != nil {
		_ = d.journal.Close()
	}
	_ = d.lock.Close()
}

// droneTransport trusts whom the client trusts.
func droneTransport(f *fleet) *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	if f.roots != nil {
		t.TLSClientConfig.RootCAs = f.roots
	}
	return t
}

// droneVersion is what a drone says of its version: a number that grows, the
// minute of its source in UTC, 202611270910; "unknown" where no build says.
func droneVersion(built time.Time) string {
	if built.IsZero() {
		return "unknown"
	}
	return built.UTC().Format("200601021504")
}

// registrationKey is what this drone registers with, the same after a restart.
func registrationKey(path string) (string, error) {
	b, err := os.ReadFile(path)
	if key := strings.TrimSpace(string(b)); err == nil && key != "" {
		return key, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key := rand.Text()
	return key, atomicfile.Write(path, []byte(key+"\n"), 0o600)
}

func (d *droneService) current() *config.Drone {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg
}

func (d *droneService) terms() drone.Terms {
	q := d.current().Queen
	return drone.Terms{Capacity: q.Capacity, Interval: q.Interval}
}

// botConfig is how a bot starts, as the configuration says now.
func (d *droneService) botConfig(id, dir string) bot.Config {
	cfg := d.current()
	c := bot.Config{BotID: cfg.Prefix + id, WorkDirectory: dir, Grace: cfg.Grace, Resources: resources(cfg)}
	// Tasks have this user where it is not root: they get at nothing of ours, nor
	// of the other bots.
	c.Env = append(c.Env, runner.HideDirEnv+"="+d.dir)
	if cfg.BotTokenFile != "" {
		c.Env = append(c.Env, "SKEP_BOT_TOKEN="+d.botToken(cfg))
	}
	if d.agent != nil {
		c.Admit = func() error { return d.agent.Admit(id, c.Grace) }
	}
	return c
}

// botToken is what the file holds now or, when it cannot be read, held last.
func (d *droneService) botToken(cfg *config.Drone) string {
	token, err := config.ReadBotToken(cfg.BotTokenFile)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.log.Warn("bots get the token that was read last", "err", err)
		return cfg.BotToken
	}
	cfg.BotToken = token
	return token
}

// resources are the limits of a bot, nil for none.
func resources(cfg *config.Drone) *specs.LinuxResources {
	r, any := &specs.LinuxResources{}, false
	if n := cfg.CPUMillis * 100; n > 0 { // of a period of 100 ms
		r.CPU, any = &specs.LinuxCPU{Quota: &n}, true
	}
	if n := cfg.MemoryBytes; n > 0 {
		r.Memory, any = &specs.LinuxMemory{Limit: &n}, true
	}
	if n := cfg.Pids; n > 0 {
		r.Pids, any = &specs.LinuxPids{Limit: n}, true
	}
	for _, io := range cfg.IO {
		if r.BlockIO == nil {
			r.BlockIO, any = &specs.LinuxBlockIO{}, true
		}
		rate := func(n uint64) specs.LinuxThrottleDevice {
			return specs.LinuxThrottleDevice{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: io.Major, Minor: io.Minor}, Rate: n}
		}
		if io.Read > 0 {
			r.BlockIO.ThrottleReadBpsDevice = append(r.BlockIO.ThrottleReadBpsDevice, rate(io.Read))
		}
		if io.Write > 0 {
			r.BlockIO.ThrottleWriteBpsDevice = append(r.BlockIO.ThrottleWriteBpsDevice, rate(io.Write))
		}
	}
	if !any {
		return nil
	}
	return r
}

// drain follows the drain file.
func (d *droneService) drain(on bool) {
	if d.agent != nil {
		d.agent.Drain(on)
		return
	}
	d.mu.Lock()
	d.draining = on
	d.mu.Unlock()
	if on {
		d.manager.Block()
		d.manager.DrainAll()
		return
	}
	d.manager.Unblock()
	for _, id := range d.manager.Active() {
		d.manager.Undrain(id)
	}
	d.declare()
}

// declare adds the bots of the list and drains those that are not in it.
func (d *droneService) declare() {
	cfg := d.current()
	for _, id := range cfg.Bots {
		d.manager.Add(id)
		if d.mu.Lock(); !d.draining {
			d.manager.Undrain(id) // it was taken out of the list, and put back
		}
		d.mu.Unlock()
	}
	for _, id := range d.manager.Active() {
		if !slices.Contains(cfg.Bots, id) {
			d.manager.Drain(id)
		}
	}
}

// follow reads the configuration again when it changes.
func (d *droneService) follow(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(d.config)); err != nil {
		return err
	}
	last, _ := os.ReadFile(d.config)
	refused := "" // why the file as it is now is not in force
	resync := time.NewTicker(time.Minute)
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Events:
			time.Sleep(20 * time.Millisecond) // an editor writes in several steps
		case <-resync.C:
		}
		text, err := os.ReadFile(d.config)
		if err != nil || bytes.Equal(text, last) && refused == "" {
			continue
		}
		last = text
		cfg, err := config.ReadDrone(d.config)
		if err == nil && (cfg.Queen == nil) != (d.agent == nil) {
			err = errors.New("from a list to a queen or back needs a restart")
		}
		if err != nil {
			if err.Error() != refused {
				d.log.WarnContext(ctx, "configuration refused, the last good one holds", "err", err)
			}
			refused = err.Error()
			continue
		}
		refused = ""
		d.mu.Lock()
		d.cfg = cfg
		d.mu.Unlock()
		d.log.InfoContext(ctx, "configuration changed; limits hold for bots that start from now on")
		if d.agent == nil {
			d.declare()
		} else {
			d.agent.Changed()
		}
	}
}

// run keeps the bots until ctx ends, and ends then when the last has ended.
func (d *droneService) run(ctx context.Context) error {
	defer d.close()
	if err := d.starter.Recover(ctx); err != nil {
		return fmt.Errorf("what an earlier run left cannot be cleared away, and a device must not have two bots: %w", err)
	}
	if err := d.homes.Sweep(); err != nil {
		d.log.WarnContext(ctx, "old directories", "err", err)
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 3)
	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{d.manager.Run, d.door.Run, d.follow} {
		wg.Go(func() { failed <- part(life) })
	}
	defer wg.Wait()
	defer end()
	inner, stop := context.WithCancel(ctx)
	defer stop()
	var broken error
	go func() {
		select {
		case broken = <-failed:
			stop()
		case <-life.Done():
		}
	}()
	d.log.InfoContext(ctx, "drone runs", "dir", d.dir, "queen", d.agent != nil)
	if d.agent != nil {
		_ = d.agent.Run(inner)
	} else {
		d.declare()
		<-inner.Done()
		d.manager.Block()
		d.manager.TerminateAll()
		_ = d.manager.Wait(life)
	}
	if ctx.Err() != nil {
		return nil // asked for
	}
	return broken
}
