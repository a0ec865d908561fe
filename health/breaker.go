package health

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
)

// Rule is the circuit breaker of a pool.
type Rule struct {
	Percent int           // of the pool's bots that may fall ill …
	Window  time.Duration // … within this time
	MinBots int           // smaller pools are left alone
}

// Held is a bot that says it is ill and is not believed.
type Held struct {
	Pool  string
	Why   string // what it says
	Since time.Time
}

// Breaker counts who falls ill. While it holds a bot of a pool, nobody else of
// that pool falls ill either: what made them say so is to be looked at first.
// It lets go of a bot that is well again. Its methods may be called at once by
// many. ADR 31.
type Breaker struct {
	busy atomic.Bool // somebody is ill or held

	mu   sync.Mutex
	ill  map[skep.BotID]fallen
	held map[skep.BotID]Held
}

type fallen struct {
	pool string
	at   time.Time // zero = before anybody counted
}

// NewBreaker returns one that knows nobody.
func NewBreaker() *Breaker {
	return &Breaker{ill: map[skep.BotID]fallen{}, held: map[skep.BotID]Held{}}
}

// Busy reports whether any bot is known as ill or held: only then does it
// matter that one is well. It costs nothing.
func (b *Breaker) Busy() bool { return b.busy.Load() }

// Judge reports whether a bot of a pool with size bots that says it is ill,
// for why, is not believed. first: it is the first one of its pool.
func (b *Breaker) Judge(now time.Time, bot skep.BotID, pool string, rule *Rule, size int, why string) (held, first bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy.Store(true)
	if _, ok := b.ill[bot]; ok {
		return false, false
	}
	if h, ok := b.held[bot]; ok && rule != nil && size >= rule.MinBots {
		h.Why = why
		b.held[bot] = h
		return true, false
	}
	if rule != nil && size >= rule.MinBots {
		many := b.open(pool)
		if many || (b.recent(now, pool, rule.Window)+1)*100 > rule.Percent*size {
			b.held[bot] = Held{Pool: pool, Why: why, Since: now}
			return true, !many
		}
	}
	delete(b.held, bot)
	b.ill[bot] = fallen{pool, now}
	return false, false
}

func (b *Breaker) open(pool string) bool {
	for _, h := range b.held {
		if h.Pool == pool {
			return true
		}
	}
	return false
}

func (b *Breaker) recent(now time.Time, pool string, window time.Duration) (n int) {
	for _, f := range b.ill {
		if f.pool == pool && !f.at.IsZero() && now.Sub(f.at) <= window {
			n++
		}
	}
	return n
}

// Well notes that a bot says nothing of being ill.
func (b *Breaker) Well(bot skep.BotID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ill, bot)
	delete(b.held, bot)
	b.busy.Store(len(b.ill)+len(b.held) > 0)
}

// Sync brings in what is stored of all bots: those that other servers let fall
// ill, at at, and forgets bots that are no more.
func (b *Breaker) Sync(bots []Bot, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known := make(map[skep.BotID]bool, len(bots))
	for i := range bots {
		known[bots[i].ID] = true
		if _, ok := b.ill[bots[i].ID]; !ok && bots[i].Ill {
			if _, ok := b.held[bots[i].ID]; !ok {
				b.ill[bots[i].ID] = fallen{bots[i].Pool(), at}
			}
		}
	}
	for id := range b.ill {
		if !known[id] {
			delete(b.ill, id)
		}
	}
	for id := range b.held {
		if !known[id] {
			delete(b.held, id)
		}
	}
	b.busy.Store(len(b.ill)+len(b.held) > 0)
}

// HeldBots returns how many bots of each pool are held, and one of them.
func (b *Breaker) HeldBots() map[string]HeldPool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]HeldPool{}
	for id, h := range b.held {
		p := out[h.Pool]
		if p.Count++; p.Example == "" || h.Since.Before(p.Since) || h.Since.Equal(p.Since) && id < p.Example {
			p.Example, p.Why, p.Since = id, h.Why, h.Since
		}
		out[h.Pool] = p
	}
	return out
}

// HeldPool is a pool whose breaker is open.
type HeldPool struct {
	Count   int
	Example skep.BotID // held for longest
	Why     string     // what it says
	Since   time.Time
}
