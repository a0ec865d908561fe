package server

import (
	"context"
	"slices"
	"strings"

	"github.com/skepdev/skep"
)

// may is one caller and the rules of the moment: who may do what, where.
// spec api-v2.md §3; ADR 14 for what the realms are.
type may struct {
	*caller
	rules *Rules
}

func (s *Server) may(ctx context.Context) may { return may{callerOf(ctx), s.rules()} }

// refusal is the error of a caller who has not p in a place, as "in pool x".
func (m may) refusal(p permission, where string) error {
	if where != "" {
		where = " " + where
	}
	if m.scope == "" {
		return skep.Errorf(skep.Unauthenticated, "%s has no permission %s%s; send a token (SKEP_TOKEN)", m.identity, p, where)
	}
	return skep.Errorf(skep.Denied, "%s has no permission %s%s", m.identity, p, where)
}

func (m may) must(ok bool, p permission, where string) error {
	if ok {
		return nil
	}
	return m.refusal(p, where)
}

// everywhere is what the configuration says of the whole server.
func (m may) everywhere(p permission) Answer {
	switch {
	case m.scope == ScopeAdmin:
		return Granted
	case m.rules.Everywhere == nil:
		return Unsaid
	default:
		return m.rules.Everywhere(m.identity, string(p))
	}
}

// server reports whether the caller has p on the whole server. Where nobody
// says, the scope decides; a permission of pools needs that none keeps it.
func (m may) server(p permission) bool {
	switch m.everywhere(p) {
	case Granted:
		return true
	case Refused:
		return false
	case Unsaid:
	}
	if !m.can(p) {
		return false
	}
	if m.rules.Pools == nil || !strings.HasPrefix(string(p), "swarming.pools.") {
		return true
	}
	return !slices.ContainsFunc(m.rules.Pools(), func(name string) bool { return !m.pool(p, name) })
}

// pool reports whether the caller has p in a pool.
func (m may) pool(p permission, name string) bool {
	if m.everywhere(p) == Granted {
		return true
	}
	if m.rules.Pool == nil {
		return m.can(p)
	}
	rules := m.rules.Pool(name)
	if rules == nil {
		return false
	}
	switch rules.Rights(m.identity, string(p)) {
	case Granted:
		return true
	case Refused:
		return false
	default:
		return m.can(p)
	}
}

// allPools reports whether the caller has p in each of names; without any it
// is asked for the whole server.
func (m may) allPools(p permission, names []string) bool {
	if len(names) == 0 {
		return m.server(p)
	}
	return !slices.ContainsFunc(names, func(name string) bool { return !m.pool(p, name) })
}

// bot reports whether the caller has p for a bot in these pools.
func (m may) bot(p permission, pools []string) bool {
	return m.server(p) || slices.ContainsFunc(pools, func(name string) bool { return m.pool(p, name) })
}

// realm reports whether the caller has p in a realm, and whether the
// configuration says so itself.
func (m may) realm(p permission, name string) Answer {
	if m.rules.InRealm == nil {
		return Unsaid
	}
	return m.rules.InRealm(name, m.identity, string(p))
}

// poolTwin is the permission of pools that is as good as one of tasks.
var poolTwin = map[permission]permission{permGetTask: permListTasks, permCancelTask: permCancelPool}

// task reports whether the caller has p for a task in these pools. Who
// submitted it has it.
func (m may) task(p permission, r *skep.TaskRequest, pools []string) bool {
	if m.scope == ScopeUser && r.Authenticated == m.identity || m.everywhere(p) == Granted || m.realm(p, r.Realm) == Granted {
		return true
	}
	return slices.ContainsFunc(pools, func(name string) bool { return m.pool(poolTwin[p], name) })
}

// mustServer returns a Denied error unless the caller has p on the whole
// server. Callers without any credentials are told to bring some.
func (s *Server) mustServer(ctx context.Context, p permission) error {
	m := s.may(ctx)
	return m.must(m.server(p), p, "")
}

// mustPool is mustServer for a pool. One that does not exist is nobody's.
func (s *Server) mustPool(ctx context.Context, p permission, name string) error {
	m := s.may(ctx)
	if m.rules.Pool != nil && m.rules.Pool(name) == nil {
		return skep.Errorf(skep.Denied, "%s has no permission %s in pool %s: there is no such pool", m.identity, p, name)
	}
	return m.must(m.pool(p, name), p, "in pool "+name)
}

// mustPools is mustServer for a listing that names pools.
func (s *Server) mustPools(ctx context.Context, p permission, names []string) error {
	m := s.may(ctx)
	where := ""
	if len(names) > 0 {
		where = "in all of the pools " + clip(strings.Join(names, ", "), 400)
	} else if m.rules.Pools != nil {
		where = "on the whole server; name a pool"
	}
	return m.must(m.allPools(p, names), p, where)
}

// mustBot is mustServer for a bot, known or not.
func (s *Server) mustBot(ctx context.Context, p permission, id skep.BotID) error {
	m := s.may(ctx)
	if m.server(p) {
		return nil
	}
	pools, err := s.poolsOfBot(ctx, m.rules, id)
	if err != nil {
		return err
	}
	return m.must(m.bot(p, pools), p, "for bot "+string(id))
}

func (s *Server) poolsOfBot(ctx context.Context, ru *Rules, id skep.BotID) ([]string, error) {
	if ru.Group != nil {
		return ru.poolsOf(id, nil), nil
	}
	b, err := s.store.Bot(ctx, id)
	if skep.KindOf(err) == skep.NotFound && err != nil {
		return nil, nil //nolint:nilerr // it is in no pool
	}
	if err != nil {
		return nil, err
	}
	return b.Dimensions["pool"], nil
}

// mustTask is mustServer for one task.
func (s *Server) mustTask(ctx context.Context, p permission, r *skep.TaskRequest) error {
	m := s.may(ctx)
	if m.rules.Pool == nil { // every pool is alike
		return m.must(m.task(p, r, nil) || m.can(p), p, "")
	}
	pools, err := s.poolsOfTask(ctx, m.rules, r)
	if err != nil {
		return err
	}
	return m.must(m.task(p, r, pools), p, "for this task")
}

// poolsOfTask is the pool that a task asks for; a termination task asks for
// none and is in those of its bot.
func (s *Server) poolsOfTask(ctx context.Context, ru *Rules, r *skep.TaskRequest) ([]string, error) {
	dims := r.Slices[0].Properties.Dimensions
	if pools := dims.Get("pool"); len(pools) > 0 {
		return pools, nil
	}
	if ids := dims.Get("id"); len(ids) > 0 {
		return s.poolsOfBot(ctx, ru, skep.BotID(ids[0]))
	}
	return nil, nil
}

// taggedPools are the pools that a filter of tags names, in all alternatives
// of all entries.
func taggedPools(tags []string) []string {
	var out []string
	for _, t := range tags {
		if value, ok := strings.CutPrefix(t, "pool:"); ok {
			out = append(out, strings.Split(value, "|")...)
		}
	}
	return out
}
