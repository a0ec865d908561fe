package server

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/health"
	"github.com/skepdev/skep/store"
)

// illnesses are which bots say that they are ill, and whether they are
// believed: what the store says, read every second. Only a bot that falls ill,
// or is well again, changes it, in a transaction that all servers share.
type illnesses struct {
	s *Server

	mu  sync.Mutex
	now map[skep.BotID]store.Illness
	gen int // counts what this server wrote, so that an older reading is not taken
}

func newIllnesses(s *Server) *illnesses {
	return &illnesses{s: s, now: map[skep.BotID]store.Illness{}}
}

// read takes what other servers noted.
func (is *illnesses) read(ctx context.Context) error {
	is.mu.Lock()
	gen := is.gen
	is.mu.Unlock()
	all, err := is.s.store.Illnesses(ctx)
	if err != nil {
		return err
	}
	m := make(map[skep.BotID]store.Illness, len(all))
	for _, i := range all {
		m[i.Bot] = i
	}
	is.mu.Lock()
	defer is.mu.Unlock()
	if gen == is.gen { // else next time
		is.now = m
	}
	return nil
}

func heldPools(m map[skep.BotID]store.Illness) map[string]health.HeldPool {
	var held []health.Held
	for _, i := range m {
		if i.Held {
			held = append(held, health.Held{Bot: i.Bot, Pool: i.Pool, Why: i.Why, Since: i.Since})
		}
	}
	return health.HeldPools(held)
}

// held returns the pools whose breaker is open.
func (is *illnesses) held() map[string]health.HeldPool {
	is.mu.Lock()
	defer is.mu.Unlock()
	return heldPools(is.now)
}

func (is *illnesses) of(bot skep.BotID) (store.Illness, bool) {
	is.mu.Lock()
	defer is.mu.Unlock()
	i, ok := is.now[bot]
	return i, ok
}

func (is *illnesses) wrote(bot skep.BotID, i *store.Illness) {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.gen++
	if i == nil {
		delete(is.now, bot)
	} else {
		is.now[bot] = *i
	}
}

// well notes that a bot says nothing of being ill.
func (is *illnesses) well(ctx context.Context, bot skep.BotID) error {
	if _, ok := is.of(bot); !ok {
		return nil
	}
	err := is.s.store.Update(ctx, func(tx *store.Tx) error { return tx.DropIllness(bot) })
	if err == nil {
		is.wrote(bot, nil)
	}
	return err
}

// judge reports whether a bot of a pool with size bots that says it is ill, for
// why, is not believed. One that was ill before its pool had a breaker is. ADR 31.
func (is *illnesses) judge(ctx context.Context, bot skep.BotID, pool string, rule *health.Rule, size int, why string) (held bool, err error) {
	i, known := is.of(bot)
	known = known && i.Pool == pool
	switch {
	case rule == nil: // perhaps not any more
		return false, is.well(ctx, bot)
	case known && !i.Held:
		return false, nil
	case known && size >= rule.MinBots:
		return true, nil
	}
	look, _, err := is.s.store.BotLookNow(ctx, bot)
	if err != nil {
		return false, err
	}
	var now store.Illness
	err = is.s.store.Update(ctx, func(tx *store.Tx) error {
		old, err := tx.LockIllness(bot)
		if err != nil {
			return err
		}
		if old != nil && old.Pool != pool {
			old = nil
		}
		fell, others, err := tx.CountIllness(pool, tx.Now.Add(-rule.Window))
		if err != nil {
			return err
		}
		now = store.Illness{Bot: bot, Pool: pool, Since: tx.Now}
		switch {
		case old != nil && (!old.Held || size >= rule.MinBots): // another server judged
			now = *old
		case old == nil && look.Quarantined != "":
			now.Since = time.Time{}
		case rule.Holds(size, fell, others):
			now.Held, now.Why = true, why
		}
		return tx.SaveIllness(now)
	})
	if err != nil {
		return false, err
	}
	is.wrote(bot, &now)
	return now.Held, nil
}

// prune forgets bots that are no more.
func (is *illnesses) prune(ctx context.Context, bots []store.BotBrief) error {
	is.mu.Lock()
	all := slices.Collect(maps.Keys(is.now))
	is.mu.Unlock()
	if len(all) == 0 {
		return nil
	}
	known := make(map[skep.BotID]bool, len(bots))
	for i := range bots {
		known[bots[i].ID] = true
	}
	for _, bot := range all {
		if !known[bot] {
			if err := is.well(ctx, bot); err != nil {
				return err
			}
		}
	}
	return nil
}
