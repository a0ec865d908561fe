package chaos

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/show/chaos/payload"
)

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(secs float64) time.Time { return epoch.Add(time.Duration(secs * float64(time.Second))) }

// sound is a run in which nothing is wrong: a0 and c0 completed, b0 died with
// its bot, whose kill at 10 s fell into its output, and d0 was claimed for bot
// y just after that had been killed at 20 s.
func sound() *evidence {
	e := &evidence{
		Tasks: 4, Acked: []string{"c0", "a0", "b0", "d0"}, Listed: []string{"d0", "c0", "b0", "a0"},
		Results: map[string]result{
			"a0": {pb.TaskState_COMPLETED, "x", 0, at(1), at(2)},
			"b0": {pb.TaskState_BOT_DIED, "x", -1, at(9), at(11)},
			"c0": {pb.TaskState_COMPLETED, "x", 0, at(12), at(13)},
			"d0": {pb.TaskState_BOT_DIED, "y", -1, at(20.1), at(21)},
		},
		Outputs: map[string][]byte{"a0": payload.Of("a1"), "b0": payload.Of("b1")[:1000], "c0": payload.Of("c1")},
		Streams: map[string]string{"a0": ""},
		Lines: []line{
			{wordStart, "a1", 1, at(1)},
			{wordEnd, "a1", 1, at(2)},
			{wordStart, "b1", 2, at(9)},
			{wordStart, "c1", 3, at(12)},
			{wordEnd, "c1", 3, at(13)},
		},
		Kills: []kill{
			{Victim: victimServer, Phase: phaseSubmit, At: at(0.5), Pending: 3},
			{Victim: victimBot, Phase: phaseOutput, Bot: "x", Run: "b1", At: at(10), Gone: 30 * time.Millisecond},
			{Victim: victimBot, Phase: phaseClaim, Bot: "y", At: at(20), Gone: time.Millisecond},
		},
		Plan:   []strike{{victimServer, phaseSubmit}, {victimBot, phaseClaim}, {victimBot, phaseOutput}},
		Phases: []phase{phaseSubmit, phaseClaim, phaseOutput},
		Soon:   time.Second,
	}
	return e
}

// set changes the result of one task.
func (e *evidence) set(id string, change func(*result)) {
	r := e.Results[id]
	change(&r)
	e.Results[id] = r
}

func TestEveryViolationIsFound(t *testing.T) {
	type found struct{ Rule, What string }
	for _, tc := range []struct {
		name  string
		spoil func(*evidence)
		want  []found
	}{
		{"nothing is wrong", func(*evidence) {}, nil},
		{"a task was never acknowledged", func(e *evidence) { e.Tasks = 5 }, []found{{ruleSubmit, "client"}}},
		{"a server refused a task", func(e *evidence) { e.Refused = []string{"no"} }, []found{{ruleSubmit, "NewTask"}}},
		{"two calls got one task", func(e *evidence) { e.Acked = append(e.Acked, "a0"); e.Tasks = 5 }, []found{{ruleOnce, "a0"}, {"", ""}}},
		{"a repeated call made a second task", func(e *evidence) { e.Listed = append(e.Listed, "f0") }, []found{{ruleOnce, "f0"}}},
		{"an acknowledged task is lost", func(e *evidence) { delete(e.Results, "a0") }, []found{{ruleKnown, "a0"}}},
		{"a task waits for ever", func(e *evidence) {
			e.set("d0", func(r *result) { *r = result{State: pb.TaskState_PENDING} })
		}, []found{{ruleFinal, "d0"}}},
		{"a task runs for ever", func(e *evidence) {
			e.set("b0", func(r *result) { r.State, r.Completed = pb.TaskState_RUNNING, time.Time{} })
		}, []found{{ruleFinal, "b0"}}},
		{"a task expired", func(e *evidence) { e.set("d0", func(r *result) { r.State = pb.TaskState_EXPIRED }) }, []found{{ruleState, "d0"}}},
		{"a task was killed", func(e *evidence) { e.set("b0", func(r *result) { r.State = pb.TaskState_KILLED }) }, []found{{ruleState, "b0"}}},
		{"a task died with no bot", func(e *evidence) {
			e.set("c0", func(r *result) { r.State = pb.TaskState_BOT_DIED })
		}, []found{{ruleOutage, "c0"}}},
		{"a task died with another bot", func(e *evidence) { e.set("b0", func(r *result) { r.Bot = "z" }) }, []found{{ruleOutage, "b0"}}},
		{"a task died before the kill", func(e *evidence) {
			e.set("b0", func(r *result) { r.Completed = at(9.9) })
		}, []found{{ruleOutage, "b0"}}},
		{"a task died long after the kill", func(e *evidence) {
			e.set("d0", func(r *result) { r.Started, r.Completed = at(50), at(51) })
		}, []found{{ruleOutage, "d0"}}},
		{
			"two tasks died of one kill", func(e *evidence) {
				e.set("d0", func(r *result) { r.Bot = "x"; r.Started, r.Completed = at(10.5), at(11.5) })
			},
			[]found{{ruleOutage, "d0"}},
		},
		{
			"a task died of the server's kill", func(e *evidence) { e.Kills[1].Victim, e.Plan[2].Victim = victimServer, victimServer },
			[]found{{ruleOutage, "b0"}},
		},
		{"a task ended with another exit code", func(e *evidence) { e.set("a0", func(r *result) { r.ExitCode = 3 }) }, []found{{ruleExit, "a0"}}},
		{"a task ran twice to completion", func(e *evidence) {
			e.Lines = append(e.Lines, line{wordStart, "a1", 9, at(3)}, line{wordEnd, "a1", 9, at(4)})
		}, []found{{ruleTwice, "a0"}}},
		{"a lost task was started again", func(e *evidence) {
			e.Lines = append(e.Lines, line{wordStart, "b1", 9, at(12)})
		}, []found{{ruleTwice, "b0"}}},
		{"a completed task did not run", func(e *evidence) { e.Lines = e.Lines[2:] }, []found{{ruleLines, "a0"}}},
		{"a completed task did not end", func(e *evidence) { e.Lines = e.Lines[:4] }, []found{{ruleLines, "c0"}}},
		{"the end of an output is lost", func(e *evidence) { e.Outputs["a0"] = e.Outputs["a0"][:payload.Size-1] }, []found{{ruleOutput, "a0"}}},
		{"an output is lost", func(e *evidence) { delete(e.Outputs, "a0") }, []found{{ruleOutput, "a0"}}},
		{"a part of an output came twice", func(e *evidence) {
			e.Outputs["c0"] = slices.Concat(e.Outputs["c0"][:100], e.Outputs["c0"])
		}, []found{{ruleOutput, "c0"}}},
		{"two outputs are swapped", func(e *evidence) {
			e.Outputs["a0"], e.Outputs["c0"] = e.Outputs["c0"], e.Outputs["a0"]
		}, []found{{ruleOutput, "a0"}, {ruleOutput, "c0"}}},
		{"a lost task's output has a gap", func(e *evidence) { clear(e.Outputs["b0"][100:200]) }, []found{{rulePrefix, "b0"}}},
		{"a reader saw something else", func(e *evidence) { e.Streams["a0"] = "differs" }, []found{{ruleStream, "a0"}}},
		{"a line of a task that nobody knows", func(e *evidence) {
			e.Lines = append(e.Lines, line{wordStart, "f1", 9, at(3)})
		}, []found{{ruleForeign, "f1"}}},
		{"a line with the wrong id", func(e *evidence) {
			e.Lines = append(e.Lines, line{wordStart, "a2", 9, at(3)})
		}, []found{{ruleForeign, "a2"}}},
		{"a torn line", func(e *evidence) { e.BadLine = []string{"sta"} }, []found{{ruleForeign, "line"}}},
		{"a bot's processes lived on", func(e *evidence) { e.Kills[1].Gone = -1 }, []found{{ruleTree, "x"}}},
		{"a bot's processes lived too long", func(e *evidence) { e.Kills[1].Gone = 1001 * time.Millisecond }, []found{{ruleTree, "x"}}},
		{"bots died with skep up", func(e *evidence) {
			e.Kills = append(e.Kills, kill{Victim: victimUp, Orphans: "gone"})
		}, []found{{ruleOrphans, "skep up"}}},
		{"a process crashed", func(e *evidence) { e.Exits = []exit{{"server", 2, at(1)}} }, []found{{ruleEnds, "server"}}},
		{"a process is left", func(e *evidence) { e.Left = []string{"process 1 x"} }, []found{{ruleLeft, "process 1 x"}}},
		{"a kill missed its phase", func(e *evidence) { e.Kills[2].Phase = phaseNone }, []found{{rulePlan, "bot"}, {rulePhases, "claim"}}},
		{"a kill is missing, its phase was hit by another", func(e *evidence) {
			e.Plan = append(e.Plan, strike{victimServer, phaseOutput})
		}, []found{{rulePlan, "server"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := sound()
			tc.spoil(e)
			var got []found
			for _, v := range judge(e) {
				got = append(got, found{v.Rule, v.What})
			}
			if tc.name == "two calls got one task" { // what follows from it does not matter
				got, tc.want = got[:1], tc.want[:1]
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestKillsExplainDeaths(t *testing.T) {
	e := sound()
	// A task that the kill caught with its end said is explained although it
	// began long before, and a helper's death explains as well.
	e.set("b0", func(r *result) { r.Started = at(-100) })
	e.Kills[1].Victim, e.Plan[2].Victim = victimIsolated, victimIsolated
	if got := judge(e); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestIds(t *testing.T) {
	if got := runOf("5a00"); got != "5a01" || taskOf(got) != "5a00" || runOf("") != "" || taskOf("") != "" {
		t.Error(got)
	}
}
