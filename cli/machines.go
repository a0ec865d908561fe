package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/spf13/cobra"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/config"
	enginedocker "github.com/skepdev/skep/host/engine/docker"
	"github.com/skepdev/skep/host/supervise"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/docker"
	"github.com/skepdev/skep/provider/exec"
	"github.com/skepdev/skep/provider/gce"
	"github.com/skepdev/skep/provider/machine"
	"github.com/skepdev/skep/provider/process"
	"github.com/skepdev/skep/provider/vmscfg"
	"github.com/skepdev/skep/provider/window"
	"github.com/skepdev/skep/server"
	"github.com/skepdev/skep/store"
)

// machines are the pools of machines that this process looks after.
type machines struct {
	*machine.Reconciler
	store  *store.Store
	config *fleetConfig
	log    *slog.Logger
	local  *process.Provider
	clouds *clouds
	others *servers
	lock   *flock.Flock    // of the directory of local
	seen   map[string]bool // pools that this run has declared
}

// machineFlags say how machines are looked after.
type machineFlags struct{ silence time.Duration }

const (
	leastSilence = time.Minute
	mostSilence  = 7 * 24 * time.Hour
)

func (m *machineFlags) register(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&m.silence, "machine-silence", 10*time.Minute, "`TIME` without a word of its bot before a machine of vms.cfg is taken away, or its timeout if that is longer; longer than a reboot takes")
}

func (m *machineFlags) patience() (machine.Patience, error) {
	if m.silence < leastSilence || m.silence > mostSilence {
		return machine.Patience{}, fmt.Errorf("--machine-silence is %v, want %v to %v", m.silence, leastSilence, mostSilence)
	}
	return machine.Patience{Silence: m.silence}, nil
}

// machineDir holds, in the state directory, machines that are processes of
// this host, one directory each.
const machineDir = "machines"

// machineParts are what a process that looks after machines has for that.
type machineParts struct {
	store    *store.Store
	config   *fleetConfig
	fleet    machine.Fleet
	code     botCode
	stateDir string
	urls     []string                            // of the servers on the store; the first is the bots'
	ca       string                              // PEM, as in code.Config
	caFile   string                              // that it was read from; "" = bots know who vouches for the servers
	closed   func(context.Context) (bool, error) // bots need tokens
	others   *servers                            // whose bots machines may be
	patience machine.Patience
	log      *slog.Logger
}

// openProvider begins to look after what a server's configuration declares,
// where there is one, and returns what pools are steered by: on PostgreSQL they
// may be another process's. nil = there are none. Nothing is made before run.
func (s *service) openProvider(ctx context.Context, env *Env, flags *serverFlags) (*machine.Reconciler, error) {
	none := flags.noProvider
	if none && s.store.Engine() == "sqlite" {
		return nil, errors.New("--no-provider leaves the machines to skep provider run, which needs PostgreSQL: name one with --db")
	}
	if none || s.config == nil {
		if s.store.Engine() == "sqlite" {
			return nil, nil
		}
		return machine.New(ctx, s.store, s.sched, nil, machine.Options{Log: s.log})
	}
	others, err := flags.swarming.open()
	if err != nil {
		return nil, err
	}
	patience, err := flags.machines.patience()
	if err != nil {
		return nil, err
	}
	p := &machineParts{
		store: s.store, config: s.config, fleet: s.sched, code: s.code, stateDir: s.stateDir, urls: s.door.urls, others: others, patience: patience, log: s.log,
		closed: func(ctx context.Context) (bool, error) { return !s.isOpen(ctx), nil },
	}
	if s.door.authority != nil {
		p.ca, p.caFile = string(s.door.authority.PEM()), s.door.authority.CertFile()
	}
	if s.machines, err = p.open(ctx, env); err != nil {
		return nil, err
	}
	return s.machines.Reconciler, nil
}

// open takes what is declared, and finds the machines of this host.
func (p *machineParts) open(ctx context.Context, env *Env) (_ *machines, err error) {
	m := &machines{store: p.store, config: p.config, log: p.log, others: p.others, seen: map[string]bool{}}
	defer func() {
		if err != nil {
			m.end()
		}
	}()
	c := &crew{store: p.store, dir: filepath.Join(p.stateDir, machineDir), code: p.code, url: p.urls[0], ca: p.ca}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	m.lock = flock.New(filepath.Join(c.dir, ".lock"))
	if ok, err := m.lock.TryLock(); err != nil {
		return nil, fmt.Errorf("lock %s: %w", c.dir, err)
	} else if !ok {
		return nil, skep.Errorf(skep.Conflict, "another skep looks after the machines in %s; give this one another --state-dir, or start that server with --no-provider", c.dir)
	}
	servers := slices.Clone(p.urls)
	for _, u := range p.urls {
		servers = append(servers, machine.ServerURL(u))
	}
	m.local, err = process.New(process.Options{
		Dir: c.dir, Host: hostName(), Servers: servers, Log: p.log,
		Bot: func(name, dir string, labels map[string]string, pools []string) (supervise.Bot, error) {
			closed, err := p.closed(ctx)
			if err != nil {
				return supervise.Bot{}, err
			}
			token, err := machineToken(ctx, p.store, p.stateDir, labels[provider.LabelVM], closed)
			if err != nil {
				return supervise.Bot{}, err
			}
			c := *c
			c.vars = botEnviron(env.Environ(), token)
			b := c.bot(name)
			if len(pools) > 0 {
				b.Env = append(b.Env, provider.EnvPools+"="+strings.Join(pools, ","))
			}
			b.Ended = func() bool { return m.tookLeave(name) }
			return b, nil
		},
		Ended: m.tookLeave,
	})
	if err != nil {
		return nil, err
	}
	m.clouds = &clouds{
		servers: servers, local: m.local, gce: env.Getenv("SKEP_GCE_ENDPOINT"), engine: cmp.Or(env.Getenv("DOCKER_HOST"), "unix:///var/run/docker.sock"),
		token: func(ctx context.Context, bot string) (string, error) {
			if closed, err := p.closed(ctx); err != nil || !closed {
				return "", err
			}
			text, _, err := server.CreateToken(ctx, p.store, server.NewToken{
				Name: "skep-machine-" + bot, Scope: server.ScopeBootstrap, Bots: []string{bot}, Uses: 1, Life: machineBoot,
			})
			return text, err
		},
	}
	if p.caFile != "" {
		if m.clouds.caFile, err = filepath.Abs(p.caFile); err != nil {
			return nil, err
		}
	}
	home, err := machineHome(p.stateDir)
	if err != nil {
		return nil, err
	}
	audits := map[string]time.Duration{}
	for _, kind := range []string{vmscfg.KindProcess, vmscfg.KindDocker} {
		if m.clouds.onlyHere(kind) { // which costs little
			audits[kind] = 5 * time.Second
		}
	}
	m.Reconciler, err = machine.New(ctx, p.store, p.fleet, m.clouds.find, machine.Options{
		Server: p.urls[0], Servers: p.urls, Elsewhere: p.others.find, Patience: p.patience, Log: p.log, Audits: audits, Home: home, Local: m.clouds.onlyHere,
		Projects: p.config.quotaProjects,
	})
	if err != nil {
		return nil, err
	}
	return m, m.follow(ctx)
}

// machineBoot is how long a container may take from its making to its bot's
// first call.
const machineBoot = 24 * time.Hour

// machineHome returns what names the machines of this state directory among
// those of servers that share a database.
func machineHome(stateDir string) (string, error) {
	path := filepath.Join(stateDir, machineDir, ".home")
	b, err := os.ReadFile(path)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	home := hostName() + " " + strings.ToLower(rand.Text())
	return home, atomicfile.Write(path, []byte(home), 0o600)
}

// clouds are where machines may be made. Each is opened when it is first
// needed: what it needs of this host, others can do without.
type clouds struct {
	local  *process.Provider
	gce    string // endpoint, "" = Google's
	engine string // of containers

	servers []string                                              // URLs of this one
	caFile  string                                                // on this host, for bots; "" = they know who vouches for the server
	token   func(ctx context.Context, bot string) (string, error) // "" = the server is open

	mu     sync.Mutex
	opened map[string]provider.Provider
	close  []func()
}

// onlyHere reports whether what is made of a kind is reached from this host
// alone.
func (c *clouds) onlyHere(kind string) bool {
	switch kind {
	case vmscfg.KindProcess:
		return true
	case vmscfg.KindDocker:
		u, err := url.Parse(c.engine)
		if err != nil {
			return true
		}
		host := u.Hostname()
		return host == "" || host == "localhost" || net.ParseIP(host).IsLoopback()
	}
	return false
}

func (c *clouds) find(kind string, command []string) (provider.Provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := strings.Join(append([]string{kind}, command...), "\x00")
	if p := c.opened[key]; p != nil {
		return p, nil
	}
	p, err := c.open(kind, command)
	if err != nil {
		return nil, err
	}
	if c.opened == nil {
		c.opened = map[string]provider.Provider{}
	}
	c.opened[key] = p
	return p, nil
}

func (c *clouds) open(kind string, command []string) (provider.Provider, error) {
	invalid := func(err error) error {
		return &provider.Error{Class: provider.Invalid, Reason: "PROVIDER", Text: err.Error()}
	}
	switch kind {
	case vmscfg.KindProcess:
		return c.local, nil
	case vmscfg.KindGCE:
		p, err := gce.New(context.Background(), gce.Options{Endpoint: c.gce, UserAgent: "skep " + version()})
		if err != nil {
			return nil, &provider.Error{Class: provider.Permission, Reason: "CREDENTIALS", Text: err.Error()}
		}
		return p, nil
	case vmscfg.KindDocker:
		e, err := enginedocker.New(c.engine, 0)
		if err != nil {
			return nil, invalid(err)
		}
		o := docker.Options{Engine: e, Servers: c.servers, Token: c.token}
		if c.onlyHere(kind) {
			o.CAFile = c.caFile
		}
		p := docker.New(o)
		c.close = append(c.close, p.Close, func() { _ = e.Close() })
		return p, nil
	case vmscfg.KindExec:
		p, err := exec.New(exec.Options{Command: command, Servers: c.servers, CAFile: c.caFile, Token: c.token})
		if err != nil {
			return nil, invalid(err)
		}
		return p, nil
	}
	return nil, invalid(fmt.Errorf("this server makes no machines of kind %q", kind))
}

// end closes what was opened. Nobody asks for a cloud any more.
func (m *machines) end() {
	if m.local != nil {
		m.local.Close()
	}
	if m.clouds != nil {
		m.clouds.mu.Lock()
		defer m.clouds.mu.Unlock()
		for _, c := range m.clouds.close {
			c()
		}
		m.clouds.close = nil
	}
	if m.others != nil {
		m.others.close()
	}
	if m.lock != nil {
		_ = m.lock.Close()
	}
}

// tookLeave reports whether a bot was terminated and ended: it is not started
// again.
func (m *machines) tookLeave(id string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
	defer cancel()
	b, err := m.store.Bot(ctx, skep.BotID(id))
	return err == nil && b.Dead && b.Terminated != 0
}

// follow takes what the configuration declares now. While an entry of vms.cfg
// is refused, only what this run has seen declared is removed: what it has not
// may be that entry.
func (m *machines) follow(ctx context.Context) error {
	configs := m.config.store.Snapshot().Machines() // before the refusals, which are told first
	var keep []string
	if slices.ContainsFunc(m.config.store.Refusals(), func(r config.Refusal) bool { return r.File == "vms.cfg" }) {
		known, err := m.store.MachinePools(ctx)
		if err != nil {
			return fmt.Errorf("pools of machines: %w", err)
		}
		for _, p := range known {
			if !m.seen[p.Prefix] {
				keep = append(keep, p.Prefix)
			}
		}
	}
	for i := range configs {
		m.seen[configs[i].Prefix] = true
	}
	if err := m.Import(ctx, configs, keep); err != nil {
		return fmt.Errorf("pools of machines: %w", err)
	}
	return nil
}

// quotaProjects are the projects whose quota is told.
func (c *fleetConfig) quotaProjects() (out []machine.Project) {
	for _, p := range c.store.Snapshot().Projects() {
		out = append(out, machine.Project{Name: p.Name, Metrics: p.Metrics, Regions: p.Regions})
	}
	return out
}

// mayCome reports whether some pool of machines that follows the queue of the
// server with these URLs would have a machine made for a task with these
// demands.
func mayCome(pools []provider.Config, urls []string, demands skep.Constraints) bool {
	return slices.ContainsFunc(pools, func(c provider.Config) bool {
		some := func(w provider.Window) bool { return w.Max > 0 }
		here := func(url string) bool { return machine.ServerURL(url) == machine.ServerURL(c.Swarming) }
		return c.Demand != nil && (c.Swarming == "" || slices.ContainsFunc(urls, here)) &&
			demands.Match(c.Demand.Dimensions) && (c.Amount.Max > 0 || slices.ContainsFunc(c.Amount.Windows, some))
	})
}

// wantedHere is how many machines the configuration asks for at least that are
// processes of this host.
func (m *machines) wantedHere(c *fleetConfig) (n int) {
	for _, pool := range c.store.Snapshot().Machines() {
		if pool.Kind == "process" {
			n += window.Amount(pool.Amount, 0, time.Now())
		}
	}
	return n
}
