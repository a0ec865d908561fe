package machine

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// State of a machine, derived from its record. spec §9.
type State string

// The states.
const (
	Planned    State = "PLANNED"    // no instance is known
	Booting    State = "BOOTING"    // its bot has not come yet
	Serving    State = "SERVING"    // its bot is there
	Retiring   State = "RETIRING"   // it ends after its task
	Stopping   State = "STOPPING"   // it stops after its task, and is kept
	Stopped    State = "STOPPED"    // it is kept to be started again
	Destroying State = "DESTROYING" // its instance is taken away
	Cleanup    State = "CLEANUP"    // its instance is gone
)

// StateOf returns the state of a machine.
func StateOf(v *store.VM, now time.Time) State {
	end := v.End()
	switch {
	case !v.Gone.IsZero():
		return Cleanup
	case !v.Deleting.IsZero():
		return Destroying
	case v.URL == "":
		return Planned
	case !v.Stopping.IsZero() && !v.Started.IsZero():
		return Booting
	case v.Drained && !v.Stopping.IsZero():
		return Retiring
	case !v.Stopped.IsZero() && !v.Park.IsZero():
		return Stopped
	case !v.Stopped.IsZero(): // it is to start
		return Booting
	case !v.Stopping.IsZero(), !v.Park.IsZero() && !v.Drained && end.After(now):
		return Stopping
	case v.Connected.IsZero():
		return Booting
	case v.Drained || !end.IsZero() && !end.After(now):
		return Retiring
	}
	return Serving
}

// Status says how a pool does. Each machine counts in Planned or Created, in
// the latter when it is stopped, too.
type Status struct {
	Pool                                                                       store.MachinePool
	Configured, Planned, Created, Connected, Busy, Draining, Stopped, Outdated int
	Scaling                                                                    string
	Project, Group                                                             string // of new machines; Group is their label resource_group
	Host                                                                       string // of the only server that reaches it; "" = any does
	Away                                                                       bool   // nobody looks after it: that server is away
	ByPlace                                                                    map[Place]PlaceCount
	// Wait is how long it may take until the pool has as many as are wanted: as
	// long as it took others in the mean. 0 = it has, or nobody knows. promise P10.
	Wait  time.Duration
	Zones []FullZone // that are left out now, as far as this process knows. promise P11

	groups map[string]string // by shape
	coming int               // planned or booting
	came   Distribution      // how long those took that are there
}

// Place is where machines are, and for whom.
type Place struct{ Project, Zone, Group string }

// groupLabel is the label of machines that metrics are told apart by. spec §2.4.
const groupLabel = "resource_group"

// PlaceCount counts machines of a pool in one place.
type PlaceCount struct{ Created, Connected int }

// Status returns all pools, or the one with this prefix, by prefix. It counts
// what is stored now.
func (r *Reconciler) Status(ctx context.Context, prefix string) ([]Status, error) {
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return nil, err
	}
	declared, err := r.declarations(ctx)
	if err != nil {
		return nil, err
	}
	leases, err := r.store.Leases(ctx)
	if err != nil {
		return nil, err
	}
	now := r.o.Now()
	var out []Status
	index := map[string]int{}
	for _, p := range pools {
		if prefix != "" && p.Prefix != prefix {
			continue
		}
		c, err := configOf(&p)
		if err != nil {
			return nil, err
		}
		s := Status{
			Pool: p, Configured: p.Amount, ByPlace: map[Place]PlaceCount{}, Scaling: scaling(c.Amount),
			Project: c.Attributes.Project, Group: c.Attributes.Labels[groupLabel], groups: map[string]string{},
			Zones: r.zones.out(p.Prefix, zonesOf(c), now),
		}
		s.groups[p.Shape] = s.Group
		if home := declared[p.Prefix].Home; home != "" {
			s.Host, s.Away = hostOf(home), !leases[p.Prefix].After(now)
		}
		switch {
		case p.Held || !p.Removed.IsZero():
			s.Configured = 0
		case len(p.Duts) > 0:
			s.Configured = len(p.Duts)
		}
		index[p.Prefix] = len(out)
		out = append(out, s)
	}
	var failed error
	count := func(v *store.VM) {
		i, ok := index[v.Prefix]
		if !ok || failed != nil {
			return
		}
		if failed = r.group(ctx, &out[i], v); failed == nil {
			out[i].add(v, now)
		}
	}
	if prefix == "" {
		err = r.eachVM(ctx, count)
	} else {
		var vms []store.VM
		vms, err = r.store.VMsOf(ctx, prefix)
		for i := range vms {
			count(&vms[i])
		}
	}
	for i := range out {
		s := &out[i]
		s.Wait = s.wait(r.counts.ready(s.Pool.Prefix), r.counts.mean(s.Pool.Prefix, func(p *PoolCounts) *Distribution { return &p.Left }))
	}
	return out, errors.Join(err, failed)
}

// wait is how long it may take until a pool has as many as are wanted, when
// machines took ready to come since this process began, and left to go; 0 =
// nobody knows.
func (s *Status) wait(ready, left time.Duration) (wait time.Duration) {
	if s.came.Count > 0 {
		ready = time.Duration(s.came.Seconds / float64(s.came.Count) * float64(time.Second))
	}
	if !s.Pool.Failure.At.IsZero() {
		return 0
	}
	stay := s.Planned + s.Created - s.Draining - s.Stopped
	if s.Draining > 0 {
		if left == 0 {
			return 0
		}
		wait = left
	}
	if s.coming > 0 || stay < s.Configured {
		if ready == 0 {
			return 0
		}
		wait += ready
	}
	return wait
}

// group finds out the group of machines of v's shape, as they were made. Those
// of one shape have one.
func (r *Reconciler) group(ctx context.Context, s *Status, v *store.VM) error {
	if _, known := s.groups[v.Shape]; known {
		return nil
	}
	whole, err := r.store.VM(ctx, v.ID)
	if err != nil {
		return onlyOther(err) // it is gone: the next one of its shape says it
	}
	var a provider.Attributes
	if err := json.Unmarshal(whole.Attributes, &a); err != nil {
		return err
	}
	s.groups[v.Shape] = a.Labels[groupLabel]
	return nil
}

func (s *Status) add(v *store.VM, now time.Time) {
	place := Place{v.Project, v.Zone, s.groups[v.Shape]}
	at := s.ByPlace[place]
	state := StateOf(v, now)
	if state == Planned {
		s.Planned++
	} else {
		s.Created++
		at.Created++
	}
	switch state {
	case Retiring, Destroying, Cleanup:
		s.Draining++
	case Planned, Booting:
		if v.Drained { // it goes before its bot came, or when it has
			s.Draining++
		} else {
			s.coming++
		}
	case Stopped:
		s.Stopped++
	case Serving, Stopping:
	}
	if v.Bot.Known && !v.Bot.Dead && v.URL != "" {
		s.Connected++
		at.Connected++
	}
	if !v.Connected.IsZero() {
		s.came.add(v.Connected.Sub(later(v.Expanded, v.Started)))
	}
	if v.Bot.Task != 0 {
		s.Busy++
	}
	if v.Shape != s.Pool.Shape {
		s.Outdated++
	}
	s.ByPlace[place] = at
}

// Counts returns what was counted since the start, by pool.
func (r *Reconciler) Counts() map[string]PoolCounts {
	r.counts.mu.Lock()
	defer r.counts.mu.Unlock()
	out := make(map[string]PoolCounts, len(r.counts.pools))
	for prefix, c := range r.counts.pools {
		p := *c
		p.Failures = maps.Clone(c.Failures)
		out[prefix] = p
	}
	return out
}
