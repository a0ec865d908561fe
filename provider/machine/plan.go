package machine

import (
	"cmp"
	"slices"
	"time"

	"github.com/skepdev/skep/store"
)

// Step is a named move of one machine or pool. Each may be run at any time, by
// anybody, twice: what does not fit any more does nothing. spec §7.
type Step string

// The steps. Of a pool: ExpandConfigs, Inspect. Of a machine: the rest but
// Audit, which looks at a place in a cloud.
const (
	ExpandConfigs   Step = "expand-configs"   // plan what is missing, drain what is too much
	CreateVM        Step = "create-vm"        // write the record of one machine
	CreateInstance  Step = "create-instance"  // ask the cloud, or how it goes
	ManageBot       Step = "manage-bot"       // note that its bot came or is not known any more
	TerminateBot    Step = "terminate-bot"    // ask its bot to end after its task
	StopInstance    Step = "stop-instance"    // stop the instance and keep it, or see how that goes
	StartInstance   Step = "start-instance"   // start it again, or see how that goes
	DestroyInstance Step = "destroy-instance" // take the instance away, or see how that goes
	DeleteBot       Step = "delete-bot"       // forget the bot, then the machine
	DrainVM         Step = "drain-vm"         // it is not wanted any more
	Inspect         Step = "inspect"          // look at every machine of a pool
	Audit           Step = "audit"            // find instances without a record, and records without one
)

// Steps are all of them.
var Steps = []Step{ExpandConfigs, CreateVM, CreateInstance, ManageBot, TerminateBot, StopInstance, StartInstance, DestroyInstance, DeleteBot, DrainVM, Inspect, Audit}

// Patience is how long a machine may be silent.
type Patience struct {
	// Silence without which no dead bot's machine is taken away, nor one that
	// was drained before its bot ever came. promises P13, P14.
	Silence time.Duration
	// Terminate is the time between two requests to end. promise P19.
	Terminate time.Duration
	// Since when anybody listens. Who was silent before is not dead before it
	// had p.Silence from then on to be heard.
	Since time.Time
}

// returned is how long after its termination a bot must be there to count as
// one that came back.
const returned = time.Minute

// Next says what a machine needs now, and when it should be looked at again
// otherwise; "" and 0 = when something happens to it. spec §9.
func Next(now time.Time, v *store.VM, p Patience) (Step, time.Duration) {
	step, wait := next(now, v, p)
	if v.Server == "" {
		return step, wait
	}
	return nextElsewhere(now, v, step, wait)
}

// nextElsewhere is Next for a machine whose bot lives at another server, which
// may be away: then nothing is known of the bot, and nothing is done that
// depends on it. spec §11.
func nextElsewhere(now time.Time, v *store.VM, step Step, wait time.Duration) (Step, time.Duration) {
	if v.Answers.IsZero() {
		switch {
		case step == ManageBot, step == TerminateBot, step == DeleteBot, step == DestroyInstance && v.Deleting.IsZero():
			return "", 0 // it is looked at when the server answers
		}
		return step, wait
	}
	if at := askAgain(v); step == "" && !at.IsZero() {
		return sooner(now, at, ManageBot, wait)
	}
	return step, wait
}

// sooner is due, unless there is something else to wait for before.
func sooner(now, at time.Time, s Step, wait time.Duration) (Step, time.Duration) {
	step, mine := due(now, at, s)
	if step == "" && wait > 0 && wait < mine {
		mine = wait
	}
	return step, mine
}

// askAgain is when another server is to be asked about a bot, besides the looks
// at all of its bots: soon after something is expected of the bot, and less and
// less often. promise P2. Zero = it is not.
func askAgain(v *store.VM) time.Time {
	var from time.Time
	known := v.Bot.Known && !v.Bot.LastSeen.Before(v.Inserted)
	switch {
	case !known && v.Connected.IsZero(): // it is to come
		from = v.Created
	case known && !v.Bot.Dead && !v.Asked.IsZero(): // it is to end
		from = v.Asked
	default:
		return time.Time{}
	}
	last := later(v.Bot.Heard, from)
	at := last.Add(max(askFirst, last.Sub(from)/2))
	if known && at.After(from.Add(askFor)) { // its task may take long, and the looks find its end
		return time.Time{}
	}
	return at
}

// The first time after which a server is asked about a bot, and how long it is
// about one that is to end.
const (
	askFirst = 2 * time.Second
	askFor   = time.Minute
)

func next(now time.Time, v *store.VM, p Patience) (Step, time.Duration) {
	switch {
	case !v.Gone.IsZero():
		return DeleteBot, 0
	case !v.Deleting.IsZero():
		return DestroyInstance, 0
	case v.URL == "" && v.Drained && v.Inserted.IsZero():
		return DrainVM, 0 // nobody asked for it: it is forgotten
	case v.URL == "":
		return CreateInstance, 0
	}
	bot := botOf(v)
	if !v.Stopping.IsZero() {
		return nextAtRest(now, v, bot)
	}
	silence := max(v.Timeout, p.Silence)
	heard := time.Time{}
	if !p.Since.IsZero() {
		heard = p.Since.Add(p.Silence)
	}
	if v.Server != "" {
		heard = later(heard, v.Answers.Add(p.Silence))
	}
	switch {
	case bot.Known && bot.Dead && bot.Terminated: // it took leave
		if !v.Park.IsZero() && !v.Drained && v.End().After(now) {
			return StopInstance, 0
		}
		return DestroyInstance, 0
	case bot.Known && bot.Dead:
		return due(now, later(bot.LastSeen.Add(silence), heard), DestroyInstance)
	case bot.Known && (v.Connected.IsZero() || !v.Missing.IsZero()):
		return ManageBot, 0
	case bot.Known:
		leaves := v.Drained || !v.Park.IsZero()
		if end := v.End(); !end.IsZero() && end.After(now) && !leaves {
			return "", end.Sub(now)
		} else if end.IsZero() && !leaves {
			return "", 0
		}
		if v.Asked.IsZero() {
			return TerminateBot, 0
		}
		again := p.Terminate
		if v.AskedDone { // it ended, and is back
			again = min(again, returned)
		}
		return due(now, v.Asked.Add(again), TerminateBot)
	case !v.Connected.IsZero() && v.Missing.IsZero():
		return ManageBot, 0
	case !v.Connected.IsZero():
		return due(now, later(v.Missing.Add(silence), heard), DestroyInstance)
	}
	limit := v.Created.Add(v.Lifetime)
	if v.Timeout > 0 {
		limit = earlier(limit, v.Up().Add(v.Timeout))
	}
	if v.Drained || !v.Park.IsZero() || !v.Retire.IsZero() {
		limit = earlier(limit, v.Up().Add(silence))
	}
	return due(now, later(limit, heard), DestroyInstance)
}

// nextAtRest is Next for a machine that is being stopped, is stopped, or is
// being started again. Its bot has taken leave.
func nextAtRest(now time.Time, v *store.VM, bot store.VMBot) (Step, time.Duration) {
	end := v.End()
	switch {
	case bot.Known && !bot.Dead: // it runs, whatever the cloud was told
		return ManageBot, 0
	case !v.Started.IsZero(): // to its end, whatever is wanted by now: it may be at work at any moment
		return StartInstance, 0
	case v.Drained || !end.After(now):
		return DestroyInstance, 0
	case v.Stopped.IsZero():
		return StopInstance, 0
	case v.Park.IsZero():
		return StartInstance, 0
	}
	return "", end.Sub(now)
}

// waitsInVain says that the bot of a machine that is still wanted never came.
func waitsInVain(v *store.VM) bool {
	return v.Connected.IsZero() && v.Stopping.IsZero() && !v.Drained && v.Park.IsZero() && v.Retire.IsZero()
}

// botOf is what is known of a machine's own bot: one that was not heard of
// since the machine was asked for, or started, was an earlier one's of this name.
func botOf(v *store.VM) store.VMBot {
	if v.Bot.LastSeen.Before(later(v.Inserted, v.Started)) {
		return store.VMBot{}
	}
	return v.Bot
}

func due(now, at time.Time, s Step) (Step, time.Duration) {
	if wait := at.Sub(now); wait > 0 {
		return "", wait
	}
	return s, 0
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Change is what a pool needs: machines to plan, by number or by device, and
// ids of machines to start again, to stop and keep, to drain and to retire.
type Change struct {
	Add     []Slot
	Start   []string
	Park    []string
	Drain   []string
	Replace []string
}

// Slot is a machine that is not there.
type Slot struct {
	Index int // -1 = a device's
	Dut   string
}

// Rules are what holds for the machines of a pool besides what it says itself.
type Rules struct {
	MaxReplacing int // how many may be away at once because they are outdated
	// ByQueue says that the size is that of a queue: a machine with a task is
	// never drained for the number's sake, and one that was drained, which takes
	// no new task, does not keep others from being made, up to Most.
	ByQueue bool
	Most    int // machines that there may be, of those that are on their way out too and not stopped; only ByQueue
	Stopped int // how many of those that are too many are stopped and kept, besides; only ByQueue
}

// PoolChange compares a pool with its machines. A machine that is on its way
// out keeps its place until it is gone, so that there are never more machines
// than the larger of what is wanted and what was; but see Rules.ByQueue. spec
// §7.1, §7.10; promises P8, P10, P22.
func PoolChange(p *store.MachinePool, vms []store.VM, rules Rules) Change {
	var c Change
	if len(p.Duts) > 0 && p.Removed.IsZero() && !p.Held {
		c = deviceChange(p, vms)
	} else {
		c = numberChange(p, vms, rules)
	}
	c.Replace = outdated(p, vms, c, rules.MaxReplacing)
	return c
}

func deviceChange(p *store.MachinePool, vms []store.VM) (c Change) {
	have := map[string]bool{}
	for _, v := range vms {
		switch {
		case v.Dut != "" && slices.Contains(p.Duts, v.Dut):
			have[v.Dut] = true
		case !v.Drained:
			c.Drain = append(c.Drain, v.ID)
		}
	}
	for _, d := range p.Duts {
		if !have[d] {
			have[d] = true
			c.Add = append(c.Add, Slot{Index: -1, Dut: d})
		}
	}
	return c
}

func numberChange(p *store.MachinePool, vms []store.VM, rules Rules) (c Change) {
	want := p.Amount
	if !p.Removed.IsZero() || p.Held {
		want, rules = 0, Rules{}
	}
	taken := map[int]bool{}
	var stay, parked []store.VM
	places := 0 // that are taken
	for _, v := range vms {
		if v.Dut == "" {
			taken[v.Index] = true
		}
		if v.Park.IsZero() || v.Stopped.IsZero() {
			places++
		}
		switch {
		case v.Drained:
		case v.Dut != "":
			c.Drain = append(c.Drain, v.ID)
		case !v.Park.IsZero():
			parked = append(parked, v)
		default:
			stay = append(stay, v)
		}
	}
	missing := want - len(vms)
	if rules.ByQueue {
		missing = min(want-len(stay), rules.Most-places)
	}
	parked = c.start(p, parked, missing)
	missing -= len(c.Start)
	for i := 0; len(c.Add) < missing; i++ {
		if !taken[i] {
			c.Add = append(c.Add, Slot{Index: i})
		}
	}
	room := rules.Stopped // for more that are stopped
	for _, v := range parked {
		if v.Shape != p.Shape || room == 0 {
			c.Drain = append(c.Drain, v.ID)
			continue
		}
		room--
	}
	slices.SortStableFunc(stay, func(a, b store.VM) int {
		return cmp.Or(cmp.Compare(cost(p, &a), cost(p, &b)), cmp.Compare(b.Index, a.Index))
	})
	for _, v := range stay[:max(0, len(stay)-want)] {
		switch {
		case rules.ByQueue && v.Bot.Task != 0:
		case room > 0 && canPark(p, &v):
			c.Park = append(c.Park, v.ID)
			room--
		default:
			c.Drain = append(c.Drain, v.ID)
		}
	}
	return c
}

// start takes up to n machines that have stopped, and returns the others.
func (c *Change) start(p *store.MachinePool, parked []store.VM, n int) (rest []store.VM) {
	for _, v := range parked {
		if len(c.Start) < n && !v.Stopped.IsZero() && v.Shape == p.Shape {
			c.Start = append(c.Start, v.ID)
			continue
		}
		rest = append(rest, v)
	}
	return rest
}

// canPark says that a machine that is too many is worth keeping: it was at work
// as its pool wants it, or has stopped and was not asked to start yet.
func canPark(p *store.MachinePool, v *store.VM) bool {
	if v.Shape != p.Shape || ending(v) {
		return false
	}
	if !v.Stopping.IsZero() {
		return !v.Stopped.IsZero() && v.Started.IsZero()
	}
	bot := botOf(v)
	return !v.Connected.IsZero() && v.Missing.IsZero() && bot.Known && !bot.Dead && !bot.Ill
}

// cost orders machines by how much is lost when they go.
func cost(p *store.MachinePool, v *store.VM) int {
	switch {
	case v.Inserted.IsZero():
		return 0
	case v.Bot.Task != 0:
		return 6
	case ending(v):
		return 1
	case broken(v):
		return 2
	case v.Connected.IsZero():
		return 3
	case v.Shape != p.Shape:
		return 4
	}
	return 5
}

// broken says that a machine's bot is there and takes no tasks, or was there and
// is not.
func broken(v *store.VM) bool {
	bot := botOf(v)
	return bot.Known && (bot.Dead || bot.Ill) || !v.Missing.IsZero()
}

// ending says that a machine is on its way out.
func ending(v *store.VM) bool {
	return v.Drained || !v.Retire.IsZero() || !v.Asked.IsZero() || !v.Deleting.IsZero() || !v.Gone.IsZero()
}

// outdated picks machines of an older shape to be replaced: those that are of no
// use first, then those without a task, and never so many that more than limit
// are not at work. Where successors come up ill, that ends the replacing.
func outdated(p *store.MachinePool, vms []store.VM, c Change, limit int) (out []string) {
	if limit <= 0 || !p.Removed.IsZero() || p.Held {
		return nil
	}
	var old []store.VM
	away := len(c.Add)
	for _, v := range vms {
		switch {
		case slices.Contains(c.Drain, v.ID) || slices.Contains(c.Park, v.ID) || v.Drained || !v.Park.IsZero(): // the number's matter
		case ending(&v) || v.Connected.IsZero() || !v.Bot.Known || v.Bot.Dead || v.Bot.Ill && v.Shape == p.Shape:
			away++
		case v.Shape != p.Shape:
			old = append(old, v)
		}
	}
	slices.SortStableFunc(old, func(a, b store.VM) int {
		return cmp.Or(cmp.Compare(useOf(&a), useOf(&b)), cmp.Compare(a.Created.UnixMicro(), b.Created.UnixMicro()))
	})
	for _, v := range old[:max(0, min(len(old), limit-away))] { // those that are ill and count in it are not at work anyway
		out = append(out, v.ID)
	}
	return out
}

// useOf orders machines by what they are good for: nothing, the next task, a task.
func useOf(v *store.VM) int {
	if v.Bot.Ill {
		return 0
	}
	return 1 + busy(v)
}

func busy(v *store.VM) int {
	if v.Bot.Task != 0 {
		return 1
	}
	return 0
}
