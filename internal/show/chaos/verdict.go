package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
	"github.com/skepdev/skep/internal/show/chaos/payload"
)

// evidence is everything that was seen of a run from outside.
type evidence struct {
	Tasks   int               // how many were to be submitted
	Acked   []string          // task ids, from the client's own file
	Refused []string          // what a server said to NewTask that was not worth a retry
	Listed  []string          // task ids that the server lists
	Results map[string]result // by task id, as the server has them at the end
	Outputs map[string][]byte // by task id, of those that ran
	Streams map[string]string // by task id: what was wrong with output read while the task ran; "" = nothing
	Lines   []line
	BadLine []string
	Kills   []kill
	Exits   []exit
	Left    []string // processes, cgroups, work directories that are still there
	Plan    []strike
	Soon    time.Duration // in which a bot's processes must be gone
	Phases  []phase       // that must be hit
}

// result is what the server says of a task.
type result struct {
	State     pb.TaskState
	Bot       string
	ExitCode  int64
	Started   time.Time // zero = never
	Completed time.Time // zero = not yet
}

// kill is one kill -9.
type kill struct {
	Victim  victim
	Phase   phase // in which it fell for sure; "" = it moved meanwhile
	Bot     string
	Run     string // what the bot had in hand
	PID     int
	At      time.Time
	Caught  map[phase]int // of a server or a database: bots in each phase
	Pending int           // NewTask calls that failed and had to be repeated
	Orphans string        // of skep up: what became of its bots; "" = they live on
	Gone    time.Duration // of a bot: until nothing below it was left; negative = something stayed
}

// exit is a process that ended although nobody killed it.
type exit struct {
	Name string
	Code int
	At   time.Time
}

// victim is what a kill hits.
type victim string

const (
	victimServer   victim = "server"
	victimDatabase victim = "postgres"
	victimBot      victim = "bot"
	victimRunner   victim = "task_runner"
	victimIsolated victim = "run_isolated"
	victimUp       victim = "skep up"
)

// isHelper reports whether it is a process that a bot starts for a task.
func (v victim) isHelper() bool { return v == victimRunner || v == victimIsolated }

// onBot reports whether the kill may cost a bot its task.
func (v victim) onBot() bool {
	return v == victimBot || v.isHelper()
}

// violation is one thing that must not be.
type violation struct {
	Rule string // one of a few texts
	What string // a task id or whatever it is about
	Text string // details, may be empty
}

// The rules.
const (
	ruleSubmit    = "every task is acknowledged in the end"
	ruleOnce      = "a repeated NewTask makes one task"
	ruleKnown     = "an acknowledged task is known"
	ruleFinal     = "an acknowledged task ends"
	ruleState     = "a task ends COMPLETED, or BOT_DIED with its bot"
	ruleOutage    = "only the death of its bot costs a task"
	ruleExit      = "a completed task exits 0"
	ruleTwice     = "no task runs twice"
	ruleLines     = "a completed task said start and end, once"
	ruleOutput    = "no byte of a completed task's output is lost or repeated"
	rulePrefix    = "the output of a lost task is a part of it"
	ruleStream    = "output read while the task runs is the task's"
	ruleForeign   = "every line is of an acknowledged task"
	ruleLeft      = "nothing is left behind"
	ruleTree      = "a bot's processes are gone soon after its death"
	ruleOrphans   = "bots outlive skep up"
	ruleEnds      = "nothing ends that was not killed"
	rulePlan      = "the kills fell as planned"
	rulePhases    = "each phase was hit"
	diedLingering = 15 * time.Second // from the kill until the bot's next handshake
)

// runOf is the run id of a task id.
func runOf(task string) string {
	if task == "" {
		return ""
	}
	return task[:len(task)-1] + "1"
}

// taskOf is the task id of a run id.
func taskOf(run string) string {
	if run == "" {
		return ""
	}
	return run[:len(run)-1] + "0"
}

// judge finds everything that is wrong, in the order of the rules.
func judge(e *evidence) []violation {
	var out []violation
	add := func(rule, what, format string, args ...any) {
		out = append(out, violation{rule, what, fmt.Sprintf(format, args...)})
	}
	acked := map[string]bool{}
	for _, id := range e.Acked {
		if acked[id] {
			add(ruleOnce, id, "two calls got this id")
		}
		acked[id] = true
	}
	for _, text := range e.Refused {
		add(ruleSubmit, "NewTask", "%s", text)
	}
	if len(e.Acked) != e.Tasks {
		add(ruleSubmit, "client", "%d of %d", len(e.Acked), e.Tasks)
	}
	for _, id := range e.Listed {
		if !acked[id] {
			add(ruleOnce, id, "the server lists it, no call returned it")
		}
	}
	starts, ends := map[string]int{}, map[string]int{}
	for _, l := range e.Lines {
		id := taskOf(l.Run)
		switch {
		case !acked[id] || l.Run != runOf(id):
			add(ruleForeign, l.Run, "%s", l.Word)
		case l.Word == wordStart:
			starts[id]++
		default:
			ends[id]++
		}
	}
	for _, text := range e.BadLine {
		add(ruleForeign, "line", "%.80q", text)
	}
	unexplained := unexplainedDeaths(e)
	for _, id := range slices.Sorted(slices.Values(e.Acked)) {
		r, known := e.Results[id]
		switch {
		case !known:
			add(ruleKnown, id, "")
			continue
		case r.State == pb.TaskState_PENDING || r.State == pb.TaskState_RUNNING:
			add(ruleFinal, id, "%s, bot %q", r.State, r.Bot)
		case r.State == pb.TaskState_BOT_DIED:
			if unexplained[id] {
				add(ruleOutage, id, "on %s, %s to %s; %d start, %d end", r.Bot, clock(r.Started), clock(r.Completed), starts[id], ends[id])
			}
		case r.State != pb.TaskState_COMPLETED:
			add(ruleState, id, "%s, bot %q", r.State, r.Bot)
		}
		if starts[id] > 1 || ends[id] > 1 {
			add(ruleTwice, id, "%s: %d start, %d end", r.State, starts[id], ends[id])
		}
		if r.State == pb.TaskState_COMPLETED {
			if r.ExitCode != 0 {
				add(ruleExit, id, "%d", r.ExitCode)
			}
			if starts[id] < 1 || ends[id] < 1 {
				add(ruleLines, id, "%d start, %d end", starts[id], ends[id])
			}
			if d := payload.Diff(runOf(id), e.Outputs[id], false); d != "" {
				add(ruleOutput, id, "%s", d)
			}
		} else if d := payload.Diff(runOf(id), e.Outputs[id], true); d != "" {
			add(rulePrefix, id, "%s: %s", r.State, d)
		}
		if d := e.Streams[id]; d != "" {
			add(ruleStream, id, "%s: %s", r.State, d)
		}
	}
	for _, k := range e.Kills {
		if k.Victim == victimBot && (k.Gone < 0 || k.Gone > e.Soon) {
			add(ruleTree, k.Bot, "killed at %s with %s in hand: %s, want %v at most", clock(k.At), cmp.Or(k.Run, "nothing"), gone(k.Gone), e.Soon)
		}
		if k.Orphans != "" {
			add(ruleOrphans, string(k.Victim), "killed at %s: %s", clock(k.At), k.Orphans)
		}
	}
	for _, x := range e.Exits {
		add(ruleEnds, x.Name, "code %d at %s", x.Code, clock(x.At))
	}
	for _, text := range e.Left {
		add(ruleLeft, text, "")
	}
	return append(out, judgePlan(e)...)
}

func gone(d time.Duration) string {
	if d < 0 {
		return "some stayed"
	}
	return d.Round(time.Millisecond).String()
}

// judgePlan checks that everything was hit that was to be hit.
func judgePlan(e *evidence) []violation {
	var out []violation
	have := map[strike]int{}
	hit := map[phase]bool{}
	for _, k := range e.Kills {
		have[strike{k.Victim, k.Phase}]++
		hit[k.Phase] = true
	}
	for _, s := range e.Plan {
		if have[s]--; have[s] < 0 {
			out = append(out, violation{rulePlan, string(s.Victim), fmt.Sprintf("not killed in phase %s as often as planned", s.Phase)})
		}
	}
	for _, p := range e.Phases {
		if !hit[p] {
			out = append(out, violation{rulePhases, string(p), ""})
		}
	}
	return out
}

// unexplainedDeaths returns the tasks that are BOT_DIED without a kill that
// can be the reason. One kill costs one task at most: a bot has one at a time.
func unexplainedDeaths(e *evidence) map[string]bool {
	var died []string
	for _, id := range e.Acked {
		if e.Results[id].State == pb.TaskState_BOT_DIED {
			died = append(died, id)
		}
	}
	slices.SortFunc(died, func(a, b string) int { return e.Results[a].Completed.Compare(e.Results[b].Completed) })
	kills := slices.DeleteFunc(slices.Clone(e.Kills), func(k kill) bool { return !k.Victim.onBot() })
	slices.SortFunc(kills, func(a, b kill) int { return a.At.Compare(b.At) })
	used := make([]bool, len(kills))
	out := map[string]bool{}
	for _, id := range died {
		r := e.Results[id]
		i := slices.IndexFunc(kills, func(k kill) bool { return k.Bot == r.Bot && k.Run == runOf(id) && !r.Completed.Before(k.At) })
		if i < 0 || used[i] { // it was claimed for a bot that was about to die, or had just died
			i = -1
			for j, k := range kills {
				if !used[j] && k.Bot == r.Bot && !r.Completed.Before(k.At) && r.Started.Before(k.At.Add(diedLingering)) && r.Completed.Before(k.At.Add(2*diedLingering)) {
					i = j
					break
				}
			}
		}
		if i < 0 {
			out[id] = true
			continue
		}
		used[i] = true
	}
	return out
}

func clock(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("15:04:05.000")
}
