package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/config"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/internal/idtoken"
	"github.com/skepdev/skep/queen"
	"github.com/skepdev/skep/rollout"
	"github.com/skepdev/skep/server"
)

// fleetConfig is a configuration directory that a server follows, in the
// server's words. It is nil where there is none.
type fleetConfig struct {
	store *config.Store
	urls  []string // of the server, for tokens of VMs

	mu        sync.Mutex
	made      *config.Snapshot // that rules are made of
	refused   []config.Refusal
	rules     *server.Rules
	verifiers map[config.VMAuth]*idtoken.Verifier // they keep keys
}

// openConfig reads dir. A copy of what is good is kept in the state directory,
// so that a server can start while a file is bad.
func openConfig(dir, stateDir string, urls []string, log *slog.Logger) (*fleetConfig, error) {
	if dir == "" {
		return nil, nil
	}
	st, err := config.Open(dir, config.Options{Log: log, Keep: filepath.Join(stateDir, "config")})
	if err != nil {
		return nil, fmt.Errorf("--config %s: %w", dir, err)
	}
	log.Info("configuration", "dir", dir, "digest", st.Snapshot().Digest())
	for _, r := range st.Refusals() {
		log.Error("a file of the configuration is bad; the last good one is followed", "file", r.File, "err", r.Error())
	}
	return &fleetConfig{store: st, urls: urls, verifiers: map[config.VMAuth]*idtoken.Verifier{}}, nil
}

// run follows the directory until ctx ends, and calls changed after each
// change.
func (f *fleetConfig) run(ctx context.Context, changed func()) error {
	news, stop := f.store.Subscribe()
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- f.store.Run(ctx) }()
	for {
		select {
		case err := <-ended:
			return err
		case <-news:
			changed()
		}
	}
}

// current returns the rules of the moment. They are made once per snapshot.
func (f *fleetConfig) current() *server.Rules {
	snap, refused := f.store.Snapshot(), f.store.Refusals()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made != snap || !sameRefusals(f.refused, refused) {
		f.made, f.refused, f.rules = snap, refused, f.convert(snap, refused)
	}
	return f.rules
}

// sameRefusals compares the lists themselves: the store makes a new one for
// each change.
func sameRefusals(a, b []config.Refusal) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (f *fleetConfig) convert(s *config.Snapshot, refused []config.Refusal) *server.Rules {
	set := s.Settings()
	ru := &server.Rules{
		State:      stateOf(s, refused),
		ForceSleep: set.ForceSleep, MaxBotSleep: set.MaxBotSleep, DisplayURL: set.DisplayURL, ViewerServer: set.ViewerServer,
		Owns:       s.Owns,
		Everywhere: func(identity, permission string) server.Answer { return answers[s.Everywhere(identity, permission)] },
		InRealm: func(realm, identity, permission string) server.Answer {
			return answers[s.InRealm(realm, identity, permission)]
		},
		Queen: queen.Policy{
			Lease: set.Queen.Lease, MaxRemovedPercent: set.Queen.MaxRemovedPercent, MinVersion: set.Queen.MinVersion, RefuseUnknown: set.Queen.RefuseUnknown,
		},
		Foreign: foreignRules(set.ForeignBots), Trusted: s.Trusted(), Expected: map[skep.BotID]health.Wanted{},
	}
	for _, p := range s.Projects() {
		ru.Projects = append(ru.Projects, &projectspb.Project{Project: p.Name, Metric: p.Metrics, Region: p.Regions, Revision: p.Revision})
	}
	slices.SortFunc(ru.Projects, func(a, b *projectspb.Project) int { return strings.Compare(a.Project, b.Project) })
	for id, p := range s.Expected() {
		ru.Expected[skep.BotID(id)] = health.Wanted{Pool: p.Name, Grace: p.ExpectedBotGrace}
	}
	if b, err := hex.DecodeString(s.Digest()); err == nil {
		copy(ru.Salt[:], b)
	}
	if s.HasPools() {
		names, pools := s.Pools(), map[string]*server.PoolRules{}
		for _, name := range names {
			pools[name] = poolRules(s, name)
		}
		ru.Pools = func() []string { return names }
		ru.Pool = func(name string) *server.PoolRules { return pools[name] }
	}
	if s.HasBots() {
		groups := map[*config.Group]*server.GroupRules{}
		for _, g := range s.Groups() {
			groups[g] = f.groupRules(s, g)
		}
		ru.Group = func(bot skep.BotID) *server.GroupRules { return groups[s.Group(string(bot))] }
	}
	return ru
}

var answers = map[config.Rights]server.Answer{config.Unsaid: server.Unsaid, config.Allowed: server.Granted, config.Refused: server.Refused}

func foreignRules(f config.ForeignBots) server.ForeignRules {
	return server.ForeignRules{Admits: f.Admits, Refuses: f.Policy == config.ForeignRefuse}
}

func poolRules(s *config.Snapshot, name string) *server.PoolRules {
	p := s.Pool(name)
	out := &server.PoolRules{
		Trusted: p.Trusted, MaxBotUptime: p.MaxBotUptime, MaxHostUptime: p.MaxHostUptime, UptimeSpread: float64(p.UptimeSpread) / 100,
		DefaultTaskRealm: p.DefaultTaskRealm, RefuseIsolationNone: p.RefuseIsolationNone, Informational: p.Informational,
		Foreign: foreignRules(s.ForeignBots(name)), WarmPool: p.WarmPool,
		Rights: func(identity, permission string) server.Answer { return answers[s.InPool(name, identity, permission)] },
	}
	if b := p.Breaker; b != nil {
		out.Breaker = &health.Rule{Percent: b.Percent, Window: b.Window, MinBots: b.MinBots}
	}
	for _, r := range p.Recovery {
		out.Recovery = append(out.Recovery, botapi.Rung{
			Do: rungs[r.Action], Command: r.Command, TimeoutSecs: r.Timeout.Seconds(), Times: r.Budget, PerSecs: r.Window.Seconds(),
		})
	}
	if len(out.Recovery) > 0 {
		h := sha256.New()
		fmt.Fprintf(h, "%+v", out.Recovery)
		out.Handshake = [8]byte(h.Sum(nil))
	}
	return out
}

// rungs are the actions of a ladder in a bot's words.
var rungs = map[config.RungAction]string{
	config.RungRun: "run", config.RungRestartBot: "bot_restart", config.RungRebootHost: "host_reboot", config.RungQuarantine: "quarantine",
}

func (f *fleetConfig) groupRules(s *config.Snapshot, g *config.Group) *server.GroupRules {
	py, star := script(s, g.PyScript), script(s, g.StarScript)
	out := &server.GroupRules{
		Dimensions: g.Dimensions, Pools: g.Pools(), Auth: g.AuthHash(), LogsProject: g.LogsProject,
		Script: func(foreign bool) server.Script {
			if foreign {
				return py
			}
			return star
		},
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %q\n", py, star)
	for _, key := range slices.Sorted(maps.Keys(g.Dimensions)) {
		fmt.Fprintf(h, "%q %q\n", key, g.Dimensions[key])
	}
	out.Handshake = [8]byte(h.Sum(nil))
	for i := range g.Auth {
		out.Credentials = append(out.Credentials, f.credential(&g.Auth[i]))
	}
	return out
}

func script(s *config.Snapshot, name string) server.Script {
	content, ok := s.Script(name)
	if name == "" || !ok {
		return server.Script{}
	}
	sum := sha256.Sum256([]byte(content))
	return server.Script{Name: name, Content: content, Revision: hex.EncodeToString(sum[:])}
}

func (f *fleetConfig) credential(a *config.Auth) server.Credential {
	c := server.Credential{Name: "ip_whitelist", Networks: a.Networks, LogFailed: a.LogFailed}
	switch {
	case a.Token != nil:
		c.Name, c.Token = "require_token", (*server.Names)(&a.Token.Names)
	case a.Certificate != nil:
		c.Name, c.Certificate = "require_client_certificate", (*server.Names)(&a.Certificate.Names)
	case a.VM != nil:
		c.Name, c.Project = "require_gce_vm_token", a.VM.Project
		c.VM = vmIdentity(f.verifier(a.VM))
	}
	return c
}

func (f *fleetConfig) verifier(a *config.VMAuth) *idtoken.Verifier {
	key := *a
	key.Project = ""
	if f.verifiers[key] == nil {
		audiences := f.urls
		if a.Audience != "" {
			audiences = []string{a.Audience}
		}
		f.verifiers[key] = idtoken.New(idtoken.Options{Keys: a.JWKSURL, Issuer: a.Issuer, Audiences: audiences})
	}
	return f.verifiers[key]
}

// vmIdentity reads which Compute Engine VM it is from its token.
func vmIdentity(v *idtoken.Verifier) func(context.Context, string) (server.CloudVM, error) {
	return func(ctx context.Context, token string) (server.CloudVM, error) {
		var claims struct {
			Google struct {
				ComputeEngine struct {
					ProjectID    string `json:"project_id"`
					Zone         string `json:"zone"`
					InstanceName string `json:"instance_name"`
				} `json:"compute_engine"`
			} `json:"google"`
		}
		if err := v.Verify(ctx, token, &claims); err != nil {
			return server.CloudVM{}, err
		}
		ce := claims.Google.ComputeEngine
		if ce.ProjectID == "" || ce.InstanceName == "" {
			return server.CloudVM{}, errors.New("the token is not one of a VM; ask the metadata server for format=full")
		}
		return server.CloudVM{Project: ce.ProjectID, Zone: ce.Zone, Name: ce.InstanceName}, nil
	}
}

// script returns a file under scripts/, "" when there is none.
func (f *fleetConfig) script(name string) string {
	content, _ := f.store.Snapshot().Script(name)
	return content
}

// rollout is how new code reaches the fleet.
func (f *fleetConfig) rollout() rollout.Settings {
	r := f.store.Snapshot().Settings().Rollout
	return rollout.Settings{
		CanaryPercent: float64(r.CanaryPercent), Soak: r.Soak,
		Answer: r.Probation, MaxCrashes: r.MaxCrashes, MaxCrashShare: float64(r.MaxCrashPercent) / 100,
	}
}
