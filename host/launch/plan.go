// Package launch keeps a number of bot containers running on this host:
// spec/host.md part 1. It observes the engine, the control files and what it
// noted itself; Plan decides; a step applies what Plan says of one slot.
package launch

import (
	"cmp"
	"crypto/md5"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/skepdev/skep/host/engine"
)

// Cause is why a container is drained.
type Cause string

const (
	CauseStamp   Cause = "stamp"   // its own control file, or skep host drain SLOT
	CauseHost    Cause = "host"    // the host is drained
	CauseReboot  Cause = "reboot"  // the host is to reboot
	CauseHostAge Cause = "hostage" // the same, for its age
	CauseSurplus Cause = "surplus" // fewer containers are wanted
	CauseAge     Cause = "age"     // of the container
	CauseImage   Cause = "image"   // another image is wanted
	CauseVersion Cause = "version" // another launcher made it
)

// Causes are all there are.
var Causes = []Cause{CauseStamp, CauseHost, CauseReboot, CauseHostAge, CauseSurplus, CauseAge, CauseImage, CauseVersion}

// Drain is a drain that was begun, as the journal keeps it.
type Drain struct {
	Container string    `json:"container"` // id
	Cause     Cause     `json:"cause"`
	Asked     time.Time `json:"asked"`                 // when it began: the deadline counts from here
	Signalled time.Time `json:"signalled,omitzero"`    // when the bot last got SIGTERM
	Stopped   time.Time `json:"stopped,omitzero"`      // when the deadline was over and SIGINT was sent
	Deadline  time.Time `json:"deadline"`              // when the drain becomes a stop
	Late      bool      `json:"late,omitempty"`        // it was killed
	Why       string    `json:"unsignalled,omitempty"` // why the bot has had no signal yet
}

// Want is what is to be.
type Want struct {
	Slots          int           // 000 to N-1
	Image          string        // id of the local image; "" = not here yet
	Version        string        // of the launcher; "" = unknown, of no account
	MaxAge         time.Duration // of a container; 0 = any
	MaxUnavailable int           // slots that a roll-out may leave without a bot that takes work; 0 = 1
	StopGrace      time.Duration // between stop and kill
	Host           Cause         // why the whole host is drained, "" = it is not
	Stamped        map[string]bool
	Deadline       func(Cause) time.Duration
}

// Have is what is: this launcher's containers, drains that were begun, and
// what earlier deaths tell.
type Have struct {
	Containers []engine.Container // with Started where they run
	Drains     map[string]Drain   // by slot
	NotBefore  map[string]time.Time
}

// Act is one thing to do with a slot.
type Act string

const (
	ActCreate  Act = "create"  // make and start a container
	ActStart   Act = "start"   // start what was created by an earlier step
	ActUnpause Act = "unpause" //
	ActBury    Act = "bury"    // keep what a dead container leaves, and remove it
	ActDrain   Act = "drain"   // ask the bot to end after its task
	ActStop    Act = "stop"    // ask it to end now
	ActKill    Act = "kill"    // end it
	ActRemove  Act = "remove"  // have the engine end it by force and take it away
	ActForget  Act = "forget"  // a drain's container is gone
)

// Action is what to do with a slot now. At is when to look again even if it
// had nothing to do (zero = on the next event).
type Action struct {
	Slot      string
	Act       Act // "" = nothing now
	Container engine.Container
	Drain     Drain // of drain, stop and kill: as it is to be noted
	Image     string
	At        time.Time
}

// How often what was asked is asked again. SIGTERM twice within 3 s means stop
// (decisions.md 2), so that these are far apart.
const (
	signalAgain  = time.Minute
	unknownAgain = 5 * time.Second
	killAgain    = 10 * time.Second
	removeAfter  = 30 * time.Second // of kills that did nothing
	// A container that is created and not started is somebody's who is just
	// starting it, or it never will be.
	createdFor = 10 * time.Second
)

// SlotName is the name of slot n. spec host.md §1.4.
func SlotName(n int) string { return fmt.Sprintf("%03d", n) }

// Plan compares want with have and says what to do with each slot, in the order
// of their names. It does nothing itself.
func Plan(now time.Time, want Want, have Have) []Action {
	p := planner{now: now, want: want, have: have, by: map[string][]engine.Container{}}
	wanted := map[string]bool{}
	for n := range want.Slots {
		wanted[SlotName(n)] = true
	}
	names := map[string]bool{}
	for name := range wanted {
		names[name] = true
	}
	for _, c := range have.Containers {
		slot := c.Labels[LabelSlot]
		p.by[slot] = append(p.by[slot], c)
		names[slot] = true
	}
	for name := range have.Drains {
		names[name] = true
	}
	p.slots = slices.Sorted(keys(names))
	p.wanted = wanted
	causes := p.causes()
	var acts []Action
	for _, slot := range p.slots {
		acts = append(acts, p.slot(slot, causes[slot])...)
	}
	return acts
}

func keys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

type planner struct {
	now    time.Time
	want   Want
	have   Have
	slots  []string
	wanted map[string]bool
	by     map[string][]engine.Container
}

// current is the container of a slot that lives, or nil.
func (p *planner) current(slot string) *engine.Container {
	for i, c := range p.by[slot] {
		if c.State == engine.Running || c.State == engine.Paused || c.State == engine.Restarting {
			return &p.by[slot][i]
		}
	}
	return nil
}

func (p *planner) draining(slot string) (Drain, bool) {
	c := p.current(slot)
	d, ok := p.have.Drains[slot]
	return d, ok && c != nil && c.ID == d.Container
}

// causes says which containers are to drain, and why. Those for which it is
// urgent go at once; the others only while enough stay that take work.
func (p *planner) causes() map[string]Cause {
	causes := map[string]Cause{}
	unavailable, aging := 0, 0
	type candidate struct {
		slot  string
		cause Cause
		age   time.Time
	}
	var later []candidate
	for _, slot := range p.slots {
		c := p.current(slot)
		drain, draining := p.draining(slot)
		urgent := p.urgent(slot)
		switch {
		case c == nil:
			if p.wanted[slot] && !p.want.Stamped[slot] {
				unavailable++
			}
		case urgent != "":
			causes[slot] = urgent
		case draining:
			causes[slot] = drain.Cause // a bot that was asked to end will
			unavailable++
			if drain.Cause == CauseAge {
				aging++
			}
		default:
			if cause := p.gentle(c); cause != "" {
				later = append(later, candidate{slot, cause, c.Started})
			}
		}
	}
	if p.want.Host != "" {
		return causes
	}
	slices.SortStableFunc(later, func(a, b candidate) int {
		return cmp.Or(a.age.Compare(b.age), cmp.Compare(a.slot, b.slot))
	})
	most := max(1, p.want.MaxUnavailable)
	for _, l := range later {
		switch {
		case l.cause == CauseAge && aging < max(1, p.want.Slots/5):
			aging++
		case l.cause != CauseAge && unavailable < most:
		default:
			continue
		}
		unavailable++
		causes[l.slot] = l.cause
	}
	return causes
}

func (p *planner) urgent(slot string) Cause {
	switch {
	case p.want.Host != "":
		return p.want.Host
	case p.want.Stamped[slot]:
		return CauseStamp
	case !p.wanted[slot]:
		return CauseSurplus
	}
	return ""
}

func (p *planner) gentle(c *engine.Container) Cause {
	switch {
	case p.want.Image != "" && c.ImageID != p.want.Image:
		return CauseImage
	case p.want.Version != "" && c.Labels[LabelVersion] != p.want.Version:
		return CauseVersion
	case p.want.MaxAge > 0 && !c.Started.IsZero() && p.now.Sub(c.Started) > p.want.MaxAge:
		return CauseAge
	}
	return ""
}

// slot says what to do with one. The dead are buried first: they hold the name.
func (p *planner) slot(slot string, cause Cause) []Action {
	var acts []Action
	for _, c := range p.by[slot] {
		switch c.State {
		case engine.Exited, engine.Dead:
			acts = append(acts, Action{Slot: slot, Act: ActBury, Container: c})
		case engine.Created:
			if p.now.Sub(c.Created) > createdFor {
				acts = append(acts, Action{Slot: slot, Act: ActBury, Container: c})
			} else if p.wants(slot) {
				acts = append(acts, Action{Slot: slot, Act: ActStart, Container: c})
			} else {
				acts = append(acts, Action{Slot: slot, Act: ActBury, Container: c})
			}
		default:
		}
	}
	c := p.current(slot)
	d, noted := p.have.Drains[slot]
	if noted && (c == nil || c.ID != d.Container) {
		acts = append(acts, Action{Slot: slot, Act: ActForget, Drain: d})
		noted = false
	}
	switch {
	case c != nil && c.State == engine.Paused: // a frozen bot hears nothing
		acts = append(acts, Action{Slot: slot, Act: ActUnpause, Container: *c})
	case c != nil && cause != "":
		acts = append(acts, p.drain(slot, *c, cause, d, noted))
	case c != nil:
		acts = append(acts, Action{Slot: slot, Container: *c, At: p.ripe(c)})
	case !p.wants(slot) || slices.ContainsFunc(acts, func(a Action) bool { return a.Act == ActStart }):
	case p.want.Image == "": // comes with the image
	case p.have.NotBefore[slot].After(p.now):
		acts = append(acts, Action{Slot: slot, At: p.have.NotBefore[slot]})
	default:
		acts = append(acts, Action{Slot: slot, Act: ActCreate, Image: p.want.Image})
	}
	return acts
}

// wants says whether a container may be made for a slot.
func (p *planner) wants(slot string) bool {
	return p.wanted[slot] && p.want.Host == "" && !p.want.Stamped[slot]
}

func (p *planner) ripe(c *engine.Container) time.Time {
	if p.want.MaxAge == 0 || c.Started.IsZero() {
		return time.Time{}
	}
	return c.Started.Add(p.want.MaxAge + time.Second)
}

// drain says how far a drain is to go. Nothing but the deadline makes it a
// stop, whatever is known of the bot. promises D3, D7.
func (p *planner) drain(slot string, c engine.Container, cause Cause, d Drain, noted bool) Action {
	if !noted {
		d = Drain{Container: c.ID, Cause: cause, Asked: p.now}
	}
	// A reason that is more urgent may bring the end nearer, never put it off.
	d.Cause = cause
	if end := d.Asked.Add(p.want.Deadline(cause)); !noted || end.Before(d.Deadline) {
		d.Deadline = end
	}
	a := Action{Slot: slot, Container: c, Drain: d}
	again := signalAgain
	last := d.Signalled
	switch {
	case !d.Stopped.IsZero():
		kill := d.Stopped.Add(p.want.StopGrace)
		switch a.Act, a.At = ActKill, p.now.Add(killAgain); {
		case p.now.Before(kill):
			a.Act, a.At = "", kill
		case d.Late && p.now.Sub(kill) >= removeAfter:
			a.Act = ActRemove
		}
		return a
	case !p.now.Before(d.Deadline):
		a.Act, a.At = ActStop, p.now.Add(p.want.StopGrace)
		a.Drain.Stopped = p.now
		return a
	case last.IsZero():
		again = unknownAgain
		a.Act = ActDrain
	case p.now.Sub(last) >= signalAgain:
		a.Act = ActDrain
	default:
		again -= p.now.Sub(last)
	}
	a.At = earlier(p.now.Add(again), d.Deadline)
	return a
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// Pause is how long a slot waits after its deaths, oldest first, before it gets
// another container: none after one that lived or was asked to end, then 1 s
// to 5 min. What another image did is of no account. promise D13.
func Pause(deaths []Death, image string) time.Duration {
	short := 0
	for _, d := range slices.Backward(deaths) {
		if d.Asked || d.Image != image || d.Ended.Sub(d.Started) >= steady {
			break
		}
		short++
	}
	if short < 2 {
		return 0
	}
	return min(time.Second<<min(short-2, 16), 5*time.Minute)
}

// steady is how long a container must live to show that it can.
const steady = 10 * time.Second

// HostLimit is limit with the spread of a host: up to 20 % more, always the
// same for one name. spec host.md §1.6.
func HostLimit(fqdn string, limit time.Duration) time.Duration {
	minutes := int64(limit / time.Minute)
	if span := minutes / 5; span > 0 {
		sum := md5.Sum([]byte(fqdn)) //nolint:gosec // a spread, not a secret
		n := new(big.Int).SetBytes(sum[:])
		minutes += n.Mod(n, big.NewInt(span)).Int64()
	}
	return time.Duration(minutes) * time.Minute
}

// HostAge says what the age of a host asks for. spec host.md §1.6.
func HostAge(age, limit, grace time.Duration, running int) (drain, reboot bool) {
	over := age - limit
	switch {
	case limit == 0 || over <= 0:
		return false, false
	case running == 0 || over > grace:
		return true, true
	}
	return true, false
}
