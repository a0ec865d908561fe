package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// errOther says that a record is another machine's by now. What was to be done
// does not fit any more.
var errOther = errors.New("it is another machine's by now")

// change changes the record of a machine, of this generation where that is not
// 0, and has the machine looked at.
func (r *Reconciler) change(ctx context.Context, id string, generation int64, fn func(*store.Tx, *store.VM) error) error {
	var v *store.VM
	err := r.store.Update(ctx, func(tx *store.Tx) (err error) {
		if v, err = tx.LockVM(id); err != nil {
			return err
		}
		if generation != 0 && v.Generation != generation {
			return errOther
		}
		if err := fn(tx, v); err != nil {
			return err
		}
		return tx.SaveVM(v)
	}, store.KeyMachine(id))
	if err == nil {
		r.wake(v.Prefix, vmKey(v))
	}
	return late(err)
}

// late drops the error of a step that comes too late.
func late(err error) error {
	if errors.Is(err, errOther) || err != nil && skep.KindOf(err) == skep.NotFound {
		return nil
	}
	return err
}

// cloud returns who makes a machine.
func (r *Reconciler) cloud(v *store.VM) (provider.Provider, error) {
	if v.Kind == kindReleased {
		return nowhere{}, nil
	}
	var a provider.Attributes
	if err := json.Unmarshal(v.Attributes, &a); err != nil {
		return nil, fmt.Errorf("attributes of %s: %w", v.ID, err)
	}
	return r.clouds(v.Kind, a.Command)
}

// createInstance asks the cloud for a machine, and follows that to its end.
func (r *Reconciler) createInstance(ctx context.Context, v *store.VM) (again time.Duration, err error) {
	now := r.o.Now()
	p, err := r.store.MachinePool(ctx, v.Prefix)
	if err != nil {
		return 0, err
	}
	if v.Inserted.IsZero() {
		if p.Paused.After(now) {
			return p.Paused.Sub(now), nil
		}
		if !r.isExpanded(v.Prefix) { // it may not be wanted any more
			_, _, err := r.pool(ctx, v.Prefix)
			return 0, err
		}
	}
	if wait := r.enter(v, v.Inserted.IsZero()); wait != 0 {
		return wait, nil
	}
	if v.Inserted.IsZero() {
		defer r.answered(v)
	}
	cloud, err := r.cloud(v)
	if err != nil {
		return r.createFailed(ctx, v, err, false)
	}
	first := false // this is the first call about it
	if v.Inserted.IsZero() {
		// From here on an instance may exist.
		ok := false
		err := r.store.Update(ctx, func(tx *store.Tx) error {
			first, ok = false, false
			p, err := tx.LockMachinePool(v.Prefix)
			if err != nil || p.Paused.After(tx.Now) { // it was refused meanwhile
				return err
			}
			n, err := tx.LockVM(v.ID)
			if err != nil {
				return err
			}
			if ok = n.Generation == v.Generation && !n.Drained; !ok || !n.Inserted.IsZero() {
				return nil
			}
			if err := r.move(n, p, tx.Now); err != nil { // its zone may be full by now
				return err
			}
			n.Inserted, first = tx.Now, true
			v = n
			if err := tx.SaveVM(n); err != nil || p.Failure.Class != string(provider.NoBot) {
				return err
			}
			r.pause(p, r.refusal(), tx.Now) // one now and then, until a bot comes
			return tx.SaveMachinePool(p)
		}, store.KeyMachine(v.ID))
		if err != nil || !ok {
			r.leave(v, nothing)
			return 0, late(err)
		}
	}
	if !r.ours(v.Prefix) { // the last moment at which that can be seen
		r.leave(v, nothing)
		return rest, nil
	}
	o := provider.Order{
		RequestID: requestID("create", v.Hostname, v.Generation), Name: v.Hostname, Zone: v.Zone, Server: r.serverOf(v), Device: v.Dut,
		Labels: map[string]string{provider.LabelOwner: r.owner, provider.LabelVM: v.ID, provider.LabelGeneration: strconv.FormatInt(v.Generation, 10)},
	}
	if err := json.Unmarshal(v.Attributes, &o.Attributes); err != nil {
		return 0, fmt.Errorf("attributes of %s: %w", v.ID, err)
	}
	r.counts.create(v)
	done, err := cloud.Create(ctx, o)
	switch {
	case err != nil:
		return r.createFailed(ctx, v, err, first)
	case !done:
		return followUp(now.Sub(v.Inserted)), nil
	}
	in, err := cloud.Get(ctx, ref(v))
	if err != nil {
		if provider.ClassOf(err) == provider.NotFound { // it was made, and is gone
			r.leave(v, failed)
			r.note(ctx, v, err, pausing{})
			return rest, r.discard(ctx, v)
		}
		return 0, fmt.Errorf("look at %s: %w", v.Hostname, err)
	}
	r.leave(v, succeeded)
	r.zones.worked(v.Prefix, v.Zone)
	return 0, r.exists(ctx, v, in)
}

// move puts a machine that nobody asked for yet into the zone for the next one.
func (r *Reconciler) move(v *store.VM, p *store.MachinePool, now time.Time) error {
	var c provider.Config
	if err := json.Unmarshal(p.Config, &c); err != nil {
		return err
	}
	zone, _ := r.zones.choose(v.Prefix, zonesOf(&c), now)
	if zone == v.Zone {
		return nil
	}
	var a provider.Attributes
	if err := json.Unmarshal(v.Attributes, &a); err != nil {
		return err
	}
	a.Zone, v.Zone = zone, zone
	text, err := json.Marshal(a)
	v.Attributes = text
	return err
}

// followUp is the time to the next look at an operation this old.
func followUp(age time.Duration) time.Duration {
	return min(max(age/4, 100*time.Millisecond), 10*time.Second)
}

// exists notes that a machine's instance is there.
func (r *Reconciler) exists(ctx context.Context, v *store.VM, in provider.Instance) error {
	networks, err := json.Marshal(in.Networks)
	if err != nil {
		return err
	}
	fresh := false
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		fresh = false
		// The pool first, as everywhere, which the keys of all changes see to:
		// who locks them the other way round waits for one who waits for it.
		p, err := tx.LockMachinePool(v.Prefix)
		if err != nil && skep.KindOf(err) != skep.NotFound {
			return err
		}
		n, err := tx.LockVM(v.ID)
		if err != nil {
			return err
		}
		if n.Generation != v.Generation {
			return errOther
		}
		if fresh = n.URL == ""; !fresh {
			return nil
		}
		n.URL, n.Created, n.Networks, n.Failure = in.URL, in.Created, networks, store.Failure{}
		if n.Created.IsZero() {
			n.Created = tx.Now
		}
		if err := tx.SaveVM(n); err != nil {
			return err
		}
		if p == nil {
			return nil
		}
		return r.works(tx, p, n.Inserted)
	}, store.KeyMachinePool(v.Prefix))
	if err == nil && fresh {
		r.o.Log.InfoContext(ctx, "machine made", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "took", r.o.Now().Sub(v.Expanded))
		r.counts.created(v, in.Created.Sub(v.Expanded))
	}
	if err == nil {
		r.loop.Wake(vmKey(v))
		if v.Server != "" {
			r.others.Wake(v.Server) // it may never have been asked
		}
	}
	return late(err)
}

// enter takes a place among the machines that are asked for. Where there is
// none, wait is not 0: it is what the step returns.
func (r *Reconciler) enter(v *store.VM, first bool) (wait time.Duration) {
	if others, yes := r.gates.yields(v.Prefix, v.ID); yes {
		r.admit(v.Prefix, others)
		return time.Second
	}
	if ok, wait := r.gates.enter(v.Prefix, v.ID, first, r.o.Now()); !ok {
		return cmp.Or(wait, rest) // it is woken when there is room
	}
	return 0
}

// leave gives a machine's place among those that are asked for to others.
func (r *Reconciler) leave(v *store.VM, how outcome) {
	r.admit(v.Prefix, r.gates.leave(v.Prefix, v.ID, how, r.o.Now()))
}

// answered notes that the first call about a machine is over.
func (r *Reconciler) answered(v *store.VM) { r.admit(v.Prefix, r.gates.answered(v.Prefix, v.ID)) }

// admit looks after machines that there is room for.
func (r *Reconciler) admit(prefix string, ids []string) {
	for _, id := range ids {
		r.loop.Wake(vmKey(&store.VM{Prefix: prefix, ID: id}))
	}
}

// pausing is how a pool pauses after a failure. The zero value does not.
type pausing struct {
	first  time.Duration // after a first failure
	factor int           // it is so many times as long after each further one, to 16 of Options.Pause; 0 = it is not
}

// refusal is for what asking again does not cure. promise P12.
func (r *Reconciler) refusal() pausing { return pausing{r.o.Pause, 2} }

// slip is for what the next call may cure, and if not, asking again does not
// either: as a refusal it comes to ten calls an hour at most.
func slip(first time.Duration) pausing { return pausing{first, 4} }

// after is the pause when it failed so often in a row.
func (p pausing) after(failures int, longest time.Duration) time.Duration {
	d := p.first
	for i := 1; i < failures && d < longest; i++ {
		d *= time.Duration(p.factor)
	}
	return min(d, longest)
}

// createFailed decides about a machine that the cloud did not make. spec §11.
func (r *Reconciler) createFailed(ctx context.Context, v *store.VM, cause error, first bool) (again time.Duration, err error) {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// Only this step's time is over, and whatever the cloud said then was
		// said because of that.
		cause = fmt.Errorf("no answer: %w", context.Cause(ctx))
		var cancel func()
		ctx, cancel = aftermath(ctx)
		defer cancel()
	case ctx.Err() != nil:
		return 0, ctx.Err()
	}
	class := provider.ClassOf(cause)
	r.counts.failed(v, cause)
	r.o.Log.WarnContext(ctx, "machine not made", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "class", class, "err", cause)
	var pause pausing
	e, _ := errors.AsType[*provider.Error](cause)
	over := e != nil && e.Code == 200 // the operation failed: asked again, it says the same
	if worthATry(class) && !over {
		r.note(ctx, v, cause, pausing{})
		again = r.gates.hold(v.Prefix, v.ID, r.o.Now())
		if !v.Drained {
			return again, nil
		}
		// It need not be tried again: it is there, or is gone.
		there, err := r.mayExist(ctx, v, cause, first)
		if err != nil {
			return again, nil //nolint:nilerr // the cloud is away, as was noted
		}
		if r.leave(v, nothing); there {
			return 0, nil
		}
		return 0, r.discard(ctx, v)
	}
	switch class {
	case provider.RateLimit, provider.Transient:
		pause = slip(5 * time.Second)
	case provider.Exhausted:
		r.zones.exhausted(v.Prefix, v.Zone, r.o.Now())
		pause = r.zonePause(ctx, v)
	case provider.Conflict:
		pause = slip(time.Second) // the next one has another name
		if v.Hostname == v.ID {
			pause = r.refusal() // it has not: who has the name must go first
		}
	case provider.Permission, provider.Quota, provider.Invalid, provider.NotFound, provider.NoBot:
		pause = r.refusal()
	}
	r.note(ctx, v, cause, pause)
	r.leave(v, failed)
	if !v.Inserted.IsZero() { // else no cloud was asked
		if there, err := r.mayExist(ctx, v, cause, first); err != nil || there {
			return 0, err
		}
	}
	return 0, r.discard(ctx, v)
}

// worthATry says that the same call may do later what it did not do now.
func worthATry(c provider.Class) bool { return c == provider.RateLimit || c == provider.Transient }

// aftermath is time to write down how a step went whose own is over.
func aftermath(ctx context.Context) (context.Context, func()) {
	return context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
}

// zonePause is how long the pool has no zone to try.
func (r *Reconciler) zonePause(ctx context.Context, v *store.VM) pausing {
	p, err := r.store.MachinePool(ctx, v.Prefix)
	if err != nil {
		return pausing{}
	}
	var c provider.Config
	if err := json.Unmarshal(p.Config, &c); err != nil {
		return pausing{}
	}
	_, at := r.zones.choose(v.Prefix, zonesOf(&c), r.o.Now())
	return pausing{first: max(at.Sub(r.o.Now()), 0)}
}

// mayExist finds out whether a call that failed made the machine all the same:
// an earlier one of which no answer came may have. first = there was none.
func (r *Reconciler) mayExist(ctx context.Context, v *store.VM, cause error, first bool) (bool, error) {
	if e, ok := errors.AsType[*provider.Error](cause); !ok || e.Code == 200 || first && e.Code == 0 && e.Class == provider.Invalid {
		return false, nil // the operation itself says that it did not
	}
	cloud, err := r.cloud(v)
	if err != nil {
		return false, err
	}
	in, err := cloud.Get(ctx, ref(v))
	switch {
	case err == nil && in.Labels[provider.LabelOwner] == r.owner && in.Labels[provider.LabelGeneration] == strconv.FormatInt(v.Generation, 10):
		return true, r.exists(ctx, v, in)
	case err == nil, provider.ClassOf(err) == provider.NotFound:
		return false, nil
	}
	return false, fmt.Errorf("look at %s: %w", v.Hostname, err)
}

// note keeps a failure with the machine and its pool, and pauses the pool.
func (r *Reconciler) note(ctx context.Context, v *store.VM, cause error, pause pausing) {
	f := store.Failure{Class: string(provider.ClassOf(cause)), Text: cause.Error()}
	if e, ok := errors.AsType[*provider.Error](cause); ok {
		f.Reason, f.Code, f.Text = e.Reason, e.Code, e.Text
	}
	if len(f.Text) > 1000 {
		f.Text = f.Text[:1000]
	}
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		f.At = tx.Now
		p, err := tx.LockMachinePool(v.Prefix)
		if err != nil {
			return late(err)
		}
		if pause.first > 0 || p.Failure.Class != string(provider.NoBot) { // else a bot must come, see botCame
			p.Failure = f
		}
		switch {
		case pause.first == 0:
		case pause.factor == 0: // for a time that is known
			p.Paused = later(p.Paused, tx.Now.Add(pause.first))
		case !p.Paused.After(tx.Now):
			r.pause(p, pause, tx.Now)
		}
		if err := tx.SaveMachinePool(p); err != nil {
			return err
		}
		n, err := tx.LockVM(v.ID)
		if err != nil || n.Generation != v.Generation {
			return late(err)
		}
		n.Failure = f
		return tx.SaveVM(n)
	}, store.KeyMachinePool(v.Prefix))
	if err != nil && ctx.Err() == nil {
		r.o.Log.WarnContext(ctx, "failure not noted", "machine", v.ID, "err", err)
	}
}

// pause has a pool pause after one more failure.
func (r *Reconciler) pause(p *store.MachinePool, pause pausing, now time.Time) {
	p.Failures++
	p.Paused = now.Add(pause.after(p.Failures, 16*r.o.Pause))
}

// discard gives up the plan of a machine that certainly does not exist; its
// pool makes a new one, with a name and a generation of its own.
func (r *Reconciler) discard(ctx context.Context, v *store.VM) error {
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.LockVM(v.ID)
		if err != nil {
			return err
		}
		if n.Generation != v.Generation || n.URL != "" {
			return errOther
		}
		return tx.DropVM(v.ID)
	}, store.KeyMachine(v.ID))
	r.replan(v.Prefix)
	return late(err)
}

// manageBot notes that a machine's bot came, or that it is not known any more.
func (r *Reconciler) manageBot(ctx context.Context, v *store.VM) error {
	if v.Server != "" {
		if _, err := r.ask(ctx, v); err != nil {
			return err
		}
	}
	if botOf(v).Known && v.Connected.IsZero() { // before that is written down: who is killed between does it again
		if err := r.botCame(ctx, v.Prefix); err != nil {
			return err
		}
	}
	var connected *store.VM
	err := r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		connected = nil
		known := botOf(n).Known
		switch {
		case known:
			n.Missing, n.Stopping, n.Stopped = time.Time{}, time.Time{}, time.Time{}
			if n.Connected.IsZero() {
				n.Connected = n.Bot.FirstSeen
				if n.Connected.Before(later(n.Inserted, n.Started)) {
					n.Connected = n.Bot.LastSeen
				}
				connected = n
			}
		case !n.Connected.IsZero() && n.Missing.IsZero():
			n.Missing = tx.Now
		}
		return nil
	})
	if err == nil && connected != nil {
		r.counts.connected(connected)
		r.o.Log.InfoContext(ctx, "machine at work", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "took", connected.Connected.Sub(v.Expanded))
		if r.ours(v.Prefix) {
			r.loop.Wake(poolKey(v.Prefix)) // a replacement may go on
		}
		return r.botCame(ctx, v.Prefix) // of another server's bot nothing was known before
	}
	return err
}

// neverCame notes that a machine was made and its bot never came. That others
// came meanwhile says that it is not their pool's fault.
func (r *Reconciler) neverCame(ctx context.Context, v *store.VM) {
	vms, err := r.store.VMsOf(ctx, v.Prefix)
	if err != nil || slices.ContainsFunc(vms, func(o store.VM) bool { return o.Connected.After(v.Up()) }) {
		return
	}
	r.note(ctx, v, &provider.Error{
		Class: provider.NoBot, Reason: "NO_BOT", Text: fmt.Sprintf("%s was made %v ago and its bot never came; look at what the machine wrote when it started, whether its image starts a bot, and whether it reaches %s",
			v.Hostname, r.o.Now().Sub(v.Up()).Round(time.Second), r.serverOf(v)),
	}, r.refusal())
}

// botCame ends the pause of a pool whose bots did not come.
func (r *Reconciler) botCame(ctx context.Context, prefix string) error {
	fails := func(p *store.MachinePool) bool { return p.Failure.Class == string(provider.NoBot) }
	if p, err := r.store.MachinePool(ctx, prefix); err != nil || !fails(p) {
		return late(err)
	}
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		p, err := tx.LockMachinePool(prefix)
		if err != nil || !fails(p) {
			return late(err)
		}
		p.Failures, p.Paused, p.Failure = 0, time.Time{}, store.Failure{}
		return tx.SaveMachinePool(p)
	}, store.KeyMachinePool(prefix))
	if err != nil || !r.ours(prefix) {
		return err
	}
	return r.Inspect(ctx, prefix) // those that waited for it
}

// caller is who bots' histories say asked them to end.
const caller = "skep:provider"

// terminateBot asks a machine's bot to end after its task.
func (r *Reconciler) terminateBot(ctx context.Context, v *store.VM) error {
	why := "its time is over"
	switch {
	case v.Drained:
		why = "it is not wanted any more"
	case !v.Retire.IsZero():
		why = "it is replaced"
	case !v.Park.IsZero():
		why = "it is not needed now"
	}
	why = "machine provider: " + why
	if v.Server != "" {
		return r.terminateElsewhere(ctx, v, why)
	}
	task, err := r.fleet.Terminate(ctx, skep.BotID(v.Hostname), caller, why)
	if err != nil && skep.KindOf(err) != skep.NotFound {
		return fmt.Errorf("terminate %s: %w", v.Hostname, err)
	}
	r.o.Log.InfoContext(ctx, "machine is to end", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "why", why)
	// Also when ctx has ended: who comes next would ask again.
	return r.change(context.WithoutCancel(ctx), v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		n.Asked, n.AskedTask = tx.Now, task
		return nil
	})
}

// destroyInstance takes an instance away, or sees how that goes.
func (r *Reconciler) destroyInstance(ctx context.Context, v *store.VM) (again time.Duration, err error) {
	if v.Deleting.IsZero() {
		if v.Server != "" { // what was heard last may be old
			if _, err := r.ask(ctx, v); err != nil {
				return 0, err
			}
		}
		still, vain := false, false
		err := r.store.Update(ctx, func(tx *store.Tx) error {
			vain = false
			n, err := tx.LockVM(v.ID)
			if err != nil {
				return err
			}
			// Its bot may have come back since.
			step, _ := Next(r.o.Now(), n, r.o.Patience)
			if still = n.Generation == v.Generation && step == DestroyInstance; !still || !n.Deleting.IsZero() {
				return nil
			}
			vain = waitsInVain(n)
			n.Deleting, v.Deleting = tx.Now, tx.Now
			return tx.SaveVM(n)
		}, store.KeyMachine(v.ID))
		if err != nil || !still {
			return 0, late(err)
		}
		r.o.Log.InfoContext(ctx, "machine is taken away", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
		if vain {
			r.neverCame(ctx, v)
		}
	} else if stays, err := r.reprieve(ctx, v); err != nil || stays {
		return 0, err
	}
	cloud, err := r.cloud(v)
	if err != nil {
		return 0, err
	}
	if !r.ours(v.Prefix) {
		return rest, nil
	}
	r.counts.destroy(v)
	// The time is in it, as an operation that failed says so for ever.
	id := requestID("destroy-"+strconv.FormatInt(v.Deleting.UnixMicro(), 36), v.Hostname, v.Generation)
	done, err := cloud.Delete(ctx, ref(v), id)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("no answer: %w", context.Cause(ctx))
		ctx, cancel := aftermath(ctx)
		defer cancel()
		r.note(ctx, v, err, pausing{})
		return 0, fmt.Errorf("destroy %s: %w", v.Hostname, err)
	case err != nil && provider.ClassOf(err) != provider.NotFound:
		r.note(ctx, v, err, pausing{})
		if e, ok := errors.AsType[*provider.Error](err); ok && e.Code == 200 {
			err = errors.Join(err, r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
				n.Deleting = tx.Now
				return nil
			}))
		}
		return 0, fmt.Errorf("destroy %s: %w", v.Hostname, err)
	case err == nil && !done:
		return followUp(r.o.Now().Sub(v.Deleting)), nil
	}
	return 0, r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		n.Gone = tx.Now
		return nil
	})
}

// reprieve takes back that a machine is to be taken away, if its bot has come
// back since: the cloud may never have heard of it. If it did, the machine is
// found to be gone like one that nobody took.
func (r *Reconciler) reprieve(ctx context.Context, v *store.VM) (stays bool, err error) {
	stay := func(v store.VM) bool {
		v.Deleting = time.Time{}
		step, _ := Next(r.o.Now(), &v, r.o.Patience)
		return step != DestroyInstance
	}
	if !stay(*v) {
		return false, nil
	}
	err = r.change(ctx, v.ID, v.Generation, func(_ *store.Tx, n *store.VM) error {
		if stays = n.Gone.IsZero() && stay(*n); stays {
			n.Deleting, n.Failure = time.Time{}, store.Failure{}
		}
		return nil
	})
	if err == nil && stays {
		r.o.Log.InfoContext(ctx, "machine stays", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
	}
	return true, err // what is stored is not what v says: look again
}

// deleteBot forgets the bot of a machine that is gone, then the machine: the
// only normal end of a record.
//
// The bot of a name is that of the next machine once this one's record is gone.
// So the record is read again right before: who was stopped for a while, and
// lost the pool meanwhile, forgets nobody's bot. A bot that was heard of after
// its machine went is given time to fall silent.
func (r *Reconciler) deleteBot(ctx context.Context, v *store.VM) (again time.Duration, err error) {
	generation := v.Generation
	fits := func() (bool, error) {
		if v, err = r.store.VM(ctx, v.ID); err != nil {
			return false, err
		}
		return v.Generation == generation && !v.Gone.IsZero() && r.ours(v.Prefix), nil
	}
	if ok, err := fits(); err != nil || !ok {
		return rest, late(err)
	}
	if wait := v.Gone.Add(r.o.Patience.Silence).Sub(r.o.Now()); wait > 0 && v.Bot.Known && !v.Bot.Dead && v.Bot.LastSeen.After(v.Gone) {
		return min(wait, time.Minute), nil
	}
	fleet, err := r.fleetOf(v.Server)
	if err != nil {
		return 0, err
	}
	if v.AskedTask != 0 { // it would end the next bot of this name
		if _, _, err := fleet.Cancel(ctx, v.AskedTask, false); err != nil && skep.KindOf(err) != skep.NotFound {
			return 0, fmt.Errorf("cancel the termination of %s: %w", v.Hostname, err)
		}
		if ok, err := fits(); err != nil || !ok {
			return rest, late(err)
		}
	}
	if err := fleet.Delete(ctx, skep.BotID(v.Hostname)); err != nil && skep.KindOf(err) != skep.NotFound {
		return 0, fmt.Errorf("forget bot %s: %w", v.Hostname, err)
	}
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		n, err := tx.LockVM(v.ID)
		if err != nil {
			return err
		}
		if n.Generation != v.Generation {
			return errOther
		}
		return tx.DropVM(v.ID)
	}, store.KeyMachine(v.ID))
	if err == nil {
		r.counts.left(v, r.o.Now())
		r.o.Log.InfoContext(ctx, "machine gone", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
	}
	r.leave(v, nothing)
	r.replan(v.Prefix)
	return rest, late(err)
}

// drainVM says that a machine is not wanted any more; one that nobody asked a
// cloud for is forgotten at once. spec §17 D1, promise P8.
func (r *Reconciler) drainVM(ctx context.Context, id string) error {
	var v *store.VM
	dropped := false
	err := r.store.Update(ctx, func(tx *store.Tx) (err error) {
		dropped = false
		if v, err = tx.LockVM(id); err != nil {
			return err
		}
		if v.Inserted.IsZero() && v.URL == "" {
			dropped = true
			return tx.DropVM(id)
		}
		if v.Drained {
			return nil
		}
		v.Drained = true
		return tx.SaveVM(v)
	}, store.KeyMachine(id))
	if err == nil && dropped {
		r.leave(v, nothing)
		r.wake(v.Prefix, poolKey(v.Prefix))
	}
	return late(err)
}
