package machine

import (
	"context"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/window"
	"github.com/skepdev/skep/store"
)

// demandEvery is the longest time between looks at the queue for pools that
// follow it, and demandCool how long less must be enough before machines go.
const (
	demandEvery = 2 * time.Second
	demandCool  = 2 * time.Minute
)

// lookAgain is the time between looks at the queue for a pool.
func lookAgain(d *provider.Demand) time.Duration {
	return min(demandEvery, max(d.TargetWait/4, 100*time.Millisecond))
}

// patience is how long a task may wait before a machine is asked for because of
// it, so that it comes in time if it takes as long as others did, ready; 0 = no
// one knows.
func patience(d *provider.Demand, ready time.Duration) time.Duration {
	if ready == 0 {
		return d.TargetWait / 2
	}
	return max(d.TargetWait-ready, 0)
}

// tally is how many machines of a pool there are for its queue.
type tally struct {
	there int // all but those that are stopped
	stay  int // not to go for the number's sake
	free  int // of those: they can take a task, now or when they have come
	idle  int // of those: now
	waste int // of those that stay: dead, ill or late, and without a task
}

// count looks at machines. One whose bot has not come for longer than silence
// is not waited for.
func count(vms []store.VM, now time.Time, silence time.Duration) (n tally) {
	for i := range vms {
		v := &vms[i]
		if v.Park.IsZero() || v.Stopped.IsZero() {
			n.there++
		}
		if v.Drained || !v.Park.IsZero() {
			continue
		}
		n.stay++
		bot := botOf(v)
		late := !v.Created.IsZero() && v.Connected.IsZero() && v.Stopping.IsZero() && now.Sub(v.Up()) > silence
		switch {
		case bot.Task != 0 || ending(v):
			continue
		case broken(v) || late:
			n.waste++
			continue
		}
		n.free++
		if bot.Known {
			n.idle++
		}
	}
	return n
}

// wanted is how many machines a pool should have when so many tasks are its to
// run: those that are not free, which have their place until they have ended,
// and free ones: the warm, or one for each task, whichever is more. Free ones
// are also those on their way, so that no task has two machines come. What is of
// no use has its place until there are others enough: if all come up ill, no more
// are made for it than there may be.
func wanted(d *provider.Demand, n tally, tasks int) int {
	kept := n.stay - n.free
	need := max(d.Warm, tasks)
	if n.idle >= need {
		kept -= n.waste
	}
	return kept + need
}

// rival is a pool before another one in the order in which pools are given
// tasks, and how many it can take.
type rival struct {
	dimensions skep.Dimensions
	room       int
}

// share is how many of the tasks that wait are a pool's with these dimensions,
// when those before it have taken what they can. Queues that the fewest of all
// pools match are given away first: the order is the same for each of them.
func share(queues []store.QueueLoad, mine skep.Dimensions, before []rival, pools []skep.Dimensions) (tasks int) {
	type one struct {
		tasks  int
		mine   bool
		takers int
		rivals []int
	}
	var all []one
	for _, q := range queues {
		o := one{tasks: q.Tasks, mine: q.Dimensions.Match(mine)}
		for i := range before {
			if q.Dimensions.Match(before[i].dimensions) {
				o.rivals = append(o.rivals, i)
			}
		}
		for _, d := range pools {
			if q.Dimensions.Match(d) {
				o.takers++
			}
		}
		all = append(all, o)
	}
	slices.SortStableFunc(all, func(a, b one) int { return a.takers - b.takers })
	room := make([]int, len(before))
	for i := range before {
		room[i] = before[i].room
	}
	for _, o := range all {
		for _, i := range o.rivals {
			n := min(o.tasks, room[i])
			o.tasks -= n
			room[i] -= n
		}
		if o.mine {
			tasks += o.tasks
		}
	}
	return tasks
}

// most is how many machines a pool may have now.
func most(c *provider.Config, now time.Time) int { return window.Amount(c.Amount, math.MaxInt32, now) }

// tasksFor is how many of the tasks that wait, and would for too long, are a
// pool's to run. Its machines must have been read before: a task that was taken
// since counts as none then, and not as one that waits and one that runs.
func (r *Reconciler) tasksFor(ctx context.Context, from reader, p *store.MachinePool, c *provider.Config, now time.Time) (int, error) {
	before := now.Add(-patience(c.Demand, r.counts.ready(p.Prefix)))
	limit := most(c, now)
	queues, err := from.QueueLoads(ctx, before, limit)
	mine := skep.Dimensions(c.Demand.Dimensions)
	match := func(q store.QueueLoad) bool { return q.Dimensions.Match(mine) }
	if err != nil || !slices.ContainsFunc(queues, match) {
		return 0, err
	}
	rivals, pools, err := r.rivals(ctx, from, p, slices.DeleteFunc(slices.Clone(queues), func(q store.QueueLoad) bool { return !match(q) }), now)
	if err != nil {
		return 0, err
	}
	if len(rivals) > 0 { // what they take counts too
		for _, v := range rivals {
			limit += v.room
		}
		if queues, err = from.QueueLoads(ctx, before, limit); err != nil {
			return 0, err
		}
	}
	return share(queues, mine, rivals, pools), nil
}

// rivals are the pools before p that could run what waits in some of queues, and
// the dimensions of all that follow the queue. The order is that of the
// prefixes, so that every server finds the same.
func (r *Reconciler) rivals(ctx context.Context, from reader, p *store.MachinePool, queues []store.QueueLoad, now time.Time) (out []rival, all []skep.Dimensions, err error) {
	pools, err := from.MachinePools(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range pools {
		other := &pools[i]
		if !other.Removed.IsZero() || other.Held || len(other.Duts) > 0 || !strings.Contains(string(other.Config), `"Demand":{`) {
			continue
		}
		c, err := configOf(other)
		if err != nil {
			return nil, nil, err
		}
		if !r.follows(c) {
			continue
		}
		all = append(all, c.Demand.Dimensions)
		if other.Prefix >= p.Prefix || !slices.ContainsFunc(queues, func(q store.QueueLoad) bool { return q.Dimensions.Match(c.Demand.Dimensions) }) {
			continue
		}
		vms, err := from.VMsOf(ctx, other.Prefix)
		if err != nil {
			return nil, nil, err
		}
		n := count(vms, now, r.o.Patience.Silence)
		v := rival{dimensions: c.Demand.Dimensions, room: n.free + max(most(c, now)-n.there, 0)}
		if other.Paused.After(now) { // what its cloud does not make now helps nobody
			v.room = n.idle
		}
		out = append(out, v)
	}
	return out, all, nil
}

// size is how many machines a pool aims for now, when so many tasks are its to
// run. It is at once as large as it must be, and never smaller than was enough
// at some time of the last minutes.
func (r *Reconciler) size(p *store.MachinePool, c *provider.Config, n tally, tasks int, now time.Time) int {
	want := window.Amount(c.Amount, wanted(c.Demand, n, tasks), now)
	r.mu.Lock()
	defer r.mu.Unlock()
	list, known := r.lately[p.Prefix]
	if !known {
		list = peaks{{now, p.Amount}} // what there was before this process looked
	}
	list = list.add(now, want)
	r.lately[p.Prefix] = list
	// What stays for a while because it was needed is not made anew when it
	// goes: only what is needed now is.
	return window.Amount(c.Amount, max(want, min(n.stay, list[0].n)), now)
}

// peaks are the sizes that a pool wanted lately, each smaller than the one
// before: the first is the largest of the last demandCool.
type peaks []struct {
	at time.Time
	n  int
}

func (p peaks) add(now time.Time, n int) peaks {
	for len(p) > 0 && p[len(p)-1].n <= n {
		p = p[:len(p)-1]
	}
	p = append(p, struct {
		at time.Time
		n  int
	}{now, n})
	for now.Sub(p[0].at) >= demandCool {
		p = p[1:]
	}
	return p
}
