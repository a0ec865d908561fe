package config

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/config/configpb"
)

// Pool is what pools.cfg says of one pool, with defaults for what it leaves
// out. It is not changed once made.
type Pool struct {
	Name             string
	Owners           []string
	Realm            string // of the pool
	DefaultTaskRealm string // of tasks that name none; "" = they are refused

	Trusted             bool          // inputs may be links to the cache
	RefuseIsolationNone bool          // bots that cannot hide their credential get no task
	ForeignBots         ForeignBots   // ForeignUnset where the settings decide
	Recovery            []Rung        // what a sick bot tries, in order
	Breaker             *Breaker      // nil = none
	ExpectedBots        []string      // sorted ids
	ExpectedBotGrace    time.Duration // absence that is an alarm
	MaxBotUptime        time.Duration // 0 = no limit
	MaxHostUptime       time.Duration // 0 = no limit
	UptimeSpread        int           // percent of the uptime by which a bot may be due earlier
	WarmPool            string        // socket of the pool in whose containers tasks run; "" = as bots say

	informational []*regexp.Regexp
	own           grants
	realm         grants
	bound         bool // rights are given: by the pool itself, or by a realm of the file
}

// Rung is one thing that a sick bot tries.
type Rung struct {
	Action  RungAction
	Command []string      // of RungRun
	Timeout time.Duration // of Command
	Budget  int           // how often within Window, then the next rung
	Window  time.Duration
}

// RungAction is what a rung does.
type RungAction string

// The actions.
const (
	RungRun        RungAction = "run"
	RungRestartBot RungAction = "restart_bot"
	RungRebootHost RungAction = "reboot_host"
	RungQuarantine RungAction = "quarantine"
)

// Breaker holds a change that would quarantine too many bots of a pool.
type Breaker struct {
	Percent int           // of the pool's bots
	Window  time.Duration // within which they are counted
	MinBots int           // smaller pools are left alone
}

// Informational reports whether bots may have key and tasks may not ask for it.
func (p *Pool) Informational(key string) bool {
	return slices.ContainsFunc(p.informational, func(re *regexp.Regexp) bool { return re.MatchString(key) })
}

// realmName is as the API takes it (api-v2.md §4.1), and no longer.
var realmName = regexp.MustCompile(`^[a-z0-9_-]{1,100}:[a-z0-9_./-]{1,299}$`)

func (d *document) realm(at, name string) {
	if name != "" && !realmName.MatchString(name) {
		d.faultf(at, "%q is not <project>:<realm> of lower-case letters, digits and -_./", clip(name))
	}
}

// pools checks m and returns its pools by name, and the rights in its realms.
func (d *document) pools(m *configpb.PoolsCfg, groups map[string][]string) (map[string]*Pool, map[string]grants) {
	d.check(m.ProtoReflect(), "")
	realms := map[string]grants{}
	for i, r := range m.Realm {
		at := fmt.Sprintf("realm[%d]", i)
		d.realm(at+".name", r.Name)
		if _, ok := realms[r.Name]; ok {
			d.faultf(at+".name", "a realm %q is there already", clip(r.Name))
		}
		realms[r.Name] = d.grants(at+".grant", r.Grant, groups)
	}
	pools := map[string]*Pool{}
	first := map[string]int{}
	for i, p := range m.Pool {
		at := fmt.Sprintf("pool[%d]", i)
		made := d.pool(at, p, groups)
		made.realm, made.bound = realms[p.Realm], len(p.Grant) > 0
		if _, ok := realms[p.Realm]; ok {
			made.bound = true
		}
		for j, name := range p.Name {
			nameAt := fmt.Sprintf("%s.name[%d]", at, j)
			if err := skep.CheckDimensionValue("name", "pool", name); err != nil && name != "" {
				d.faultf(nameAt, "%s", strings.TrimPrefix(err.Error(), "name: "))
			} else if strings.Contains(name, "|") {
				d.faultf(nameAt, "%q holds a |, so that no task could name it", clip(name))
			}
			if line, ok := first[name]; ok && name != "" {
				d.faultf(nameAt, "pool %q is there already, in line %d", clip(name), line)
			}
			first[name] = d.line(nameAt)
			one := *made
			one.Name = name
			pools[name] = &one
		}
	}
	return pools, realms
}

func (d *document) pool(at string, m *configpb.Pool, groups map[string][]string) *Pool {
	d.realm(at+".realm", m.Realm)
	d.realm(at+".default_task_realm", m.DefaultTaskRealm)
	if m.SchedulingAlgorithm == configpb.Pool_SCHEDULING_ALGORITHM_LIFO {
		d.faultf(at+".scheduling_algorithm", "is not supported: skep hands out the oldest task of a priority first; take it out")
	}
	d.noRemote(at+".rbe_migration", m.RbeMigration)
	p := &Pool{
		Owners: m.Owners, Realm: m.Realm, DefaultTaskRealm: m.DefaultTaskRealm,
		Trusted: m.Trusted, RefuseIsolationNone: m.RefuseIsolationNone,
		ForeignBots:      d.foreignBots(at+".foreign_bots", m.ForeignBots, ForeignUnset),
		ExpectedBotGrace: seconds(number(m, "expected_bot_grace_secs")),
		MaxBotUptime:     seconds(number(m, "max_bot_uptime_secs")),
		MaxHostUptime:    seconds(number(m, "max_host_uptime_secs")),
		UptimeSpread:     int(number(m, "uptime_spread_percent")),
		WarmPool:         m.WarmPool,
		own:              d.grants(at+".grant", m.Grant, groups),
	}
	if m.WarmPool != "" && (!path.IsAbs(m.WarmPool) || path.Clean(m.WarmPool) != m.WarmPool) {
		d.faultf(at+".warm_pool", "%q is not the absolute path of a socket", clip(m.WarmPool))
	}
	if m.CanaryPercent != nil {
		d.faultf(at+".canary_percent", "is not supported: a release rolls through the whole fleet at once; set rollout.canary_percent in settings.cfg")
	}
	for i, s := range m.InformationalDimensionRe {
		re, err := regexp.Compile("^(?:" + s + ")$")
		if err != nil {
			d.faultf(fmt.Sprintf("%s.informational_dimension_re[%d]", at, i), "%q is no regular expression: %v", clip(s), err)
			continue
		}
		p.informational = append(p.informational, re)
	}
	for i, r := range m.Recovery {
		p.Recovery = append(p.Recovery, d.rung(fmt.Sprintf("%s.recovery[%d]", at, i), r))
	}
	if b := m.CircuitBreaker; b != nil {
		p.Breaker = &Breaker{int(b.Percent), seconds(number(b, "window_secs")), int(number(b, "min_bots"))}
	}
	budget := 10000
	for i, s := range m.ExpectedBot {
		p.ExpectedBots = append(p.ExpectedBots, d.expand(fmt.Sprintf("%s.expected_bot[%d]", at, i), s, &budget)...)
	}
	slices.Sort(p.ExpectedBots)
	p.ExpectedBots = slices.Compact(p.ExpectedBots)
	return p
}

// noRemote refuses a remote scheduler. An entry that leaves everything to the
// server is how others write that they have none.
func (d *document) noRemote(at string, m *configpb.Pool_RBEMigration) {
	if m == nil {
		return
	}
	if m.RbeModePercent != 0 {
		d.faultf(at+".rbe_mode_percent", "is %d, want 0: %s", m.RbeModePercent, noRBE)
	}
	for i, a := range m.BotModeAllocation {
		if a.Mode != configpb.Pool_RBEMigration_BotModeAllocation_SWARMING && a.Percent != 0 {
			d.faultf(fmt.Sprintf("%s.bot_mode_allocation[%d].mode", at, i), "is %s, want SWARMING: %s", a.Mode, noRBE)
		}
	}
	if len(m.BotModeAllocation) == 0 && m.RbeInstance != "" {
		d.faultf(at, "is not supported: %s; take it out", noRBE)
	}
}

var rungActions = map[configpb.RecoveryRung_Action]RungAction{
	configpb.RecoveryRung_ACTION_RUN: RungRun, configpb.RecoveryRung_ACTION_RESTART_BOT: RungRestartBot,
	configpb.RecoveryRung_ACTION_REBOOT_HOST: RungRebootHost, configpb.RecoveryRung_ACTION_QUARANTINE: RungQuarantine,
}

func (d *document) rung(at string, m *configpb.RecoveryRung) Rung {
	r := Rung{
		Action: rungActions[m.Action], Command: m.Command, Timeout: seconds(number(m, "timeout_secs")),
		Budget: int(number(m, "budget")), Window: seconds(number(m, "window_secs")),
	}
	switch {
	case r.Action == RungRun && len(m.Command) == 0:
		d.faultf(at+".command", "is required with ACTION_RUN")
	case r.Action != RungRun && len(m.Command) > 0:
		d.faultf(at+".command", "is for ACTION_RUN only")
	}
	return r
}
