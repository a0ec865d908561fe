package chaos

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	pb "github.com/skepdev/skep/api/swarmingpb"
)

// report is what one run found.
type report struct {
	engine     string
	e          *evidence
	before     int // processes of the run before it began
	took       time.Duration
	retried    int64
	streamed   int64
	violations []violation
}

func newReport(engine string, e *evidence, fl *fleet, before int, took time.Duration) *report {
	return &report{
		engine: engine, e: e, before: before, took: took,
		retried: fl.tasks.failed.Load(), streamed: fl.readers.bytes.Load(), violations: judge(e),
	}
}

// print writes the figures and then everything that is wrong.
func (r *report) print(out io.Writer) {
	e := r.e
	states := map[pb.TaskState]int{}
	compared := 0
	for _, id := range e.Acked {
		st := e.Results[id].State
		states[st]++
		if st == pb.TaskState_COMPLETED {
			compared += len(e.Outputs[id])
		}
	}
	starts, ends := 0, 0
	for _, l := range e.Lines {
		if l.Word == wordStart {
			starts++
		} else {
			ends++
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "\n%s, %d tasks:\n", r.engine, e.Tasks)
	row("took", "%v", r.took.Round(100*time.Millisecond))
	row("acknowledged", "%d, after %d repeated calls; the server lists %d", len(e.Acked), r.retried, len(e.Listed))
	for _, st := range []pb.TaskState{pb.TaskState_COMPLETED, pb.TaskState_BOT_DIED} {
		row(st.String(), "%d", states[st])
		delete(states, st)
	}
	for st, n := range states {
		row(st.String(), "%d", n)
	}
	row("lines", "%d start, %d end", starts, ends)
	row("output compared", "%d bytes; %d bytes of %d tasks read while they ran", compared, r.streamed, len(e.Streams))
	row("processes", "%d before, %d things left after", r.before, len(e.Left))
	if worst, n := slowestTree(e.Kills); n > 0 {
		row("a dead bot's", "gone within %v at worst of %d", worst.Round(time.Millisecond), n)
	}
	_ = w.Flush()
	r.table(out)
	if len(r.violations) == 0 {
		fmt.Fprintf(out, "  %s: OK, nothing found wrong\n", r.engine)
		return
	}
	fmt.Fprintf(out, "  %s: %d VIOLATIONS\n", r.engine, len(r.violations))
	r.accuse(out)
}

func slowestTree(kills []kill) (worst time.Duration, n int) {
	for _, k := range kills {
		if k.Victim == victimBot && k.Gone >= 0 {
			worst = max(worst, k.Gone)
			n++
		}
	}
	return worst, n
}

// table counts kills by victim and phase.
func (r *report) table(out io.Writer) {
	columns := append(slices.Clone(phases), phaseNone)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, count func(phase) int) {
		total := 0
		fmt.Fprintf(w, "  %s\t", name)
		for _, p := range columns {
			total += count(p)
			fmt.Fprintf(w, "%d\t", count(p))
		}
		fmt.Fprintf(w, "%d\t\n", total)
	}
	fmt.Fprintf(w, "  kill -9 of\t%s\tbetween\tall\t\n", joined(phases))
	all := map[phase]int{}
	for _, v := range []victim{victimServer, victimUp, victimDatabase, victimBot, victimRunner, victimIsolated} {
		n := map[phase]int{}
		for _, k := range r.e.Kills {
			if k.Victim == v {
				n[k.Phase]++
				all[k.Phase]++
			}
		}
		if len(n) > 0 {
			line(string(v), func(p phase) int { return n[p] })
		}
	}
	line("all", func(p phase) int { return all[p] })
	caught := map[phase]int{}
	for _, k := range r.e.Kills {
		caught[phaseSubmit] += k.Pending
		for p, n := range k.Caught {
			caught[p] += n
		}
	}
	line("caught by outages", func(p phase) int { return caught[p] })
	_ = w.Flush()
}

func joined(ps []phase) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = string(p)
	}
	return strings.Join(out, "\t")
}

// shown bounds the evidence printed for one rule.
const shown = 10

func (r *report) accuse(out io.Writer) {
	var rules []string
	by := map[string][]violation{}
	for _, v := range r.violations {
		if by[v.Rule] == nil {
			rules = append(rules, v.Rule)
		}
		by[v.Rule] = append(by[v.Rule], v)
	}
	for _, rule := range rules {
		fmt.Fprintf(out, "  NOT TRUE: %s (%d)\n", rule, len(by[rule]))
		for i, v := range by[rule] {
			if i == shown {
				fmt.Fprintf(out, "    … and %d more\n", len(by[rule])-shown)
				break
			}
			fmt.Fprintf(out, "    %s  %s\n", v.What, v.Text)
		}
	}
}
