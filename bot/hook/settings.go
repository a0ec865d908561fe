package hook

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"time"

	"github.com/skepdev/skep"
)

// Partition says how much of a partition must stay free. spec bot.md §6.4, §8.6.
type Partition struct {
	Size       uint64  `json:"size"`        // bytes, 0 = no such rule
	MaxPercent float64 `json:"max_percent"` // 0 to 100; the smaller of this and Size counts
	MinPercent float64 `json:"min_percent"` // 0 to 100; at least this
	Wiggle     uint64  `json:"wiggle"`      // bytes that caches leave beyond it
}

// Rung is one step of the recovery ladder of a bot that is quarantined.
type Rung struct {
	Do          string   `json:"do"` // "run", "bot_restart", "host_reboot", "quarantine"
	Command     []string `json:"command,omitempty"`
	TimeoutSecs float64  `json:"timeout_secs,omitempty"` // of the command; 0 = 60
	Times       int      `json:"times"`                  // budget: at most so often …
	PerSecs     float64  `json:"per_secs"`               // … within this time; 0 = a day
	WaitSecs    float64  `json:"wait_secs"`              // what it gets to help; 0 = 60
}

// Per returns the time of the rung's budget.
func (r *Rung) Per() time.Duration { return seconds(r.PerSecs, 24*time.Hour) }

// Wait returns how long the rung gets to help.
func (r *Rung) Wait() time.Duration { return seconds(r.WaitSecs, time.Minute) }

// Timeout returns how long the rung's command may take.
func (r *Rung) Timeout() time.Duration { return seconds(r.TimeoutSecs, time.Minute) }

func seconds(s float64, zero time.Duration) time.Duration {
	if s <= 0 {
		return zero
	}
	return time.Duration(s * float64(time.Second))
}

// Settings are what get_settings returns, merged over the defaults. Keys that
// are not ours are accepted and mean nothing.
type Settings struct {
	FreePartition struct {
		Root Partition `json:"root"`
		Bot  Partition `json:"bot"`
	} `json:"free_partition"`
	Caches struct {
		Isolated struct {
			Size  uint64 `json:"size"`  // bytes; 0 = the default
			Items uint64 `json:"items"` // 0 = any number
			Dir   string `json:"dir"`   // skep's: absolute, may be shared by bots of one user; "" = cas_cache in the bot's own
		} `json:"isolated"`
	} `json:"caches"`

	// The rest is skep's.
	Task struct {
		EnvPass []string `json:"env_pass"` // names let through to tasks; a trailing * matches any rest
		Pool    string   `json:"pool"`     // socket of a warm pool, whose containers tasks run in; "" = none
	} `json:"task"`
	Drain struct {
		DeadlineSecs float64 `json:"deadline_secs"` // 0 = the task's own limits
	} `json:"drain"`
	Uptime struct {
		BotSecs  float64 `json:"bot_secs"`  // restart the idle bot after; 0 = never
		HostSecs float64 `json:"host_secs"` // reboot the idle host after; 0 = never
		Spread   float64 `json:"spread"`    // 0 to 0.9: each bot's own share of ± this around both
	} `json:"uptime"`
	Recovery []Rung `json:"recovery"`
}

// DefaultSettings returns what holds without a hook. spec bot.md §6.4.
func DefaultSettings() Settings {
	var s Settings
	s.FreePartition.Root = Partition{Size: 1 << 30, MaxPercent: 10, MinPercent: 6}
	s.FreePartition.Bot = Partition{Size: 4 << 30, MaxPercent: 15, MinPercent: 7, Wiggle: 250 << 20}
	s.Caches.Isolated.Size = 50 << 30
	s.Caches.Isolated.Items = 51200
	s.Task.EnvPass = []string{}
	s.Uptime.Spread = 0.2
	s.Recovery = []Rung{}
	return s
}

// MergeSettings lays what a hook returned over the defaults, key by key. With
// an error, which names the key, the defaults are returned.
func MergeSettings(value json.RawMessage) (Settings, error) {
	def := DefaultSettings()
	var left, right map[string]any
	data, err := json.Marshal(def)
	if err == nil {
		err = json.Unmarshal(data, &left)
	}
	if err != nil {
		return def, err
	}
	if err := json.Unmarshal(value, &right); err != nil {
		return def, skep.Invalidf("get_settings", "is not a dict: %v", err)
	}
	merged, err := merge("", left, right)
	if err != nil {
		return def, err
	}
	if data, err = json.Marshal(merged); err != nil {
		return def, err
	}
	var s Settings
	if err := json.Unmarshal(data, &s); err != nil {
		return def, skep.Invalidf("get_settings", "%v", err)
	}
	if err := s.validate(); err != nil {
		return def, err
	}
	return s, nil
}

// merge returns left with right's keys. Values of known keys keep their type.
func merge(path string, left, right map[string]any) (map[string]any, error) {
	out := maps.Clone(left)
	for k, v := range right {
		old, known := left[k]
		l, lok := old.(map[string]any)
		r, rok := v.(map[string]any)
		switch {
		case !known || old == nil:
			out[k] = v
		case lok && rok:
			m, err := merge(path+k+".", l, r)
			if err != nil {
				return nil, err
			}
			out[k] = m
		case kindOf(old) != kindOf(v):
			return nil, skep.Invalidf(path+k, "is a %s, want a %s", kindOf(v), kindOf(old))
		default:
			out[k] = v
		}
	}
	return out, nil
}

func kindOf(v any) string {
	switch v.(type) {
	case map[string]any:
		return "dict"
	case []any:
		return "list"
	case string:
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	}
	return "None"
}

func (s *Settings) validate() error {
	for name, p := range map[string]Partition{"root": s.FreePartition.Root, "bot": s.FreePartition.Bot} {
		for _, v := range []float64{p.MaxPercent, p.MinPercent} {
			if v < 0 || v > 100 {
				return skep.Invalidf("free_partition."+name, "has a percentage of %v, want 0 to 100", v)
			}
		}
	}
	if v := s.Uptime.Spread; v < 0 || v > 0.9 {
		return skep.Invalidf("uptime.spread", "is %v, want 0 to 0.9", v)
	}
	if v := s.Caches.Isolated.Dir; v != "" && (!filepath.IsAbs(v) || filepath.Clean(v) != v || filepath.Dir(v) == v) {
		return skep.Invalidf("caches.isolated.dir", "is %q, want an absolute path of a directory that bots may share", v)
	}
	for _, v := range []struct {
		name string
		secs float64
	}{{"drain.deadline_secs", s.Drain.DeadlineSecs}, {"uptime.bot_secs", s.Uptime.BotSecs}, {"uptime.host_secs", s.Uptime.HostSecs}} {
		if v.secs < 0 || v.secs > 1e9 {
			return skep.Invalidf(v.name, "is %v, want seconds from 0", v.secs)
		}
	}
	if len(s.Recovery) > 16 {
		return skep.Invalidf("recovery", "has %d rungs, at most 16 are allowed", len(s.Recovery))
	}
	for i, r := range s.Recovery {
		if err := r.validate(); err != nil {
			return skep.Invalidf(fmt.Sprintf("recovery[%d]", i), "%v", err)
		}
	}
	return nil
}

func (r *Rung) validate() error {
	for _, v := range []float64{r.TimeoutSecs, r.PerSecs, r.WaitSecs} {
		if v < 0 || v > 1e9 {
			return fmt.Errorf("a time of %v seconds", v)
		}
	}
	switch r.Do {
	case "run":
		if len(r.Command) == 0 {
			return fmt.Errorf("do is %q and there is no command", r.Do)
		}
	case "bot_restart", "host_reboot":
	case "quarantine":
		return nil
	default:
		return fmt.Errorf("do is %q, want run, bot_restart, host_reboot or quarantine", r.Do)
	}
	if r.Times < 1 || r.Times > 1000 {
		return fmt.Errorf("times is %d, want 1 to 1000: a rung needs a budget", r.Times)
	}
	return nil
}
