package server

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
)

// tiredAgain is how long a bot that was told to begin anew because of its age is
// left alone: it may not be able to.
const tiredAgain = time.Hour

// tiredness is what to tell a bot that has run for too long; zero = nothing.
type tiredness struct{ cmd, why string }

// tired reports whether a bot that asks for work, or its host, has run for
// longer than its pools let it. Each bot is due at a time of its own.
func (s *Server) tired(ru *Rules, b *skep.Bot, st *botState, pools []string) tiredness {
	if ru.Pool == nil {
		return tiredness{}
	}
	for _, name := range pools {
		p := ru.Pool(name)
		if p == nil || p.MaxBotUptime == 0 && p.MaxHostUptime == 0 {
			continue
		}
		early := 1 - p.UptimeSpread*spreadOf(b.ID)
		t := tiredness{}
		switch host, own := secondsOf(st.uptime), secondsOf(st.runningTime); {
		case due(host, p.MaxHostUptime, early):
			t = tiredness{botapi.CmdHostReboot, fmt.Sprintf("The host has been up for %v (max_host_uptime_secs of pool %s).", host, name)}
		case due(own, p.MaxBotUptime, early):
			t = tiredness{botapi.CmdBotRestart, fmt.Sprintf("The bot has run for %v (max_bot_uptime_secs of pool %s).", own, name)}
		default:
			continue
		}
		if !s.fleet.askedLately(b.ID, s.o.Now()) {
			return t
		}
	}
	return tiredness{}
}

func due(age, limit time.Duration, early float64) bool {
	return limit > 0 && age > 0 && float64(age) >= float64(limit)*early
}

// spreadOf is a bot's own number from 0 to 1, always the same.
func spreadOf(id skep.BotID) float64 {
	sum := sha256.Sum256([]byte("uptime:" + string(id)))
	return float64(binary.BigEndian.Uint32(sum[:4])) / (1 << 32)
}

func secondsOf(raw []byte) time.Duration {
	var secs float64
	if len(raw) == 0 || json.Unmarshal(raw, &secs) != nil || secs < 0 || secs > 1e9 {
		return 0
	}
	return time.Duration(secs) * time.Second
}

func (f *fleetHealth) askedLately(bot skep.BotID, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.told[bot]
	return ok && now.Sub(t) < tiredAgain
}

func (f *fleetHealth) asked(bot skep.BotID, t tiredness) {
	now := f.s.o.Now()
	f.s.log.Info("a bot has run for too long", "bot", string(bot), "cmd", t.cmd, "reason", t.why)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told[bot] = now
}

// recovery is the ladder of the first of a bot's pools that has one.
func (ru *Rules) recovery(pools []string) []botapi.Rung {
	if ru.Pool == nil {
		return nil
	}
	for _, name := range pools {
		if p := ru.Pool(name); p != nil && len(p.Recovery) > 0 {
			return p.Recovery
		}
	}
	return nil
}

// trusts reports whether all of a bot's pools trust their tasks with the cache
// of inputs: it is one for all of them.
func (ru *Rules) trusts(pools []string) bool {
	if ru.Pool == nil || len(pools) == 0 {
		return false
	}
	for _, name := range pools {
		if p := ru.Pool(name); p == nil || !p.Trusted {
			return false
		}
	}
	return true
}
