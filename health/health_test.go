package health

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

var t0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestBreakerHoldsTheManyNotTheFew(t *testing.T) {
	rule := &Rule{Percent: 20, Window: 10 * time.Minute, MinBots: 5}
	for _, tc := range []struct {
		name  string
		rule  *Rule
		size  int
		every time.Duration // between two bots that fall ill
		ill   int
		want  int // believed
	}{
		{"all of ten at once", rule, 10, 0, 10, 2},
		{"all of a small pool", rule, 4, 0, 4, 4},
		{"no rule", nil, 10, 0, 10, 10},
		{"one after the other, slowly", rule, 10, 6 * time.Minute, 4, 4},
		{"faster than the window", rule, 10, 4 * time.Minute, 4, 2},
		{"as many as may", &Rule{Percent: 100, Window: time.Minute, MinBots: 1}, 3, 0, 3, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, got, firsts := NewBreaker(), 0, 0
			for i := range tc.ill {
				held, first := b.Judge(t0.Add(time.Duration(i)*tc.every), skep.BotID(fmt.Sprint("b", i)), "p", tc.rule, tc.size, "ill")
				if !held {
					got++
				}
				if first {
					firsts++
				}
			}
			if got != tc.want {
				t.Errorf("%d bots are quarantined, want %d", got, tc.want)
			}
			if n := b.HeldBots()["p"].Count; n != tc.ill-tc.want || (firsts == 1) != (n > 0) {
				t.Errorf("%d held, %d first ones", n, firsts)
			}
		})
	}
}

func TestBreakerLetsGo(t *testing.T) {
	rule := &Rule{Percent: 50, Window: time.Minute, MinBots: 1}
	b := NewBreaker()
	judge := func(at time.Duration, bot skep.BotID) bool {
		held, _ := b.Judge(t0.Add(at), bot, "p", rule, 2, "ill")
		return held
	}
	if judge(0, "a") || !judge(0, "b") {
		t.Fatal("want a believed and b held")
	}
	if judge(time.Hour, "a") || !judge(time.Hour, "b") {
		t.Error("who is ill stays ill, who is held stays held")
	}
	b.Well("b")
	if len(b.HeldBots()) != 0 || judge(2*time.Hour, "b") {
		t.Error("a bot that was well is counted anew")
	}
	b.Sync(nil, t0)
	if b.Busy() {
		t.Error("bots that are no more are remembered")
	}
	b.Sync([]Bot{{ID: "c", Pools: []string{"p"}, Ill: true}}, t0)
	if !judge(time.Second, "d") {
		t.Error("what other servers let fall ill does not count")
	}
}

func TestMissing(t *testing.T) {
	want := map[skep.BotID]Wanted{"a": {"p", time.Minute}, "b": {"p", time.Minute}, "c": {"p", time.Minute}}
	since := map[skep.BotID]time.Time{"a": t0, "b": t0, "c": t0}
	bots := map[skep.BotID]*Bot{"b": {ID: "b", Seen: t0}, "c": {ID: "c", Seen: t0.Add(90 * time.Second)}}
	kinds := func(at time.Duration, up time.Time) (out []string) {
		as := Missing(t0.Add(at), up, want, since, bots)
		Sort(as)
		for _, a := range as {
			out = append(out, a.Kind+" "+string(a.Bot))
		}
		return out
	}
	if got := kinds(time.Minute, t0); got != nil {
		t.Errorf("within the grace: %v", got)
	}
	if diff := cmp.Diff([]string{"bot_never_appeared a", "bot_vanished b"}, kinds(2*time.Minute, t0)); diff != "" {
		t.Error(diff)
	}
	if got := kinds(2*time.Minute, t0.Add(90*time.Second)); got != nil {
		t.Errorf("silence while no server was up counts: %v", got)
	}
}
