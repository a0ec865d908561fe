// Package recovery decides how a bot gets well again: the ladder that an
// administrator declares, and the age at which bot and host are restarted. It
// only plans; package bot acts.
package recovery

import (
	"time"

	"github.com/skepdev/skep/bot/hook"
)

// Step is a rung that was taken, or began to be.
type Step struct {
	Do string    `json:"do"` // of its rung
	N  int       `json:"n"`  // index of its rung among those with the same Do
	At time.Time `json:"at"`
}

// MaxSteps is how many steps are remembered, the oldest forgotten first: more
// than budgets that make sense allow.
const MaxSteps = 256

// Action is what to do now: nothing when Rung is nil.
type Action struct {
	Rung  *hook.Rung
	Step  Step          // to be remembered before the rung is taken
	Again time.Duration // ask again after this; 0 = when the bot is ill anew
}

// Plan picks the lowest rung that has budget left, once the last step had its
// time to help. A bot that is not ill needs nothing: its budgets recover with
// time. history is what was done, oldest first; stamps in the future, as after
// a change of the clock, count as now. "quarantine" ends the ladder: nothing
// more is done, and the bot stays as ill as it is.
func Plan(now time.Time, ill bool, ladder []hook.Rung, history []Step) Action {
	if !ill {
		return Action{}
	}
	same := map[string]int{}
	for i := range ladder {
		r := &ladder[i]
		if r.Do == "quarantine" {
			return Action{}
		}
		n := same[r.Do]
		same[r.Do]++
		used := 0
		for _, s := range history {
			if s.Do != r.Do || s.N != n {
				continue
			}
			age := now.Sub(s.At)
			if age < 0 {
				age = 0
			}
			if age < r.Wait() {
				return Action{Again: r.Wait() - age}
			}
			if age < r.Per() {
				used++
			}
		}
		if used < r.Times {
			return Action{Rung: r, Step: Step{Do: r.Do, N: n, At: now}}
		}
	}
	return Action{}
}

// Remember appends a step and forgets the oldest beyond MaxSteps.
func Remember(history []Step, s Step) []Step {
	history = append(history, s)
	if len(history) > MaxSteps {
		history = history[len(history)-MaxSteps:]
	}
	return history
}

// Ages is how long bot and host have been up; zero = unknown.
type Ages struct{ Bot, Host time.Duration }

// Tired says that an idle bot or its host is older than it may get, as a fleet
// of machines that never restart collects faults. What is "bot_restart",
// "host_reboot" or "". share, −1 to 1, is the bot's own: limits are spread by
// it, so that a fleet does not restart at once.
func Tired(a Ages, s hook.Settings, share float64) (what string) {
	due := func(age time.Duration, secs float64) bool {
		limit := time.Duration(secs * (1 + s.Uptime.Spread*share) * float64(time.Second))
		return secs > 0 && age > 0 && age >= limit
	}
	switch {
	case due(a.Host, s.Uptime.HostSecs):
		return "host_reboot"
	case due(a.Bot, s.Uptime.BotSecs):
		return "bot_restart"
	}
	return ""
}
