package rollout

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
)

var began = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

func TestPlan(t *testing.T) {
	set := Settings{CanaryPercent: 10, Soak: time.Minute}
	canary := State{Rev: 1, Stable: "old", Next: "new", Stage: StageCanary, Since: began}
	all := canary
	all.Stage = StageAll
	for _, tc := range []struct {
		name   string
		state  State
		counts Counts
		after  time.Duration
		want   string // stage of what comes, or what it is halted for
	}{
		{"too early", canary, Counts{Confirmed: 5}, 59 * time.Second, "canary"},
		{"the canaries are well", canary, Counts{Confirmed: 5}, time.Minute, "all"},
		{"one is not back yet", canary, Counts{Confirmed: 5, Waiting: 1}, time.Minute, "canary"},
		{"two of twenty crashed", canary, Counts{Confirmed: 18, Crashed: 2}, time.Minute, "all"},
		{"three of twenty crashed", canary, Counts{Confirmed: 17, Crashed: 3}, time.Second, "did not come back"},
		{"four of two hundred crashed", canary, Counts{Confirmed: 196, Crashed: 4}, time.Second, "canary"},
		{"ten of two hundred crashed", canary, Counts{Confirmed: 190, Crashed: 10}, time.Second, "did not come back"},
		{"two of three crashed", canary, Counts{Waiting: 1, Crashed: 2}, time.Second, "did not come back"},
		{"one of two crashed", canary, Counts{Confirmed: 1, Crashed: 1}, time.Second, "canary"},
		{"the only canary crashed", canary, Counts{Crashed: 1}, time.Second, "did not come back"},
		{"ill, as the others are", canary, Counts{Confirmed: 20, Ill: 4, Others: 100, OthersIll: 20}, time.Second, "canary"},
		{"ill, and the others are not", canary, Counts{Confirmed: 20, Ill: 4, Others: 100}, time.Second, "quarantine"},
		{"tasks fail", canary, Counts{Confirmed: 20, Tasks: 20, Failed: 5, Others: 100, OthersTasks: 100, OthersFailed: 1}, time.Second, "tasks failed"},
		{"tasks fail everywhere", canary, Counts{Confirmed: 20, Tasks: 20, Failed: 5, Others: 100, OthersTasks: 100, OthersFailed: 20}, time.Second, "canary"},
		{"no bot is in the canary share", canary, Counts{Lowest: "b"}, choosePatience, "canary b"},
		{"there are no bots", canary, Counts{}, time.Minute, "all"},
		{"all are well", all, Counts{Confirmed: 50}, time.Minute, "stable new"},
		{"all, and some crash", all, Counts{Confirmed: 50, Crashed: 3}, time.Minute, "did not come back"},
		{"nothing rolls", State{Rev: 1, Stable: "old"}, Counts{}, time.Hour, "stable old"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := Plan(began.Add(tc.after), tc.state, tc.counts, set)
			got := s.Stage
			switch {
			case s.Halted != "":
				got = s.Halted
			case s.Chosen != "":
				got += " " + string(s.Chosen)
			case s.Next == "":
				got = "stable " + s.Stable
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if changed := cmp.Diff(tc.state, s) != ""; changed != (s.Rev != tc.state.Rev) {
				t.Errorf("changed %v, rev %d → %d", changed, tc.state.Rev, s.Rev)
			}
		})
	}
}

func TestOffered(t *testing.T) {
	rolling := State{Rev: 3, Stable: "a", Next: "b", Stage: StageCanary, Since: began}
	halted := rolling
	halted.Halted = "because"
	for _, tc := range []struct {
		name    string
		state   State
		release string
		fresh   bool
		want    string
	}{
		{"the first", State{}, "a", true, "a//"},
		{"the same again", State{Stable: "a"}, "a", false, "a//"},
		{"a new one", State{Stable: "a"}, "b", true, "a/b/"},
		{"an older server starts", State{Stable: "b"}, "a", false, "b//"},
		{"while it rolls", rolling, "b", false, "a/b/"},
		{"another one while it rolls", rolling, "c", true, "a/c/"},
		{"the halted one again", halted, "b", false, "a/b/because"},
		{"a mended one", halted, "c", true, "a/c/"},
		{"taken back", rolling, "a", true, "a//"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := Offered(began, tc.state, tc.release, tc.fresh)
			if got := fmt.Sprintf("%s/%s/%s", s.Stable, s.Next, s.Halted); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// The canary share is what spec bot.md §10.4 computes, and about as large as
// it says.
func TestCanary(t *testing.T) {
	n := 0
	for i := range 10_000 {
		c := Canary(skep.BotID(fmt.Sprintf("bot-%d", i)))
		if c < 0 || c >= 100 {
			t.Fatalf("canary number %v", c)
		}
		if c < 10 {
			n++
		}
	}
	if n < 900 || n > 1100 {
		t.Errorf("%d of 10000 bots are in 10 %%", n)
	}
}

// Whatever happens, a halted release is given to nobody, and a release becomes
// stable only from the stage in which everybody had it.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := State{Stable: "old"}
		now := began
		for i := range 30 {
			was := s
			if rapid.IntRange(0, 5).Draw(t, "what") == 0 {
				s = Offered(now, s, fmt.Sprintf("r%d", rapid.IntRange(0, 3).Draw(t, "release")), rapid.Bool().Draw(t, "fresh"))
			} else {
				n := func(name string) int { return rapid.IntRange(0, 30).Draw(t, name) }
				c := Counts{Waiting: n("waiting"), Confirmed: n("confirmed"), Crashed: n("crashed"), Others: n("others")}
				s = Plan(now, s, c, Settings{CanaryPercent: 10, Soak: time.Minute})
				if s.Stable != was.Stable && (was.Stage != StageAll || was.Halted != "" || s.Stable != was.Next) {
					t.Fatalf("step %d: stable became %s after %+v", i, s.Stable, was)
				}
			}
			if s.Rev < was.Rev {
				t.Fatal("rev went back")
			}
			bot := skep.BotID(rapid.StringMatching(`[a-z]{3}`).Draw(t, "bot"))
			if got := s.For(bot, 10); s.Halted != "" && got != s.Stable || got != s.Stable && got != s.Next {
				t.Fatalf("%s is given %s in %+v", bot, got, s)
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "seconds")) * time.Second)
		}
	})
}
