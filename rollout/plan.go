package rollout

import (
	"crypto/sha256"
	"fmt"
	"math"
	"time"

	"github.com/skepdev/skep"
)

// Stages of a rollout.
const (
	StageCanary = "canary" // the canary share is told to run the new release
	StageAll    = "all"    // everybody is
)

// State is what a fleet's servers agree on.
type State struct {
	Rev    int64     `json:"rev"`    // counts the changes
	Stable string    `json:"stable"` // release that everybody may run; "" before the first
	Next   string    `json:"next,omitempty"`
	Stage  string    `json:"stage,omitempty"`  // of Next
	Since  time.Time `json:"since,omitzero"`   // of the stage
	Halted string    `json:"halted,omitempty"` // why Next is given to nobody
	// Chosen is a canary of its own, where no bot is in the canary share.
	Chosen skep.BotID `json:"chosen,omitempty"`
}

// Settings of a fleet's rollouts.
type Settings struct {
	CanaryPercent float64       // share of the fleet that goes first, 0 to 100
	Soak          time.Duration // how long a stage must go well
	Answer        time.Duration // until a bot that was told to update must poll with the new code; 0 = Answer
	MaxCrashes    int           // so many bots that did not halt it; 0 = 3
	MaxCrashShare float64       // or this share of those told, if that is more; 0 = 5 %
}

func (s *Settings) complete() {
	if s.Answer == 0 {
		s.Answer = Answer
	}
	if s.MaxCrashes == 0 {
		s.MaxCrashes = manyCrashes
	}
	if s.MaxCrashShare == 0 {
		s.MaxCrashShare = crashShare
	}
}

// Defaults.
const (
	DefaultCanaryPercent = 10
	DefaultSoak          = time.Minute
)

// Answer is how long a bot that was told to update has until its first poll
// with the new code, where the settings say nothing else. decisions.md 24.
const Answer = 60 * time.Second

// Bounds that halt a rollout, on the bots that were told to update.
const (
	manyCrashes    = 3
	crashShare     = 0.05
	choosePatience = 5 * time.Second
)

// Counts is how the bots of a rollout are.
type Counts struct {
	Waiting   int // told to update and not back yet
	Confirmed int // polled with the new code
	Crashed   int // came back with the old code, or not at all

	Ill       int // of those confirmed, in quarantine
	OthersIll int // of the others, in quarantine
	Others    int // bots that run the old code

	Tasks, Failed             int // ended on bots with the new code; of those, by a fault of the bot
	OthersTasks, OthersFailed int

	Lowest skep.BotID // the known bot with the lowest canary number, "" when none is known
}

func (c Counts) told() int { return c.Waiting + c.Confirmed + c.Crashed }

// Plan returns what a rollout's state becomes. It changes nothing itself.
func Plan(now time.Time, s State, c Counts, set Settings) State {
	if s.Next == "" || s.Halted != "" {
		return s
	}
	set.complete()
	if why := sick(c, set); why != "" {
		s.Halted = why
		s.Rev++
		return s
	}
	age := now.Sub(s.Since)
	switch {
	case s.Stage == StageCanary && c.told() == 0 && s.Chosen == "" && c.Lowest != "" && age >= choosePatience:
		s.Chosen = c.Lowest
	case age < set.Soak || c.Waiting > 0:
		return s
	case s.Stage == StageCanary && (c.Confirmed > 0 || c.told() == 0 && c.Lowest == ""):
		s.Stage, s.Since, s.Chosen = StageAll, now, ""
	case s.Stage == StageAll:
		s = State{Rev: s.Rev, Stable: s.Next, Since: now}
	default:
		return s
	}
	s.Rev++
	return s
}

// sick says why a release must not go on, "" when it may.
func sick(c Counts, set Settings) string {
	limit := min(max(set.MaxCrashes, int(math.Ceil(set.MaxCrashShare*float64(c.told())))), max(c.told(), 1))
	// Where few were told, most of them are enough: the others may take a minute
	// to be given up.
	if c.Crashed >= limit || c.Crashed >= 2 && 2*c.Crashed >= c.told() {
		return fmt.Sprintf("%d of %d bots that were told to update did not come back with the new code", c.Crashed, c.told())
	}
	if c.Ill >= limit && share(c.Ill, c.Confirmed) > 2*share(c.OthersIll, c.Others)+crashShare {
		return fmt.Sprintf("%d of %d bots with the new code are in quarantine, %d of %d others", c.Ill, c.Confirmed, c.OthersIll, c.Others)
	}
	if c.Failed >= manyCrashes && share(c.Failed, c.Tasks) > 2*share(c.OthersFailed, c.OthersTasks)+crashShare {
		return fmt.Sprintf("%d of %d tasks failed by a fault of bots with the new code, %d of %d elsewhere", c.Failed, c.Tasks, c.OthersFailed, c.OthersTasks)
	}
	return ""
}

func share(part, all int) float64 {
	if all == 0 {
		return 0
	}
	return float64(part) / float64(all)
}

// Offered returns the state after a server offered a release. fresh says that
// no server of the fleet had it before: an older server that starts again does
// not take the fleet back.
func Offered(now time.Time, s State, release string, fresh bool) State {
	switch {
	case s.Stable == "":
		return State{Rev: s.Rev + 1, Stable: release, Since: now}
	case release == s.Stable && s.Next == "", release == s.Next, !fresh:
		return s
	case release == s.Stable: // the change was taken back
		return State{Rev: s.Rev + 1, Stable: s.Stable, Since: now}
	}
	return State{Rev: s.Rev + 1, Stable: s.Stable, Next: release, Stage: StageCanary, Since: now}
}

// For returns the release that a bot should run.
func (s *State) For(bot skep.BotID, percent float64) string {
	if s.Next == "" || s.Halted != "" {
		return s.Stable
	}
	if s.Stage == StageAll || bot == s.Chosen || Canary(bot) < percent {
		return s.Next
	}
	return s.Stable
}

// Canary returns a bot's number, 0 ≤ n < 100: it is a canary when that is
// below the canary percentage. spec bot.md §10.4.
func Canary(bot skep.BotID) float64 {
	sum := sha256.Sum256([]byte("bot-channel:" + string(bot)))
	v := float64(sum[0]) + 256*float64(sum[1])
	return math.Floor(v * 99.9 / 65792)
}
