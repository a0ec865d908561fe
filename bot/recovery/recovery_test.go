package recovery

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/bot/hook"
)

var ladder = []hook.Rung{
	{Do: "run", Command: []string{"clean"}, Times: 2, WaitSecs: 10},
	{Do: "bot_restart", Times: 1, WaitSecs: 30},
	{Do: "host_reboot", Times: 1, PerSecs: 3600, WaitSecs: 300},
	{Do: "quarantine"},
}

func TestPlan(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(do string, d time.Duration) Step { return Step{Do: do, At: now.Add(-d)} }
	for _, tc := range []struct {
		name    string
		well    bool
		ladder  []hook.Rung
		history []Step
		do      string
		again   time.Duration
	}{
		{name: "well", well: true, ladder: ladder},
		{name: "no ladder"},
		{name: "first", ladder: ladder, do: "run"},
		{name: "the command gets its time", ladder: ladder, history: []Step{ago("run", 4*time.Second)}, again: 6 * time.Second},
		{name: "second try", ladder: ladder, history: []Step{ago("run", 10*time.Second)}, do: "run"},
		{name: "budget used", ladder: ladder, history: []Step{ago("run", time.Hour), ago("run", time.Minute)}, do: "bot_restart"},
		{name: "budget of yesterday", ladder: ladder, history: []Step{ago("run", 25*time.Hour), ago("run", time.Minute)}, do: "run"},
		{name: "after the restart", ladder: ladder, history: []Step{ago("run", time.Hour), ago("run", time.Minute), ago("bot_restart", 20*time.Second)}, again: 10 * time.Second},
		{name: "reboot", ladder: ladder, history: []Step{ago("run", time.Hour), ago("run", time.Minute), ago("bot_restart", 40*time.Second)}, do: "host_reboot"},
		{name: "given up", ladder: ladder, history: []Step{ago("run", time.Hour), ago("run", 30*time.Minute), ago("bot_restart", 20*time.Minute), ago("host_reboot", 10*time.Minute)}},
		{name: "clock set back", ladder: ladder, history: []Step{ago("run", -time.Hour)}, again: 10 * time.Second},
		{name: "quarantine first", ladder: []hook.Rung{{Do: "quarantine"}, ladder[0]}},
		{name: "the same rung twice", ladder: []hook.Rung{ladder[1], ladder[1]}, history: []Step{ago("bot_restart", time.Hour)}, do: "bot_restart"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := Plan(now, !tc.well, tc.ladder, tc.history)
			do := ""
			if a.Rung != nil {
				do = a.Rung.Do
			}
			if diff := cmp.Diff([]any{tc.do, tc.again}, []any{do, a.Again}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestPlanKeepsBudgets lets a bot be ill for days and asks at random moments:
// no rung exceeds its budget in any window, a rung is taken only while those
// below it have none left, and each step has its time.
func TestPlanKeepsBudgets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ladder []hook.Rung
		for range rapid.IntRange(0, 5).Draw(t, "rungs") {
			ladder = append(ladder, hook.Rung{
				Do:    rapid.SampledFrom([]string{"run", "bot_restart", "host_reboot"}).Draw(t, "do"),
				Times: rapid.IntRange(1, 4).Draw(t, "times"), PerSecs: float64(rapid.IntRange(1, 5000).Draw(t, "per")),
				WaitSecs: float64(rapid.IntRange(1, 500).Draw(t, "wait")), Command: []string{"x"},
			})
		}
		key := func(i int) Step {
			n := 0
			for _, r := range ladder[:i] {
				if r.Do == ladder[i].Do {
					n++
				}
			}
			return Step{Do: ladder[i].Do, N: n}
		}
		used := func(history []Step, i int, now time.Time) (n int) {
			for _, s := range history {
				if k := key(i); s.Do == k.Do && s.N == k.N && now.Sub(s.At) < ladder[i].Per() {
					n++
				}
			}
			return n
		}
		now := time.Unix(1e9, 0)
		var history []Step
		for range 200 {
			now = now.Add(time.Duration(rapid.IntRange(1, 300).Draw(t, "pass")) * time.Second)
			ill := rapid.Float64().Draw(t, "ill") < 0.8
			a := Plan(now, ill, ladder, history)
			if a.Rung == nil {
				continue
			}
			if !ill {
				t.Fatal("a healthy bot is treated")
			}
			history = Remember(history, a.Step)
			for i := range ladder {
				if n := used(history, i, now); n > ladder[i].Times {
					t.Fatalf("rung %d taken %d times within %v, budget %d", i, n, ladder[i].Per(), ladder[i].Times)
				}
				if &ladder[i] == a.Rung {
					break
				}
				if used(history, i, now) < ladder[i].Times {
					t.Fatalf("took %+v, though rung %d has budget", a.Rung, i)
				}
			}
		}
	})
}

func TestTired(t *testing.T) {
	var s hook.Settings
	s.Uptime.BotSecs, s.Uptime.HostSecs, s.Uptime.Spread = 1000, 2000, 0.2
	const sec = time.Second
	for _, tc := range []struct {
		name  string
		ages  Ages
		share float64
		want  string
	}{
		{"young", Ages{500 * sec, 500 * sec}, 0, ""},
		{"bot", Ages{1000 * sec, 1500 * sec}, 0, "bot_restart"},
		{"host first", Ages{1000 * sec, 2000 * sec}, 0, "host_reboot"},
		{"early bird", Ages{800 * sec, 900 * sec}, -1, "bot_restart"},
		{"late", Ages{1199 * sec, 1300 * sec}, 1, ""},
		{"unknown", Ages{}, -1, ""},
	} {
		if got := Tired(tc.ages, s, tc.share); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := Tired(Ages{1e6 * sec, 1e6 * sec}, hook.DefaultSettings(), 1); got != "" {
		t.Errorf("without settings: %q", got)
	}
	rapid.Check(t, func(t *rapid.T) { // spread stays within its bounds
		share := rapid.Float64Range(-1, 1).Draw(t, "share")
		age := time.Duration(rapid.IntRange(1, 3000).Draw(t, "age")) * sec
		got := Tired(Ages{Bot: age}, s, share)
		if got == "" && age > 1200*sec || got != "" && age < 800*sec {
			t.Fatalf("age %v, share %v: %q", age, share, got)
		}
	})
}
