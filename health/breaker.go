package health

import (
	"time"

	"github.com/skepdev/skep"
)

// Rule is the circuit breaker of a pool. While it holds a bot of the pool,
// nobody else of that pool falls ill either: what made them say so is to be
// looked at first. ADR 31.
type Rule struct {
	Percent int           // of the pool's bots that may fall ill …
	Window  time.Duration // … within this time
	MinBots int           // smaller pools are left alone
}

// Holds reports whether one more bot of a pool with size bots, which says that
// it is ill, is not believed. fell is how many of them fell ill within Window,
// held how many are not believed.
func (r *Rule) Holds(size, fell, held int) bool {
	if r == nil || size < r.MinBots {
		return false
	}
	return held > 0 || (fell+1)*100 > r.Percent*size
}

// Held is a bot that says it is ill and is not believed.
type Held struct {
	Bot   skep.BotID
	Pool  string
	Why   string // what it says
	Since time.Time
}

// HeldPool is a pool whose breaker is open.
type HeldPool struct {
	Count   int
	Example skep.BotID // held for longest
	Why     string     // what it says
	Since   time.Time
}

// HeldPools returns the pools of which bots are held.
func HeldPools(all []Held) map[string]HeldPool {
	out := map[string]HeldPool{}
	for _, h := range all {
		p := out[h.Pool]
		if p.Count++; p.Example == "" || h.Since.Before(p.Since) || h.Since.Equal(p.Since) && h.Bot < p.Example {
			p.Example, p.Why, p.Since = h.Bot, h.Why, h.Since
		}
		out[h.Pool] = p
	}
	return out
}
