// Package queen assigns devices to the drones that run their bots, so that no
// device is driven by two. spec/host.md §3.4.
//
// A drone has a lease of all its devices. It stops its bots before the lease
// ends on the queen's clock, and the queen gives nothing to another before
// that; both are what the safety of a device rests on. Every answer carries
// the whole lease, and a refresh never less than the first. The truth is in
// the store: any number of servers may be the queen of one fleet.
package queen

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Policy is what an operator decides; the zero value means the defaults.
type Policy struct {
	Lease             time.Duration // of a drone's devices; 0 = 10 min
	MaxRemovedPercent int           // of a push of the inventory, without confirmation; 0 = 20
	MinVersion        int           // drones with a lower one get nothing new and drain
	RefuseUnknown     bool          // and those that say no number
}

// Lease and share of a push unless the policy says otherwise.
const (
	DefaultLease             = 10 * time.Minute
	DefaultMaxRemovedPercent = 20
)

// Bounds of what callers send.
const (
	maxName     = 256
	maxText     = 1000
	maxDuts     = 100_000
	maxCapacity = 10_000
)

// Queen assigns devices. Its methods may be called at once by many.
type Queen struct {
	Store  *store.Store
	Policy func() Policy // of the moment; nil = the defaults
	Log    *slog.Logger

	over atomic.Uint64 // leases that were ended
	wake chan struct{} // holds one: there may be something to assign
}

// New returns a queen over a store. Policy may be set before Run.
func New(s *store.Store, log *slog.Logger) *Queen {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Queen{Store: s, Log: log, wake: make(chan struct{}, 1)}
}

func (q *Queen) policy() Policy {
	p := Policy{}
	if q.Policy != nil {
		p = q.Policy()
	}
	if p.Lease == 0 {
		p.Lease = DefaultLease
	}
	if p.MaxRemovedPercent == 0 {
		p.MaxRemovedPercent = DefaultMaxRemovedPercent
	}
	return p
}

// LeasesEnded counts the leases that this queen ended because their drone did
// not report.
func (q *Queen) LeasesEnded() uint64 { return q.over.Load() }

// Report is what a drone says.
type Report struct {
	UUID        string // "" = it registers
	Key         string // of its registration
	Capacity    int
	Description string
	Hive        string
	Version     string
}

// Status of a Reply.
type Status uint8

// What became of a report.
const (
	OK             Status = iota
	UnknownUUID           // the drone is not known or its lease is over
	VersionRefused        // it gets nothing new and drains; what it has stays its until then
)

// Reply is what a drone is told.
type Reply struct {
	Status  Status
	Message string
	UUID    string
	Expires time.Time
	Lease   time.Duration
	Duts    []store.Dut
}

// Report takes a drone's report: it registers the drone or prolongs its lease,
// and gives it what it has room for, all in one transaction. A registration
// with the key of an earlier one is that one repeated. A drone whose version is
// refused is not registered; one that was before keeps its lease until its
// tasks are done.
func (q *Queen) Report(ctx context.Context, r Report) (Reply, error) {
	if err := r.check(); err != nil {
		return Reply{}, err
	}
	p := q.policy()
	why := p.refuses(r.Version)
	if why != "" {
		r.Capacity = 0
	}
	fresh := uuid.NewString()
	var out Reply
	full, crowded := false, false
	err := q.Store.Update(ctx, func(tx *store.Tx) error {
		out = Reply{UUID: r.UUID, Lease: p.Lease, Expires: tx.Now.Add(p.Lease)}
		d := store.Drone{UUID: r.UUID, Key: r.Key, Description: r.Description, Hive: r.Hive, Version: r.Version, Capacity: r.Capacity, Expires: out.Expires}
		if d.UUID == "" && d.Key != "" {
			var err error
			if d.UUID, err = tx.DroneByKey(d.Key); err != nil {
				return err
			}
			if d.UUID != "" { // a release may be under way that the drone sent before it was killed
				if err := tx.RenewDuts(d.UUID); err != nil {
					return err
				}
			}
		}
		known := d.UUID != ""
		changed := !known
		if known {
			capacity, hive, _, err := tx.DroneSaid(ctx, d.UUID)
			if err != nil {
				return err
			}
			changed = capacity != d.Capacity || hive != d.Hive
			ok, err := tx.KeepDrone(d)
			if err != nil {
				return err
			}
			if !ok {
				out = Reply{Status: UnknownUUID, UUID: r.UUID, Message: "the drone is not known, or its lease is over: stop all bots and register anew"}
				return nil
			}
		} else if why != "" {
			out = Reply{Status: VersionRefused, Message: why}
			return nil
		} else {
			d.UUID = fresh
			if err := tx.AddDrone(d); err != nil {
				return err
			}
		}
		out.UUID = d.UUID
		var err error
		if out.Duts, err = tx.DutsOf(ctx, d.UUID); err != nil {
			return err
		}
		if why != "" {
			out.Status, out.Message = VersionRefused, why
			for i := range out.Duts {
				out.Duts[i].Leaving = true
			}
		}
		if full, err = q.take(ctx, tx, d, &out); err != nil {
			return err
		}
		crowded = changed
		for _, dut := range out.Duts {
			crowded = crowded || dut.Hive != d.Hive && !dut.Leaving
		}
		return nil
	})
	if err != nil {
		return Reply{}, err
	}
	if crowded || !full && out.Status == OK {
		q.Wake()
	}
	return out, nil
}

// take gives a drone free devices up to its share. done is false when more may
// be had than this looked at.
func (q *Queen) take(ctx context.Context, tx *store.Tx, d store.Drone, out *Reply) (done bool, err error) {
	room := d.Capacity - len(out.Duts)
	if room <= 0 {
		return true, nil
	}
	free, err := tx.FreeDutsOf(ctx, d.Hive, room)
	if err != nil || len(free) == 0 {
		return true, err
	}
	total, err := tx.CountDuts(ctx, d.Hive)
	if err != nil {
		return false, err
	}
	drones, err := tx.Drones(ctx)
	if err != nil {
		return false, err
	}
	capacities := []int{d.Capacity}
	for _, o := range drones {
		if o.UUID != d.UUID && o.Hive == d.Hive && o.Capacity > 0 && o.Expires.After(tx.Now) {
			capacities = append(capacities, o.Capacity)
		}
	}
	want := share(total, capacities)[0] - len(out.Duts)
	for _, dut := range free[:max(0, min(want, len(free)))] {
		ok, err := tx.TakeDut(dut.Name, d.Hive, d.UUID)
		if err != nil {
			return false, err
		}
		if ok {
			dut.Drone = d.UUID
			dut.Generation++
			out.Duts = append(out.Duts, dut)
		}
	}
	return false, nil
}

func (r *Report) check() error {
	switch {
	case len(r.UUID) > 64:
		return skep.Invalidf("drone_uuid", "has %d bytes, want 64 at most", len(r.UUID))
	case len(r.Key) > maxName:
		return skep.Invalidf("registration_key", "has %d bytes, want %d at most", len(r.Key), maxName)
	case r.Capacity < 0 || r.Capacity > maxCapacity:
		return skep.Invalidf("load_indicators.dut_capacity", "is %d, want 0 to %d", r.Capacity, maxCapacity)
	case len(r.Description) > maxText:
		return skep.Invalidf("drone_description", "has %d bytes, want %d at most", len(r.Description), maxText)
	case len(r.Hive) > maxName:
		return skep.Invalidf("hive", "has %d bytes, want %d at most", len(r.Hive), maxName)
	case len(r.Version) > maxName:
		return skep.Invalidf("drone-agent-version", "has %d bytes, want %d at most", len(r.Version), maxName)
	}
	return nil
}

// refuses says why a drone of this version is refused; "" = it is not.
func (p Policy) refuses(version string) string {
	n, err := strconv.Atoi(version)
	switch {
	case err != nil && p.RefuseUnknown:
		return "the drone does not say its version as a number; update it"
	case err == nil && n < p.MinVersion:
		return "the drone's version " + version + " is too old; update it to " + strconv.Itoa(p.MinVersion) + " or newer"
	}
	return ""
}

// Release takes devices back from a drone: by name whatever its generation
// where that is 0, and else only the assignment that it names. What is not the
// drone's is ignored, so that a release that comes late or twice frees nothing
// that the drone got again meanwhile.
func (q *Queen) Release(ctx context.Context, drone string, duts []store.Dut) error {
	if drone == "" {
		return skep.Invalidf("drone_uuid", "is missing")
	}
	if len(duts) > maxCapacity {
		return skep.Invalidf("duts", "has %d devices, want %d at most", len(duts), maxCapacity)
	}
	err := q.Store.Update(ctx, func(tx *store.Tx) error {
		for _, d := range duts {
			if err := tx.ReleaseDut(d.Name, drone, d.Generation); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		q.Wake()
	}
	return err
}

// Declaration is what an inventory says.
type Declaration struct {
	Duts        []store.Dut // name and hive
	Incremental bool        // what is not named stays
	Removed     []string    // with Incremental
	Confirmed   bool        // however many go
}

// Changes counts what a Declaration changed.
type Changes struct{ Added, Removed, Moved int }

// Declare takes what an inventory says. A push that would remove more than the
// policy allows is refused with a Precondition error and changes nothing.
func (q *Queen) Declare(ctx context.Context, d Declaration) (c Changes, err error) {
	want := make(map[string]string, len(d.Duts))
	for _, dut := range d.Duts {
		switch {
		case len(dut.Name) > maxName || len(dut.Hive) > maxName:
			return c, skep.Invalidf("available_duts", "%.40q: names and hives have %d bytes at most", dut.Name, maxName)
		case dut.Name != "":
			want[dut.Name] = dut.Hive
		}
	}
	if len(want) > maxDuts || len(d.Removed) > maxDuts {
		return c, skep.Invalidf("available_duts", "has %d devices, want %d at most", max(len(want), len(d.Removed)), maxDuts)
	}
	if len(d.Removed) > 0 && !d.Incremental {
		return c, skep.Invalidf("removed_duts", "is for incremental pushes; a whole list removes what it does not name")
	}
	p := q.policy()
	err = q.Store.Update(ctx, func(tx *store.Tx) error {
		c = Changes{}
		all, err := tx.Duts(ctx)
		if err != nil {
			return err
		}
		known := make(map[string]store.Dut, len(all))
		present := 0
		var drop []string
		for _, dut := range all {
			known[dut.Name] = dut
			if dut.Gone {
				continue
			}
			present++
			if _, there := want[dut.Name]; !there && !d.Incremental {
				drop = append(drop, dut.Name)
			}
		}
		for _, name := range d.Removed {
			if dut, ok := known[name]; ok && !dut.Gone {
				drop = append(drop, name)
				delete(want, name)
			}
		}
		if 100*len(drop) > p.MaxRemovedPercent*present && !d.Confirmed {
			return skep.Errorf(skep.Precondition, "this push removes %d of %d devices, more than %d %%; send it again with confirm_removal if that is meant", len(drop), present, p.MaxRemovedPercent)
		}
		for name, hive := range want {
			old, ok := known[name]
			switch {
			case !ok || old.Gone:
				c.Added++
			case old.Hive != hive:
				c.Moved++
			default:
				continue
			}
			if err := tx.PutDut(name, hive); err != nil {
				return err
			}
		}
		for _, name := range drop {
			if err := tx.DropDut(name); err != nil {
				return err
			}
		}
		c.Removed = len(drop)
		return nil
	})
	if err != nil {
		return Changes{}, err
	}
	q.Wake()
	return c, nil
}

// Wake says that there may be something to assign.
func (q *Queen) Wake() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

const (
	resync = time.Minute            // between looks at everything
	look   = 10 * time.Second       // between looks for leases that other servers gave
	gather = 100 * time.Millisecond // what comes within is planned once
)

// Run ends leases when they are over and moves devices, until ctx ends.
func (q *Queen) Run(ctx context.Context) error {
	t := time.NewTimer(0)
	defer t.Stop()
	last := time.Time{}
	for {
		woken := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.wake:
			woken = true
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(gather):
			}
		case <-t.C:
		}
		ended, err := q.endLeases(ctx)
		if err == nil && (ended || woken || time.Since(last) >= resync) {
			last = time.Now()
			err = q.settle(ctx)
		}
		if err != nil && ctx.Err() == nil {
			q.Log.WarnContext(ctx, "devices not assigned", "err", err)
		}
		wait := look
		if next, err := q.Store.NextDroneEnd(ctx); err == nil && !next.IsZero() {
			wait = min(wait, max(time.Until(next)+time.Millisecond, gather))
		}
		t.Reset(wait)
	}
}

// endLeases ends what is over.
func (q *Queen) endLeases(ctx context.Context) (any bool, err error) {
	drones, err := q.Store.Drones(ctx)
	if err != nil {
		return false, err
	}
	now := time.Now()
	var over []store.Drone
	for _, d := range drones {
		if !d.Expires.After(now) {
			over = append(over, d)
		}
	}
	if len(over) == 0 {
		return false, nil
	}
	var ended uint64
	err = q.Store.Update(ctx, func(tx *store.Tx) error {
		ended = 0
		for _, d := range over {
			ok, err := tx.EndDrone(d.UUID)
			if err != nil {
				return err
			}
			if ok {
				ended++
			}
		}
		return nil
	})
	if err == nil {
		q.over.Add(ended)
	}
	for _, d := range over {
		q.Log.InfoContext(ctx, "lease of a drone is over", "drone", d.UUID, "host", d.Description, "err", err)
	}
	return true, err
}

// settle does what Plan says, as far as it still holds.
func (q *Queen) settle(ctx context.Context) error {
	err := q.Store.Update(ctx, func(tx *store.Tx) error { return tx.FreeDuts() })
	if err != nil {
		return err
	}
	drones, err := q.Store.Drones(ctx)
	if err != nil {
		return err
	}
	duts, err := q.Store.Duts(ctx)
	if err != nil {
		return err
	}
	var errs []error
	byDrone := map[string][]Move{}
	var order []string
	for _, m := range Plan(time.Now(), drones, duts) {
		if byDrone[m.Drone] == nil {
			order = append(order, m.Drone)
		}
		byDrone[m.Drone] = append(byDrone[m.Drone], m)
	}
	for _, drone := range order {
		errs = append(errs, q.Store.Update(ctx, func(tx *store.Tx) error { return apply(ctx, tx, drone, drones, byDrone[drone]) }))
	}
	return errors.Join(errs...)
}

func apply(ctx context.Context, tx *store.Tx, drone string, drones []store.Drone, moves []Move) error {
	ok, err := tx.LockDrone(drone)
	if err != nil || !ok {
		return err
	}
	has, err := tx.DutsOf(ctx, drone)
	if err != nil {
		return err
	}
	room := -len(has)
	for _, d := range drones {
		if d.UUID == drone {
			room += d.Capacity
		}
	}
	for _, m := range moves {
		if m.Leave {
			if err := tx.LeaveDut(m.Dut, drone); err != nil {
				return err
			}
			continue
		}
		if room <= 0 {
			continue
		}
		ok, err := tx.TakeDut(m.Dut, m.Hive, drone)
		if err != nil {
			return err
		}
		if ok {
			room--
		}
	}
	return nil
}
