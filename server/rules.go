package server

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/api/providerpb/projectspb"
	"github.com/skepdev/skep/api/skeppb"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/queen"
)

// Rules are what the fleet's configuration says, in the server's words. They
// never change; Options.Rules gives those of the moment. The zero Rules are a
// server without configuration: every pool exists, and any bot with a token
// may come in.
type Rules struct {
	Salt  [16]byte            // names the rules: equal ones have equal salts
	State *skeppb.ConfigState // what Config.Get answers; nil = there is no configuration

	ForceSleep   bool          // no bot gets a task
	Foreign      ForeignRules  // where no pool says another one
	MaxBotSleep  time.Duration // of bots that cannot wait; 0 = 60 s
	DisplayURL   string        // with one %s for a task's id; ""
	ViewerServer string        // of trees; ""

	Queen queen.Policy // the zero one is the defaults

	Owns     func(owner, identity string) bool // whether an owner, as a pool of machines names it, is identity; nil = no
	Projects []*projectspb.Project             // whose quota is reported, by name

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
	Foreign             ForeignRules
	Rights              func(identity, permission string) Answer

	Trusted       bool          // inputs may be links to the bot's cache
	Breaker       *health.Rule  // nil = none
	MaxBotUptime  time.Duration // 0 = no limit
	MaxHostUptime time.Duration // 0 = no limit
	UptimeSpread  float64       // share of the limits by which a bot may be due earlier
	Recovery      []botapi.Rung // what its sick bots try
	WarmPool      string        // socket of the pool in whose containers its tasks run; "" = as bots say
	Handshake     [8]byte       // names what a handshake tells because of the pool
}

// ForeignRules are which bots that are no skep-bots may come in. The zero ones
// admit all.
type ForeignRules struct {
	Admits  func(version string) bool // nil = all
	Refuses bool                      // whatever their version
}

func (f *ForeignRules) admits(version string) bool { return f.Admits == nil || f.Admits(version) }

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
	VM          func(ctx context.Context, token string) (CloudVM, error)
	Networks    []netip.Prefix // an address in one of them
	LogFailed   bool
}

// CloudVM is a virtual machine, as its cloud signed it.
type CloudVM struct{ Project, Zone, Name string }

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

// warmPool is the socket that tasks of a pool run behind, "" where bots decide.
func (ru *Rules) warmPool(pool string) string {
	if ru.Pool == nil {
		return ""
	}
	if p := ru.Pool(pool); p != nil {
		return p.WarmPool
	}
	return ""
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
// isolation returns what its state says of hiding its credential.
func (ru *Rules) unfit(b *skep.Bot, foreign bool, isolation func() string) string {
	pools := ru.poolsOf(b.ID, b.Dimensions)
	if len(pools) == 0 && foreign && !ru.Foreign.admits(b.Version) {
		return "This server does not admit" + notOurs
	}
	for _, name := range pools {
		p := ru.pool(name)
		switch {
		case p == nil && ru.Pool != nil && ru.Group == nil: // with bots.cfg "unassigned" is no pool either, and gets no tasks
			return "Pool " + clip(name, 256) + " does not exist (pools.cfg)."
		case p != nil && p.RefuseIsolationNone && !foreign && isolation() == "none":
			return "Pool " + name + " wants bots that can hide their credential from tasks (refuse_isolation_none in pools.cfg); this one says isolation=none."
		case p != nil && p.RefuseIsolationNone && foreign:
			return "Pool " + name + " wants bots that can hide their credential from tasks (refuse_isolation_none in pools.cfg); this one does not say."
		case foreign && !ru.foreign(p).admits(b.Version):
			return "Pool " + clip(name, 256) + " does not admit" + notOurs
		}
	}
	return ""
}

const notOurs = " bots of this version that are not a skep-bot (foreign_bots in pools.cfg or settings.cfg)."

// pool returns the rules of a pool, nil where there are none of its own.
func (ru *Rules) pool(name string) *PoolRules {
	if ru.Pool == nil {
		return nil
	}
	return ru.Pool(name)
}

// foreign returns what holds for foreign bots of a pool, which may be nil.
func (ru *Rules) foreign(p *PoolRules) *ForeignRules {
	if p != nil {
		return &p.Foreign
	}
	return &ru.Foreign
}

// refusesForeign says who of those that a bot would belong to wants no foreign
// bots at all, "" if nobody does.
func (ru *Rules) refusesForeign(b *skep.Bot) string {
	pools := ru.poolsOf(b.ID, b.Dimensions)
	if len(pools) == 0 && ru.Foreign.Refuses {
		return "this server"
	}
	for _, name := range pools {
		if ru.foreign(ru.pool(name)).Refuses {
			return "pool " + clip(name, 256)
		}
	}
	return ""
}
