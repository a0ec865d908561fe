package server

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/health"
)

// Rules are what the fleet's configuration says, in the server's words. They
// never change; Options.Rules gives those of the moment. The zero Rules are a
// server without configuration: every pool exists, and any bot with a token
// may come in.
type Rules struct {
	Salt  [16]byte            // names the rules: equal ones have equal salts
	State *skeppb.ConfigState // what Config.Get answers; nil = there is no configuration

	ForceSleep   bool          // no bot gets a task
	MaxBotSleep  time.Duration // of bots that cannot wait; 0 = 60 s
	DisplayURL   string        // with one %s for a task's id; ""
	ViewerServer string        // of trees; ""

	Everywhere func(identity, permission string) Answer        // rights on the whole server; nil = Unsaid
	InRealm    func(realm, identity, permission string) Answer // nil = Unsaid
	Pools      func() []string                                 // names of all pools, sorted; nil = every pool exists
	Pool       func(name string) *PoolRules                    // nil for a pool that does not exist; set when Pools is
	Group      func(bot skep.BotID) *GroupRules                // nil for a bot that may not come in; the func is nil without bots.cfg
	Trusted    []string                                        // keys of dimensions that only the server sets
	Expected   map[skep.BotID]health.Wanted                    // bots that should be there
}

// Answer is what the configuration says of a permission.
type Answer uint8

// The answers.
const (
	Unsaid  Answer = iota // nothing: the scope of the token decides
	Granted               //
	Refused               //
)

// PoolRules are what holds in one pool.
type PoolRules struct {
	DefaultTaskRealm    string
	RefuseIsolationNone bool
	Informational       func(key string) bool // keys that tasks may not ask for
	AdmitsForeign       func(version string) bool
	RefusesForeign      bool // whatever their version
	Rights              func(identity, permission string) Answer

	Trusted       bool          // inputs may be links to the bot's cache
	Breaker       *health.Rule  // nil = none
	MaxBotUptime  time.Duration // 0 = no limit
	MaxHostUptime time.Duration // 0 = no limit
	UptimeSpread  float64       // share of the limits by which a bot may be due earlier
	Recovery      []botapi.Rung // what its sick bots try
	Handshake     [8]byte       // names what a handshake tells because of the pool
}

// GroupRules are what holds for the bots of one group.
type GroupRules struct {
	Credentials []Credential        // one success is enough
	Dimensions  map[string][]string // forced
	Pools       []string            // that the bots are in
	Script      func(foreign bool) Script
	Handshake   [8]byte // names what a handshake tells: equal ones are equal
	Auth        [8]byte // names Credentials
	LogsProject string
}

// Script is a hooks script; the zero one is none.
type Script struct{ Name, Content, Revision string }

// Credential is one way for a bot to prove who it is. What is set must hold.
type Credential struct {
	Name        string // for people: the field of bots.cfg
	Token       *Names // a token of scope bot with one of these names
	Certificate *Names // a client certificate with one of these names
	Project     string // a Compute Engine VM of this project
	VM          func(ctx context.Context, token string) (project, instance string, err error)
	Networks    []netip.Prefix // an address in one of them
	LogFailed   bool
}

// Names are accepted names; none of them means a rule of its own: any token,
// the bot's own certificate.
type Names []string

var noRules = &Rules{}

// rules returns those of the moment.
func (s *Server) rules() *Rules {
	if s.o.Rules == nil {
		return noRules
	}
	return s.o.Rules()
}

// poolsOf returns the pools that a bot is in. What a bot says of itself counts
// only without bots.cfg. spec api-v2.md §3.
func (ru *Rules) poolsOf(id skep.BotID, said skep.Dimensions) []string {
	if ru.Group == nil {
		return said["pool"]
	}
	if g := ru.Group(id); g != nil {
		return g.Pools
	}
	return []string{"unassigned"}
}

// shake names what a handshake of bot, which is in pools, tells.
func (ru *Rules) shake(id skep.BotID, pools []string) (name [8]byte) {
	if ru.Group != nil {
		if g := ru.Group(id); g != nil {
			name = g.Handshake
		}
	}
	if ru.Pool == nil {
		return name
	}
	for _, pool := range pools {
		if p := ru.Pool(pool); p != nil {
			for i := range name {
				name[i] ^= p.Handshake[i]
			}
		}
	}
	return name
}

// auth names how bot must prove who it is.
func (ru *Rules) auth(id skep.BotID) [8]byte {
	if ru.Group == nil {
		return [8]byte{}
	}
	if g := ru.Group(id); g != nil {
		return g.Auth
	}
	return [8]byte{}
}

// force gives a bot the dimensions that the server assigns. b's own are not
// changed, a new set is made.
func (ru *Rules) force(id skep.BotID, d skep.Dimensions) skep.Dimensions {
	if ru.Group == nil {
		return d
	}
	out := make(skep.Dimensions, len(d))
	for k, vs := range d {
		if !slices.Contains(ru.Trusted, k) {
			out[k] = vs
		}
	}
	if g := ru.Group(id); g != nil {
		for k, vs := range g.Dimensions {
			out[k] = vs
		}
	}
	return out
}

// unfit says why a bot gets no task whatever it is like, "" if nothing does.
// isolation returns what its state says
// of hiding its credential.
func (ru *Rules) unfit(b *skep.Bot, foreign bool, isolation func() string) string {
	if ru.Pool == nil {
		return ""
	}
	for _, name := range ru.poolsOf(b.ID, b.Dimensions) {
		p := ru.Pool(name)
		switch {
		case p == nil:
			if ru.Group == nil { // with bots.cfg "unassigned" is no pool either, and gets no tasks
				return "Pool " + clip(name, 256) + " does not exist (pools.cfg)."
			}
		case p.RefuseIsolationNone && !foreign && isolation() == "none":
			return "Pool " + name + " wants bots that can hide their credential from tasks (refuse_isolation_none in pools.cfg); this one says isolation=none."
		case p.RefuseIsolationNone && foreign:
			return "Pool " + name + " wants bots that can hide their credential from tasks (refuse_isolation_none in pools.cfg); this one does not say."
		case foreign && !p.AdmitsForeign(b.Version):
			return "Pool " + name + " does not admit bots of this version that are not a skep-bot (foreign_bots in pools.cfg or settings.cfg)."
		}
	}
	return ""
}

// refusesForeign returns the pool that wants no foreign bots at all, "" if none
// of the bot's does.
func (ru *Rules) refusesForeign(b *skep.Bot) string {
	if ru.Pool == nil {
		return ""
	}
	for _, name := range ru.poolsOf(b.ID, b.Dimensions) {
		if p := ru.Pool(name); p != nil && p.RefusesForeign {
			return name
		}
	}
	return ""
}
