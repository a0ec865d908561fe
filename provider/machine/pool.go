package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/provider/window"
	"github.com/skepdev/skep/store"
)

// Import takes what this server declares. Pools that it declared before and that
// are neither in configs nor named by keep are removed: their machines are
// drained, and the pools are forgotten with the last of them. keep names pools
// that may be among the entries that cannot be read now: they stay at their
// last good version. What other servers declare is theirs. spec §3, promise P24.
func (r *Reconciler) Import(ctx context.Context, configs []provider.Config, keep []string) error {
	known, err := r.store.MachinePools(ctx)
	if err != nil {
		return err
	}
	declared, err := r.declarations(ctx)
	if err != nil {
		return err
	}
	before := map[string]*store.MachinePool{}
	for i := range known {
		before[known[i].Prefix] = &known[i]
	}
	var changed []string
	for i := range configs {
		c := &configs[i]
		text, err := json.Marshal(c)
		if err != nil {
			return fmt.Errorf("pool %s: %w", c.Prefix, err)
		}
		old := before[c.Prefix]
		delete(before, c.Prefix)
		if !r.reaches(declared, c.Prefix) && r.home(c.Kind) != "" {
			r.o.Log.WarnContext(ctx, "another server has a pool of this name on its own host; give this one another prefix, or release it if that server's state is lost", "host", hostOf(declared[c.Prefix].Home), "pool", c.Prefix, "kind", c.Kind)
			continue
		}
		if old != nil && old.Removed.IsZero() && string(old.Config) == string(text) && r.declares(declared, c.Prefix) {
			continue
		}
		if err := r.declare(ctx, c, text); err != nil {
			return err
		}
		changed = append(changed, c.Prefix)
	}
	for prefix, p := range before {
		if !p.Removed.IsZero() || slices.Contains(keep, prefix) || !r.declares(declared, prefix) {
			continue
		}
		err := r.store.Update(ctx, func(tx *store.Tx) error {
			p, err := tx.LockMachinePool(prefix)
			if err != nil || !p.Removed.IsZero() {
				return err
			}
			p.Removed, p.Amount, p.Duts = tx.Now, 0, nil
			if err := tx.SaveMachinePool(p); err != nil {
				return err
			}
			return r.changeDeclarations(tx, func(d declarations) {
				one := d[prefix]
				one.By = slices.DeleteFunc(one.By, func(by string) bool { return by == r.o.Home })
				d[prefix] = one
			})
		}, store.KeyMachinePool(prefix))
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		r.o.Log.InfoContext(ctx, "pool of machines removed; what it has is drained", "pool", prefix)
		changed = append(changed, prefix)
	}
	if len(changed) == 0 {
		return nil
	}
	r.stale(changed...)
	if err := r.renew(ctx); err != nil {
		return err
	}
	for _, prefix := range changed {
		r.wake(prefix, poolKey(prefix))
	}
	return nil
}

// stale says that the plans of pools must be looked at before they are followed.
func (r *Reconciler) stale(prefixes ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range prefixes {
		r.declared[p]++
	}
}

// isExpanded reports whether the plans of a pool are of what is declared now.
// Those that another process left may not be.
func (r *Reconciler) isExpanded(prefix string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.expanded[prefix]
	return ok && at == r.declared[prefix]
}

// declare stores a Config, new or changed. What was wrong with an older shape
// says nothing about this one.
func (r *Reconciler) declare(ctx context.Context, c *provider.Config, text []byte) error {
	reshaped := false
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		p, err := tx.LockMachinePool(c.Prefix)
		if skep.KindOf(err) == skep.NotFound && err != nil {
			p, err = &store.MachinePool{Prefix: c.Prefix, Generation: tx.Now.UnixMicro()}, nil
		}
		if err != nil {
			return err
		}
		shape := c.Shape()
		if reshaped = p.Shape != shape; reshaped {
			p.Shape, p.Failure, p.Failures, p.Paused = shape, store.Failure{}, 0, time.Time{}
		}
		p.Config, p.Kind, p.Revision, p.Removed = text, c.Kind, c.Revision, time.Time{}
		if err := r.remember(tx, c); err != nil {
			return err
		}
		if err := tx.SaveMachinePool(p); err != nil {
			return err
		}
		return r.changeDeclarations(tx, func(d declarations) {
			one := d[c.Prefix]
			if !slices.Contains(one.By, r.o.Home) {
				one.By = append(one.By, r.o.Home)
			}
			one.Home = cmp.Or(one.Home, r.home(c.Kind))
			d[c.Prefix] = one
		})
	}, store.KeyMachinePool(c.Prefix))
	if err != nil {
		return fmt.Errorf("declare pool %s: %w", c.Prefix, err)
	}
	if reshaped {
		r.admit(c.Prefix, r.gates.forgive(c.Prefix))
	}
	r.o.Log.InfoContext(ctx, "pool of machines declared", "pool", c.Prefix, "kind", c.Kind, "revision", c.Revision)
	return nil
}

// changeAtOnce bounds how many machines one transaction plans, drains and has
// replaced: others write, too.
const changeAtOnce = 200

// expansion is what the step of a pool comes to.
type expansion struct {
	change Change
	stale  []string      // plans for what is declared no more
	amount int           // that the pool aims for
	ready  bool          // nothing is left of what an operator wanted replaced
	over   bool          // nothing is left of what failed
	next   time.Time     // when its window ends; zero = never
	look   time.Duration // to the next look at the queue; 0 = it is not followed
	last   bool          // it is removed, and its machines are gone

	more   bool // one transaction did not do all
	behind bool // nor all that is to go: what else is planned may not be wanted
}

// reader is what is read of the store to decide about a pool: as it is, or in a
// transaction.
type reader interface {
	MachinePools(ctx context.Context) ([]store.MachinePool, error)
	VMsOf(ctx context.Context, prefix string) ([]store.VM, error)
	QueueLoads(ctx context.Context, before time.Time, limit int) ([]store.QueueLoad, error)
}

// expansion compares a pool with its machines as they were read together.
func (r *Reconciler) expansion(ctx context.Context, from reader, p *store.MachinePool, c *provider.Config, vms []store.VM, now time.Time) (e expansion, err error) {
	e.amount = p.Amount
	if p.Removed.IsZero() {
		if e.amount, err = r.amount(ctx, from, p, c, vms, now); err != nil {
			return e, err
		}
		if r.follows(c) {
			e.look = lookAgain(c.Demand)
		}
		e.next = window.Next(c.Amount, now)
	}
	e.last = !p.Removed.IsZero() && len(vms) == 0
	e.ready = p.Replacing && !anyOutdated(p, vms)
	aim := *p
	aim.Amount = e.amount
	e.change, e.stale = PoolChange(&aim, vms, r.rulesOf(p, c, now)), outlived(p, vms)
	e.over = len(e.change.Add)+len(e.change.Start) == 0 && isOver(p, vms, now)
	return e, nil
}

// nothing says that the pool is as it should be.
func (e *expansion) nothing(p *store.MachinePool) bool {
	c := &e.change
	return !e.last && !e.ready && !e.over && e.amount == p.Amount && len(c.Add)+len(c.Drain)+len(c.Park)+len(c.Start)+len(c.Replace)+len(e.stale) == 0
}

// calmFor is how many times as long as a step took that found nothing to do the
// pool has none but those that are known to matter: a step reads all of the pool's
// machines, and each of these asks for one when it has come. A large pool that
// grows did little but look at itself.
const calmFor = 100

// calm is how long no step of a pool is made because machines of it came.
type calm struct {
	until time.Time
	due   time.Time // a step is made whatever came: for the queue, or a window; zero = none is
}

func (c calm) left(now time.Time) time.Duration {
	if !c.due.IsZero() && c.due.Before(c.until) {
		return c.due.Sub(now)
	}
	return c.until.Sub(now)
}

// replan has a pool's step made now: a machine is gone, or is not made.
func (r *Reconciler) replan(prefix string) {
	r.mu.Lock()
	delete(r.calm, prefix)
	r.mu.Unlock()
	r.loop.Wake(poolKey(prefix))
}

// poolStep is the step of a pool, which was woken, when it is its time again.
func (r *Reconciler) poolStep(ctx context.Context, prefix string) (time.Duration, error) {
	began := time.Now()
	r.mu.Lock()
	declared := r.declared[prefix]
	left := r.calm[prefix].left(began)
	known := r.expanded[prefix] == declared
	r.mu.Unlock()
	if left > 0 && known {
		return left, nil
	}
	again, changed, err := r.pool(ctx, prefix)
	end := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil && !changed {
		c := calm{until: end.Add(calmFor * end.Sub(began))}
		if again > 0 {
			c.due = end.Add(again)
		}
		r.calm[prefix] = c
	} else {
		delete(r.calm, prefix)
	}
	return again, err
}

// pool compares a pool with its machines: expand-configs. Most find nothing to
// do, by a look that keeps nobody from writing; changed says that this one did.
func (r *Reconciler) pool(ctx context.Context, prefix string) (again time.Duration, changed bool, err error) {
	now := r.o.Now()
	r.mu.Lock()
	declared := r.declared[prefix]
	r.mu.Unlock()
	p, err := r.store.MachinePool(ctx, prefix)
	if err != nil {
		return 0, false, onlyOther(err)
	}
	c, err := configOf(p)
	if err != nil {
		return 0, false, err
	}
	vms, err := r.store.VMsOf(ctx, prefix)
	if err != nil {
		return 0, false, err
	}
	e, err := r.expansion(ctx, r.store, p, c, vms, now)
	if err != nil {
		return 0, false, err
	}
	if changed = !e.nothing(p); changed {
		if e, err = r.expand(ctx, prefix, now); err != nil {
			return 0, true, fmt.Errorf("expand pool %s: %w", prefix, err)
		}
	}
	if !e.behind {
		r.mu.Lock()
		r.expanded[prefix] = declared
		r.mu.Unlock()
	}
	if e.last {
		r.o.Log.InfoContext(ctx, "pool of machines forgotten", "pool", prefix)
		r.counts.forget(prefix)
		r.mu.Lock()
		r.drop(prefix)
		r.mu.Unlock()
		return 0, true, nil
	}
	again = e.look
	if e.more {
		again = time.Millisecond
	}
	if wait := e.next.Sub(now); !e.next.IsZero() && (again == 0 || wait < again) {
		again = max(wait, time.Millisecond)
	}
	return again, changed, nil
}

// expand changes what a pool needs changed, as much as one transaction may.
func (r *Reconciler) expand(ctx context.Context, prefix string, now time.Time) (e expansion, err error) {
	var wake []string
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		wake, e = nil, expansion{}
		p, err := tx.LockMachinePool(prefix)
		if err != nil {
			return onlyOther(err)
		}
		c, err := configOf(p)
		if err != nil {
			return err
		}
		vms, err := tx.VMsOf(ctx, prefix)
		if err != nil {
			return err
		}
		if e, err = r.expansion(ctx, tx, p, c, vms, now); err != nil {
			return err
		}
		if e.last {
			return r.forget(tx, prefix)
		}
		before := *p
		p.Amount, p.Replacing = e.amount, p.Replacing && !e.ready
		if e.over { // the next failure is one more all the same
			p.Failure = store.Failure{}
		}
		// The machines were read without a lock: another provider's step, or one
		// of a second writer, may change or drop any of them until this is
		// stored. So no record is written here but in the one thing meant.
		change, stale := e.change, e.stale
		room := changeAtOnce
		change.Drain, e.behind = first(change.Drain, &room, false)
		stale, e.behind = first(stale, &room, e.behind)
		change.Park, e.more = first(change.Park, &room, e.behind)
		change.Start, e.more = first(change.Start, &room, e.more)
		change.Replace, e.more = first(change.Replace, &room, e.more)
		change.Add, e.more = first(change.Add, &room, e.more)
		keys := map[string]string{}
		for i := range vms {
			keys[vms[i].ID] = vmKey(&vms[i])
		}
		for _, id := range change.Drain {
			if err := tx.DrainVM(id, false); err != nil {
				return err
			}
			wake = append(wake, keys[id])
		}
		for _, id := range stale {
			if err := tx.DrainVM(id, true); err != nil {
				return err
			}
			wake = append(wake, keys[id])
		}
		for _, each := range []struct {
			ids []string
			do  func(string) error
		}{{change.Park, tx.ParkVM}, {change.Start, tx.UnparkVM}, {change.Replace, tx.RetireVM}} {
			for _, id := range each.ids {
				if err := each.do(id); err != nil {
					return err
				}
				wake = append(wake, keys[id])
			}
		}
		for _, s := range change.Add {
			v, err := r.plan(tx, p, c, s)
			if err != nil {
				return err
			}
			wake = append(wake, vmKey(v))
		}
		if before.Amount == p.Amount && before.Generation == p.Generation && before.Replacing == p.Replacing && !e.over {
			return nil
		}
		return tx.SaveMachinePool(p)
	}, store.KeyMachinePool(prefix))
	if err == nil && len(wake) > 0 {
		r.o.Log.InfoContext(ctx, "pool of machines expanded", "pool", prefix, "want", e.amount, "machines changed", len(wake))
		r.loop.Wake(wake...)
	}
	return e, err
}

// follows says that a pool has its size from the queue: what waits at another
// server is not known.
func (r *Reconciler) follows(c *provider.Config) bool {
	return c.Demand != nil && r.foreign(c.Swarming) == ""
}

// amount is how many machines a pool aims for now.
func (r *Reconciler) amount(ctx context.Context, from reader, p *store.MachinePool, c *provider.Config, vms []store.VM, now time.Time) (int, error) {
	switch {
	case len(p.Duts) > 0:
		return len(p.Duts), nil
	case !r.follows(c):
		return window.Amount(c.Amount, p.Amount, now), nil
	}
	tasks, err := r.tasksFor(ctx, from, p, c, now)
	return r.size(p, c, count(vms, now, r.o.Patience.Silence), tasks, now), err
}

// configOf is what a pool declares.
func configOf(p *store.MachinePool) (*provider.Config, error) {
	var c provider.Config
	if err := json.Unmarshal(p.Config, &c); err != nil {
		return nil, fmt.Errorf("pool %s: %w", p.Prefix, err)
	}
	return &c, nil
}

// rulesOf are the rules for the machines of a pool now.
func (r *Reconciler) rulesOf(p *store.MachinePool, c *provider.Config, now time.Time) Rules {
	rules := Rules{MaxReplacing: c.MaxReplacing}
	if p.Replacing {
		rules.MaxReplacing = max(rules.MaxReplacing, 1)
	}
	if r.follows(c) {
		rules.ByQueue, rules.Most, rules.Stopped = true, most(c, now), c.Demand.Stopped
	}
	return rules
}

// isOver says that no machine of a pool has anything to do with its last failure
// any more, as it is gone or was not wanted after all: nothing is asked of the
// cloud that would show that it works. That bots do not come only a bot ends.
func isOver(p *store.MachinePool, vms []store.VM, now time.Time) bool {
	if p.Failure.At.IsZero() || p.Failure.Class == string(provider.NoBot) || p.Paused.After(now) {
		return false
	}
	return !slices.ContainsFunc(vms, func(v store.VM) bool {
		return v.URL == "" || !v.Failure.At.IsZero() || !v.Stopping.IsZero() && !v.Started.IsZero()
	})
}

// first takes of a list what there is room for. more says whether something was
// left out, of this list or before.
func first[T any](list []T, room *int, more bool) ([]T, bool) {
	n := min(len(list), *room)
	*room -= n
	return list[:n], more || n < len(list)
}

// outlived are plans for what is declared no more.
func outlived(p *store.MachinePool, vms []store.VM) (ids []string) {
	for _, v := range vms {
		if v.Inserted.IsZero() && v.Shape != p.Shape && !v.Drained {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// plan writes the record of one machine that is not there. Its attributes,
// with the zone that was chosen, are what it is made of whatever becomes of the
// Config.
func (r *Reconciler) plan(tx *store.Tx, p *store.MachinePool, c *provider.Config, s Slot) (*store.VM, error) {
	zone, _ := r.zones.choose(p.Prefix, zonesOf(c), tx.Now)
	a := c.Attributes
	a.Zone = zone
	attributes, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	p.Generation++
	v := &store.VM{
		ID: vmID(p.Prefix, s.Index, s.Dut), Prefix: p.Prefix, Kind: p.Kind, Index: s.Index, Dut: s.Dut, Generation: p.Generation, Attributes: attributes,
		Project: a.Project, Zone: zone, Shape: p.Shape, Scaling: scaling(c.Amount), Revision: p.Revision, Swarming: c.Swarming, Server: r.foreign(c.Swarming),
		Lifetime: jitter(c.Lifetime, rand.Float64()), Timeout: c.Timeout, Expanded: tx.Now,
	}
	for _, d := range a.Disks {
		if d.Image != "" {
			v.Images = append(v.Images, path.Base(d.Image))
		}
	}
	v.Hostname = hostname(v.ID, v.Dut, a.Labels)
	return v, tx.SaveVM(v)
}

// createVM is the step of one machine's record: it is written if its pool
// wants it and it is not there.
func (r *Reconciler) createVM(ctx context.Context, id string) (done bool, err error) {
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return false, err
	}
	for i := range pools {
		prefix := pools[i].Prefix
		var made *store.VM
		err := r.store.Update(ctx, func(tx *store.Tx) error {
			made = nil
			p, err := tx.LockMachinePool(prefix)
			if err != nil {
				return err
			}
			vms, err := tx.VMsOf(ctx, prefix)
			if err != nil {
				return err
			}
			var c provider.Config
			if err := json.Unmarshal(p.Config, &c); err != nil {
				return err
			}
			for _, s := range PoolChange(p, vms, r.rulesOf(p, &c, tx.Now)).Add {
				if vmID(prefix, s.Index, s.Dut) != id {
					continue
				}
				if made, err = r.plan(tx, p, &c, s); err != nil {
					return err
				}
				return tx.SaveMachinePool(p)
			}
			return nil
		}, store.KeyMachinePool(prefix))
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return false, err
		}
		if made != nil {
			r.wake(prefix, vmKey(made))
			return true, nil
		}
	}
	return false, nil
}

// Resize changes how many machines a pool aims for, and which devices it has; a
// nil is left as it is. Both or none. The amount is clamped to what is allowed
// now; with devices it is their number, and no other is taken for it. A pool
// that follows the queue takes no amount. spec §12, promise P18.
func (r *Reconciler) Resize(ctx context.Context, prefix string, amount *int, duts []string) (*store.MachinePool, error) {
	if err := checkDevices(duts); err != nil {
		return nil, err
	}
	var p *store.MachinePool
	err := r.store.Update(ctx, func(tx *store.Tx) (err error) {
		if p, err = tx.LockMachinePool(prefix); err != nil {
			return err
		}
		if !p.Removed.IsZero() {
			return skep.Errorf(skep.NotFound, "no pool of machines: %.100q", prefix)
		}
		var c provider.Config
		if err := json.Unmarshal(p.Config, &c); err != nil {
			return err
		}
		if duts != nil {
			p.Duts = slices.Compact(slices.Sorted(slices.Values(duts)))
		}
		switch {
		case len(p.Duts) > 0 && duts == nil && amount != nil && *amount != len(p.Duts):
			return skep.Errorf(skep.Precondition, "pool %s has a machine for each of its %d devices; change config.duts instead: an amount counts once there are none", prefix, len(p.Duts))
		case len(p.Duts) > 0:
			p.Amount = len(p.Duts)
		case amount != nil && r.follows(&c):
			return skep.Errorf(skep.Precondition, "pool %s has its size from the queue; change min and max of amount, or warm of demand, in vms.cfg", prefix)
		case amount != nil:
			p.Amount = window.Amount(c.Amount, *amount, tx.Now)
		default:
			p.Amount = window.Amount(c.Amount, p.Amount, tx.Now)
		}
		return tx.SaveMachinePool(p)
	}, store.KeyMachinePool(prefix))
	r.stale(prefix)
	if err == nil {
		r.wake(prefix, poolKey(prefix))
	}
	return p, err
}

// Drain says that a machine is not wanted any more. It finishes its task.
func (r *Reconciler) Drain(ctx context.Context, id string) error {
	if err := r.drainVM(ctx, id); err != nil {
		return err
	}
	v, err := r.store.VM(ctx, id)
	if err == nil {
		r.wake(v.Prefix, vmKey(v))
	}
	return onlyOther(err)
}

// Hold says whether a pool keeps no machine for now, whatever is declared.
func (r *Reconciler) Hold(ctx context.Context, prefix string, held bool) (changed bool, err error) {
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		p, err := tx.LockMachinePool(prefix)
		if err != nil {
			return err
		}
		changed = p.Held != held
		p.Held = held
		return tx.SaveMachinePool(p)
	}, store.KeyMachinePool(prefix))
	r.stale(prefix)
	if err == nil {
		r.wake(prefix, poolKey(prefix))
	}
	return changed, err
}

// Replace has a machine replaced before its time, after its task.
func (r *Reconciler) Replace(ctx context.Context, id string) (changed bool, err error) {
	err = r.change(ctx, id, 0, func(tx *store.Tx, v *store.VM) error {
		if changed = v.Retire.IsZero() && !v.Drained; changed {
			v.Retire = tx.Now
		}
		return nil
	})
	return changed, err
}

// ReplaceOutdated has machines of a pool replaced whose shape is not what is
// declared now, until none is left: as many at a time as the Config says, at
// least one. changed says that there are some, and that nobody asked before.
func (r *Reconciler) ReplaceOutdated(ctx context.Context, prefix string) (changed bool, err error) {
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		changed = false
		p, err := tx.LockMachinePool(prefix)
		if err != nil || p.Replacing {
			return err
		}
		vms, err := tx.VMsOf(ctx, prefix)
		if err != nil || !anyOutdated(p, vms) {
			return err
		}
		changed, p.Replacing = true, true
		return tx.SaveMachinePool(p)
	}, store.KeyMachinePool(prefix))
	if err == nil && changed {
		r.stale(prefix)
		r.wake(prefix, poolKey(prefix))
	}
	return changed, err
}

// anyOutdated says that a pool has a machine of another shape than its own,
// besides those that go anyway.
func anyOutdated(p *store.MachinePool, vms []store.VM) bool {
	return slices.ContainsFunc(vms, func(v store.VM) bool { return v.Shape != p.Shape && !v.Drained })
}
