package health

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
)

var t0 = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestBreakerHoldsTheManyNotTheFew(t *testing.T) {
	rule := &Rule{Percent: 20, Window: 10 * time.Minute, MinBots: 5}
	for _, tc := range []struct {
		name             string
		rule             *Rule
		size, fell, held int
		want             bool
	}{
		{"the first of ten", rule, 10, 0, 0, false},
		{"the last of the share", rule, 10, 1, 0, false},
		{"one more", rule, 10, 2, 0, true},
		{"a small pool", rule, 4, 4, 0, false},
		{"no rule", nil, 10, 9, 0, false},
		{"while others are held", rule, 10, 0, 1, true},
		{"a share of less than a bot", &Rule{Percent: 5, Window: time.Minute, MinBots: 1}, 10, 0, 0, true},
		{"all may", &Rule{Percent: 100, Window: time.Minute, MinBots: 1}, 3, 2, 0, false},
	} {
		if got := tc.rule.Holds(tc.size, tc.fell, tc.held); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestHeldPools(t *testing.T) {
	got := HeldPools([]Held{{"b", "p", "later", t0.Add(time.Second)}, {"c", "p", "first", t0}, {"a", "q", "x", t0}})
	want := map[string]HeldPool{"p": {2, "c", "first", t0}, "q": {1, "a", "x", t0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
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
