package machine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// A machine that is too many may be stopped and kept: it comes back faster than
// a new one is made. ADR 94.
//
//	runs → (Park) its bot is asked to end → (Stopping) the cloud is asked to stop it
//	     → (Stopped) its bot is forgotten, it rests
//	     → (no Park) → (Started) the cloud is asked to start it → runs
//
// Each mark is stored before what it says is done, so that who comes after a
// kill does it again, by the same request id.

// stopper returns who stops and starts a machine.
func (r *Reconciler) stopper(v *store.VM) (provider.Stopper, error) {
	cloud, err := r.cloud(v)
	if err != nil {
		return nil, err
	}
	s, ok := cloud.(provider.Stopper)
	if !ok {
		return nil, &provider.Error{Class: provider.Invalid, Reason: "STOP", Text: "machines of kind " + v.Kind + " cannot be stopped"}
	}
	return s, nil
}

// mark stores that a step begins, if it is still what the machine needs.
func (r *Reconciler) mark(ctx context.Context, v *store.VM, step Step, set func(*store.VM, time.Time)) (still bool, err error) {
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		still = false
		n, err := tx.LockVM(v.ID)
		if err != nil {
			return err
		}
		next, _ := Next(r.o.Now(), n, r.o.Patience)
		if still = n.Generation == v.Generation && next == step; !still {
			return nil
		}
		set(n, tx.Now)
		*v = *n
		return tx.SaveVM(n)
	})
	return still && err == nil, late(err)
}

// stopInstance stops a machine whose bot has taken leave, or sees how that
// goes.
func (r *Reconciler) stopInstance(ctx context.Context, v *store.VM) (again time.Duration, err error) {
	if v.Stopping.IsZero() {
		still, err := r.mark(ctx, v, StopInstance, func(n *store.VM, now time.Time) { n.Stopping, n.Stopped, n.Started = now, time.Time{}, time.Time{} })
		if err != nil || !still {
			return 0, err
		}
		r.o.Log.InfoContext(ctx, "machine is stopped and kept", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
	}
	if !r.ours(v.Prefix) {
		return rest, nil
	}
	done := false
	cloud, err := r.stopper(v)
	if err == nil {
		done, err = cloud.Stop(ctx, ref(v), requestID("stop-"+strconv.FormatInt(v.Stopping.UnixMicro(), 36), v.Hostname, v.Generation))
	}
	switch {
	case err != nil:
		return r.restFailed(ctx, v, "stop", err, func(n *store.VM, now time.Time) { n.Stopping = now })
	case !done:
		return followUp(r.o.Now().Sub(v.Stopping)), nil
	}
	// The next bot of this name is that of its next life.
	if v.AskedTask != 0 {
		if _, _, err := r.fleet.Cancel(ctx, v.AskedTask, false); err != nil && skep.KindOf(err) != skep.NotFound {
			return 0, fmt.Errorf("cancel the termination of %s: %w", v.Hostname, err)
		}
	}
	if now, err := r.store.VM(ctx, v.ID); err != nil || now.Generation != v.Generation || botOf(now).Known && !botOf(now).Dead {
		return 0, late(err) // it came back
	}
	if err := r.fleet.Delete(ctx, skep.BotID(v.Hostname)); err != nil && skep.KindOf(err) != skep.NotFound {
		return 0, fmt.Errorf("forget bot %s: %w", v.Hostname, err)
	}
	err = r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		if n.Stopping.IsZero() {
			return errOther
		}
		n.Stopped, n.Connected, n.Missing, n.Asked, n.AskedTask, n.Failure = tx.Now, time.Time{}, time.Time{}, time.Time{}, 0, store.Failure{}
		return nil
	})
	if err == nil {
		r.counts.left(v, r.o.Now())
	}
	if err == nil && r.ours(v.Prefix) {
		r.replan(v.Prefix) // it may be needed again by now
	}
	return 0, err
}

// startInstance starts a machine that was stopped, or sees how that goes.
func (r *Reconciler) startInstance(ctx context.Context, v *store.VM) (again time.Duration, err error) {
	p, err := r.store.MachinePool(ctx, v.Prefix)
	if err != nil {
		return 0, err
	}
	if now := r.o.Now(); v.Started.IsZero() && p.Paused.After(now) {
		return p.Paused.Sub(now), nil
	}
	if wait := r.enter(v, v.Started.IsZero()); wait != 0 {
		return wait, nil
	}
	if v.Started.IsZero() {
		defer r.answered(v)
		still, err := r.mark(ctx, v, StartInstance, func(n *store.VM, now time.Time) { n.Started = now })
		if err != nil || !still {
			r.leave(v, nothing)
			return 0, err
		}
	}
	if !r.ours(v.Prefix) {
		r.leave(v, nothing)
		return rest, nil
	}
	done := false
	cloud, err := r.stopper(v)
	if err == nil {
		r.counts.create(v)
		done, err = cloud.Start(ctx, ref(v), requestID("start-"+strconv.FormatInt(v.Started.UnixMicro(), 36), v.Hostname, v.Generation))
	}
	switch {
	case err != nil:
		r.counts.failed(v, err)
		passes := errors.Is(ctx.Err(), context.DeadlineExceeded) || ctx.Err() == nil && worthATry(provider.ClassOf(err))
		again, err := r.restFailed(ctx, v, "start", err, func(n *store.VM, now time.Time) { n.Started = now })
		if passes && err != nil { // it was told to the log
			return r.gates.hold(v.Prefix, v.ID, r.o.Now()), nil
		}
		r.leave(v, failed) // now that its pool may pause
		return again, err
	case !done:
		return followUp(r.o.Now().Sub(v.Started)), nil
	}
	r.leave(v, succeeded)
	return 0, r.runs(ctx, v)
}

// runs notes that a machine that was stopped runs again.
func (r *Reconciler) runs(ctx context.Context, v *store.VM) error {
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		p, err := tx.LockMachinePool(v.Prefix) // the pool first, as everywhere
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		n, err := tx.LockVM(v.ID)
		if err != nil {
			return err
		}
		if n.Generation != v.Generation || n.Stopping.IsZero() {
			return errOther
		}
		n.Stopping, n.Stopped, n.Failure = time.Time{}, time.Time{}, store.Failure{}
		if err := tx.SaveVM(n); err != nil || p == nil {
			return err
		}
		return r.works(tx, p, n.Started)
	})
	if err == nil {
		r.o.Log.InfoContext(ctx, "machine runs again", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "took", r.o.Now().Sub(v.Started))
		r.loop.Wake(vmKey(v))
	}
	return late(err)
}

// works notes that a pool's cloud did what it was asked for at some time. What
// it was asked for before it refused says nothing of whether it does still.
func (r *Reconciler) works(tx *store.Tx, p *store.MachinePool, asked time.Time) error {
	if p.Failure.Class == string(provider.NoBot) { // a bot must come
		return nil
	}
	if p.Failures == 0 && p.Failure.At.IsZero() || p.Failures > 0 && asked.Before(p.Failure.At) {
		return nil
	}
	p.Failures, p.Paused, p.Failure = 0, time.Time{}, store.Failure{}
	return tx.SaveMachinePool(p)
}

// restFailed decides about a machine that the cloud did not stop or start. One
// for which that cannot be done is drained: its pool makes another one. anew has
// the next call be another one than the last, where that has failed for good.
func (r *Reconciler) restFailed(ctx context.Context, v *store.VM, what string, cause error, anew func(*store.VM, time.Time)) (time.Duration, error) {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		cause = fmt.Errorf("no answer: %w", context.Cause(ctx))
		var cancel func()
		ctx, cancel = aftermath(ctx)
		defer cancel()
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	class := provider.ClassOf(cause)
	e, _ := errors.AsType[*provider.Error](cause)
	over := e != nil && e.Code == 200
	r.o.Log.WarnContext(ctx, "machine not told to "+what, "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "class", class, "err", cause)
	change := func(fn func(*store.VM, time.Time)) error {
		return r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
			if n.Stopping.IsZero() {
				return errOther
			}
			fn(n, tx.Now)
			return nil
		})
	}
	again := func(fn func(*store.VM, time.Time)) (time.Duration, error) {
		err := fmt.Errorf("%s %s: %w", what, v.Hostname, cause) // the loop pauses this machine
		if fn != nil {
			err = errors.Join(err, change(fn))
		}
		return 0, err
	}
	var pause pausing
	switch {
	case class == provider.Exhausted:
		r.zones.exhausted(v.Prefix, v.Zone, r.o.Now())
		pause = r.zonePause(ctx, v)
	case what == "start" && (class == provider.Permission || class == provider.Quota):
		pause = r.refusal()
	}
	r.note(ctx, v, cause, pause)
	switch class {
	case provider.NotFound:
		return rest, change(func(n *store.VM, now time.Time) { n.Deleting, n.Gone = now, now })
	case provider.RateLimit, provider.Transient:
		if !over {
			anew = nil
		}
		return again(anew)
	case provider.Permission, provider.Quota:
		if pause != (pausing{}) { // it rests until then
			return rest, change(func(n *store.VM, _ time.Time) { n.Started = time.Time{} })
		}
	case provider.Exhausted:
		if p, err := r.store.MachinePool(ctx, v.Prefix); err == nil && !r.otherZone(p) {
			return again(func(n *store.VM, _ time.Time) { n.Started = time.Time{} })
		}
	case provider.Invalid, provider.Conflict, provider.NoBot:
	}
	r.o.Log.WarnContext(ctx, "machine is taken away, as it cannot "+what, "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
	return rest, change(func(n *store.VM, _ time.Time) { n.Drained, n.Started = true, time.Time{} })
}

// otherZone says that a pool may have machines in another zone.
func (r *Reconciler) otherZone(p *store.MachinePool) bool {
	c, err := configOf(p)
	return err == nil && len(zonesOf(c)) > 1
}
