package launch

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/host/engine"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func container(slot, id string, state engine.State, image string, age time.Duration) engine.Container {
	return engine.Container{ID: id, Name: slot, State: state, ImageID: image, Labels: map[string]string{LabelSlot: slot}, Created: start.Add(-age), Started: start.Add(-age)}
}

func wanted(slots int) Want {
	return Want{Slots: slots, Image: "new", StopGrace: 30 * time.Second, Deadline: func(Cause) time.Duration { return time.Hour }}
}

func acts(plan []Action) []string {
	var out []string
	for _, a := range plan {
		if a.Act != "" {
			out = append(out, a.Slot+" "+string(a.Act))
		}
	}
	return out
}

func TestPlan(t *testing.T) {
	running := func(slot string) engine.Container {
		return container(slot, "c"+slot, engine.Running, "new", time.Minute)
	}
	for _, c := range []struct {
		name string
		want func(*Want)
		have Have
		acts []string
	}{
		{"an empty host is filled", func(*Want) {}, Have{}, []string{"000 create", "001 create"}},
		{"nothing is made without an image", func(w *Want) { w.Image = "" }, Have{}, nil},
		{"what is right stays", func(*Want) {}, Have{Containers: []engine.Container{running("000"), running("001")}}, nil},
		{"the dead are buried before", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Exited, "new", time.Minute), running("001")}}, []string{"000 bury", "000 create"}},
		{"one that was just created is started", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Created, "new", time.Second), running("001")}}, []string{"000 start"}},
		{"one that never started is buried", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Created, "new", time.Minute), running("001")}}, []string{"000 bury", "000 create"}},
		{"a paused one goes on", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Paused, "new", time.Minute), running("001")}}, []string{"000 unpause"}},
		{"surplus is drained at once", func(w *Want) { w.Slots = 0 }, Have{Containers: []engine.Container{running("000"), running("001")}}, []string{"000 drain", "001 drain"}},
		{"a drained host gets nothing", func(w *Want) { w.Host = CauseHost }, Have{Containers: []engine.Container{running("000")}}, []string{"000 drain"}},
		{"a roll-out goes one by one", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Running, "old", time.Minute), container("001", "y", engine.Running, "old", time.Hour)}}, []string{"001 drain"}},
		{"and waits for an empty slot", func(*Want) {}, Have{Containers: []engine.Container{container("000", "x", engine.Running, "old", time.Minute)}}, []string{"001 create"}},
		{"a crash loop waits", func(*Want) {}, Have{Containers: []engine.Container{running("001")}, NotBefore: map[string]time.Time{"000": start.Add(time.Second)}}, nil},
		{"a drain past its deadline is a stop", func(w *Want) { w.Stamped = map[string]bool{"000": true} }, Have{Containers: []engine.Container{running("000"), running("001")}, Drains: map[string]Drain{
			"000": {Container: "c000", Cause: CauseStamp, Asked: start.Add(-time.Hour), Deadline: start, Signalled: start.Add(-time.Hour)},
		}}, []string{"000 stop"}},
		{"a stop past its grace is a kill", func(w *Want) { w.Stamped = map[string]bool{"000": true} }, Have{Containers: []engine.Container{running("000"), running("001")}, Drains: map[string]Drain{
			"000": {Container: "c000", Cause: CauseStamp, Asked: start.Add(-2 * time.Hour), Deadline: start.Add(-time.Hour), Stopped: start.Add(-30 * time.Second)},
		}}, []string{"000 kill"}},
		{"what no kill ends is removed", func(w *Want) { w.Stamped = map[string]bool{"000": true} }, Have{Containers: []engine.Container{running("000"), running("001")}, Drains: map[string]Drain{
			"000": {Container: "c000", Cause: CauseStamp, Asked: start.Add(-2 * time.Hour), Deadline: start.Add(-time.Hour), Stopped: start.Add(-time.Minute), Late: true},
		}}, []string{"000 remove"}},
		{"but not unless it was killed", func(w *Want) { w.Stamped = map[string]bool{"000": true} }, Have{Containers: []engine.Container{running("000"), running("001")}, Drains: map[string]Drain{
			"000": {Container: "c000", Cause: CauseStamp, Asked: start.Add(-2 * time.Hour), Deadline: start.Add(-time.Hour), Stopped: start.Add(-time.Minute)},
		}}, []string{"000 kill"}},
		{"a drain of another container is forgotten", func(*Want) {}, Have{Containers: []engine.Container{running("000"), running("001")}, Drains: map[string]Drain{"000": {Container: "gone"}}}, []string{"000 forget"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := wanted(2)
			c.want(&w)
			if d := cmp.Diff(c.acts, acts(Plan(start, w, c.have))); d != "" {
				t.Errorf("plan (-want +got):\n%s", d)
			}
		})
	}
}

// Whatever is there and whatever is wanted: a bot is never stopped before its
// deadline, SIGTERM never comes twice within 3 s, and a roll-out never leaves
// more slots without a bot than it may.
func TestPlanKeepsItsWord(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := wanted(rapid.IntRange(1, 10).Draw(rt, "slots"))
		w.MaxUnavailable = rapid.IntRange(1, 3).Draw(rt, "max unavailable")
		now := start
		deadlines := map[string]time.Time{}
		signalled := map[string]time.Time{}
		have := Have{Drains: map[string]Drain{}}
		for i := range w.Slots {
			have.Containers = append(have.Containers, container(SlotName(i), fmt.Sprint(i), engine.Running, rapid.SampledFrom([]string{"old", "new"}).Draw(rt, "image"), time.Minute))
		}
		for range rapid.IntRange(1, 30).Draw(rt, "rounds") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1200).Draw(rt, "later")) * time.Second)
			draining := map[string]bool{}
			for _, a := range Plan(now, w, have) {
				switch a.Act {
				case ActDrain:
					if last := signalled[a.Container.ID]; !last.IsZero() && now.Sub(last) < 3*time.Second {
						rt.Fatalf("%s is signalled again after %v", a.Slot, now.Sub(last))
					}
					if _, ok := deadlines[a.Container.ID]; !ok {
						deadlines[a.Container.ID] = now.Add(time.Hour)
					}
					a.Drain.Signalled = now
					signalled[a.Container.ID] = now
					have.Drains[a.Slot] = a.Drain
				case ActStop, ActKill, ActRemove:
					if end, ok := deadlines[a.Container.ID]; !ok || now.Before(end) {
						rt.Fatalf("%s is stopped at %v, its deadline is %v", a.Slot, now, end)
					}
					have.Drains[a.Slot] = a.Drain
				default:
				}
			}
			for slot := range have.Drains {
				draining[slot] = true
			}
			if len(draining) > w.MaxUnavailable {
				rt.Fatalf("%d of %d drain, at most %d may", len(draining), w.Slots, w.MaxUnavailable)
			}
		}
	})
}

// spec host.md §1.6.
func TestHostLimit(t *testing.T) {
	if got := HostLimit("some_hostname", 1200*time.Minute); got != 1313*time.Minute {
		t.Errorf("limit of some_hostname is %v, want 1313 min", got)
	}
}

func TestPause(t *testing.T) {
	short := Death{Started: start, Ended: start.Add(time.Second), Image: "new"}
	long := Death{Started: start, Ended: start.Add(time.Minute), Image: "new"}
	for _, c := range []struct {
		deaths []Death
		want   time.Duration
	}{
		{nil, 0},
		{[]Death{short}, 0},
		{[]Death{short, short}, time.Second},
		{[]Death{short, short, short}, 2 * time.Second},
		{[]Death{short, short, long}, 0},
		{make20(short), 5 * time.Minute},
		{[]Death{{Image: "old"}, {Image: "old"}, {Image: "old"}}, 0},
	} {
		if got := Pause(c.deaths, "new"); got != c.want {
			t.Errorf("pause after %d deaths is %v, want %v", len(c.deaths), got, c.want)
		}
	}
}

func make20(d Death) (all []Death) {
	for range 20 {
		all = append(all, d)
	}
	return all
}

// promise D6.
func TestRung(t *testing.T) {
	for _, c := range []struct {
		tried treatment
		want  string
	}{
		{treatment{}, "restart"},
		{treatment{Restart: start.Add(-time.Minute)}, "reboot"},
		{treatment{Restart: start.Add(-2 * time.Minute), Reboot: start.Add(-time.Minute)}, ""},
		{treatment{Restart: start.Add(-31 * time.Minute), Reboot: start.Add(-time.Minute)}, "restart"},
	} {
		if got := c.tried.rung(start); got != c.want {
			t.Errorf("after %+v: %q, want %q", c.tried, got, c.want)
		}
	}
}

// Of containers that are over their age at most a fifth drain at a time, one at
// least. promise D10.
func TestAFifthDrainsForAge(t *testing.T) {
	for slots, want := range map[int]int{1: 1, 3: 1, 9: 1, 10: 2, 30: 6} {
		w := wanted(slots)
		w.MaxAge, w.MaxUnavailable = 4*time.Hour, 1
		have := Have{Drains: map[string]Drain{}}
		for i := range slots {
			have.Containers = append(have.Containers, container(SlotName(i), fmt.Sprint(i), engine.Running, "new", 5*time.Hour))
		}
		for range 3 { // those that drain count in the next plans
			for _, a := range Plan(start, w, have) {
				if a.Act == ActDrain {
					a.Drain.Signalled = start
					have.Drains[a.Slot] = a.Drain
				}
			}
			if len(have.Drains) != want {
				t.Errorf("%d of %d drain, want %d", len(have.Drains), slots, want)
			}
		}
	}
}
