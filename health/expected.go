package health

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/skepdev/skep"
)

// Bot is what is known of a bot when a fleet is looked at.
type Bot struct {
	ID          skep.BotID
	Pools       []string
	Seen        time.Time // last contact
	Busy        bool
	Ill         bool // in quarantine
	Maintenance bool
	Dead        bool
}

// Pool returns the pool that a bot counts for, "" when it is in none.
func (b *Bot) Pool() string {
	if len(b.Pools) == 0 {
		return ""
	}
	return b.Pools[0]
}

// Wanted is a bot that should be there.
type Wanted struct {
	Pool  string
	Grace time.Duration // how long it may be away
}

// Kinds of alarms.
const (
	NeverAppeared  = "bot_never_appeared"
	Vanished       = "bot_vanished"
	CircuitBreaker = "circuit_breaker"
	RolloutHalted  = "rollout_halted"
)

// Alarm is something that somebody should look at.
type Alarm struct {
	Kind  string
	Pool  string     // "" = the fleet's
	Bot   skep.BotID // "" = the pool's
	Text  string
	Since time.Time
}

// Missing returns alarms for bots that should be there and are not. since is
// when each began to be wanted; silence before up, when nobody could be heard,
// does not count.
func Missing(now, up time.Time, want map[skep.BotID]Wanted, since map[skep.BotID]time.Time, bots map[skep.BotID]*Bot) []Alarm {
	var out []Alarm
	for id, w := range want {
		b := bots[id]
		if b == nil {
			if from := later(since[id], up); now.Sub(from) > w.Grace {
				out = append(out, Alarm{NeverAppeared, w.Pool, id, fmt.Sprintf("bot %s is expected in pool %s and has not called", id, w.Pool), from})
			}
			continue
		}
		if from := later(b.Seen, up); now.Sub(from) > w.Grace {
			out = append(out, Alarm{Vanished, w.Pool, id, fmt.Sprintf("bot %s is expected in pool %s and has been silent since %s", id, w.Pool, b.Seen.UTC().Format(time.RFC3339)), b.Seen})
		}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// Sort orders alarms by kind, pool and bot.
func Sort(as []Alarm) {
	slices.SortFunc(as, func(a, b Alarm) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Pool, b.Pool), cmp.Compare(a.Bot, b.Bot))
	})
}
