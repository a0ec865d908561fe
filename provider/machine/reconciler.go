package machine

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/reconcile"
	"github.com/skepdev/skep/store"
)

// Fleet is what a provider asks of the server of its bots.
type Fleet interface {
	// Terminate asks a bot to end after its task, and returns the task that says so.
	Terminate(ctx context.Context, bot skep.BotID, caller, reason string) (skep.TaskID, error)
	// Cancel gives up a task that waits.
	Cancel(ctx context.Context, id skep.TaskID, kill bool) (canceled, wasRunning bool, err error)
	// Delete forgets a bot; one that is not known is a NotFound error.
	Delete(ctx context.Context, id skep.BotID) error
}

// Clouds finds who makes machines of a kind; of kind exec, by which command. An
// error says why there is none: it is a provider.Error of class Invalid when
// that is the Config's fault.
type Clouds func(kind string, command []string) (provider.Provider, error)

// Options of New. Zero values mean the defaults given here.
type Options struct {
	Server  string   // URL of the bots' server
	Servers []string // further URLs of this fleet's servers
	// Elsewhere finds a server that is none of these, whose bots machines are to
	// be; nil = all bots are taken for this fleet's.
	Elsewhere func(server string) (Swarming, error)
	Sweep     time.Duration            // between looks at all bots of another server; 60 s
	Patience  Patience                 // 10 min of silence, 1 h between requests to end
	Resync    time.Duration            // between looks at every machine; 60 s
	Audit     time.Duration            // between looks at every place in a cloud; 4 min
	Audits    map[string]time.Duration // the same for some kinds of cloud
	Pause     time.Duration            // of a pool that was refused once; grows to 16 times; 1 min
	LeaseLife time.Duration            // of a provider's right to a pool; 15 s
	Home      string                   // names this server among those that share a database, for as long as its machines may live
	Local     func(kind string) bool   // machines of this kind are reached from this server alone; nil = none are
	Workers   int                      // steps at a time; 32
	Projects  func() []Project         // whose quota is read; nil = none
	Now       func() time.Time
	Log       *slog.Logger
}

// Reconciler makes what is declared come true. Any number of them may share a
// store: each pool is looked after by one, which has a lease of it. Its
// methods may be called at once by many.
type Reconciler struct {
	store  *store.Store
	fleet  Fleet
	clouds Clouds
	o      Options
	loop   reconcile.Loop  // of pools and machines
	places reconcile.Loop  // of places, which take long
	others reconcile.Loop  // of other servers
	owner  string          // LabelOwner of what this fleet makes
	holder string          // of leases
	own    map[string]bool // URLs of this fleet's servers

	gates gates
	zones zones

	mu       sync.Mutex
	leases   map[string]time.Time // by pool, until when they are ours
	bots     map[skep.BotID]bool  // something happened to them
	missed   bool                 // something may have happened to any of them
	roused   chan struct{}        // holds one: there are such bots
	running  time.Time
	scan     Scan
	audits   map[string]AuditResult
	leaks    map[string]map[string]*leak // by place and URL, as the last audit left them
	lately   map[string]peaks            // by pool that follows the queue
	declared map[string]uint64           // by pool, how often what is wanted changed
	expanded map[string]uint64           // by pool, the declared that its plans are of
	calm     map[string]calm             // by pool in which a step found nothing to do
	quotas   map[string]quotas           // by project
	counts   counters

	swept      map[string]sweep // by server
	unfiltered map[string]bool  // servers of which all bots are looked at
}

// New returns a reconciler over a store, the bots' server, and clouds. Without
// clouds it is for steering and looking only: another process runs one.
func New(ctx context.Context, s *store.Store, fleet Fleet, clouds Clouds, o Options) (*Reconciler, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Patience.Silence = orElse(o.Patience.Silence, 10*time.Minute)
	o.Patience.Terminate = orElse(o.Patience.Terminate, time.Hour)
	o.Patience.Since = o.Now()
	o.Resync = orElse(o.Resync, time.Minute)
	o.Audit = orElse(o.Audit, 4*time.Minute)
	o.Pause = orElse(o.Pause, time.Minute)
	o.Sweep = orElse(o.Sweep, time.Minute)
	o.LeaseLife = orElse(o.LeaseLife, 15*time.Second)
	o.Workers = orElse(o.Workers, 32)
	key, err := s.ServerKey(ctx, "provider")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(key)
	r := &Reconciler{
		store: s, fleet: fleet, clouds: clouds, o: o, owner: hex.EncodeToString(sum[:8]), holder: strings.ToLower(rand.Text()),
		leases: map[string]time.Time{}, bots: map[skep.BotID]bool{}, roused: make(chan struct{}, 1), audits: map[string]AuditResult{}, leaks: map[string]map[string]*leak{}, lately: map[string]peaks{}, declared: map[string]uint64{}, expanded: map[string]uint64{}, calm: map[string]calm{}, quotas: map[string]quotas{},
		own: map[string]bool{ServerURL(o.Server): true}, swept: map[string]sweep{}, unfiltered: map[string]bool{},
	}
	r.loop = reconcile.Loop{
		Step: r.step, List: r.list, Workers: o.Workers, Resync: o.Resync, Limit: stepLimit, Min: 200 * time.Millisecond, Max: time.Minute, Log: o.Log,
	}
	r.places = reconcile.Loop{
		Step: r.auditStep, List: r.listPlaces, Workers: auditsAtOnce, Resync: min(o.Resync, o.Audit), Limit: auditLimit, Min: time.Second, Max: o.Audit, Log: o.Log,
	}
	for _, server := range o.Servers {
		r.own[ServerURL(server)] = true
	}
	r.others = reconcile.Loop{
		Step: r.serverStep, List: r.listServers, Workers: 8, Resync: min(o.Resync, o.Sweep), Limit: sweepLimit, Min: time.Second, Max: o.Sweep, Log: o.Log,
	}
	return r, nil
}

// stepLimit is longer than the time that any cloud gives its own calls: what
// ended them says more than that the step did.
const stepLimit = 90 * time.Second

func orElse[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return v
}

// Owner is the value of LabelOwner on all that this fleet makes.
func (r *Reconciler) Owner() string { return r.owner }

// Run works until ctx ends, and then gives its leases up.
func (r *Reconciler) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = r.o.Now()
	r.mu.Unlock()
	if err := r.renew(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.loop.Run(ctx) })
	g.Go(func() error { return r.places.Run(ctx) })
	g.Go(func() error { return r.others.Run(ctx) })
	g.Go(func() error { return r.follow(ctx) })
	g.Go(func() error { return r.keepLeases(ctx) })
	g.Go(func() error { return r.readQuotas(ctx) })
	err := g.Wait()
	if !r.alone() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, r.store.Update(ctx, func(tx *store.Tx) error { return tx.GiveLeases(r.holder) }))
	}
	return err
}

// Rouse tells that something happened to a bot: it came, died, ended or was
// deleted. It may be called for any bot, and does not wait.
func (r *Reconciler) Rouse(bot skep.BotID) {
	r.mu.Lock()
	r.bots[bot] = true
	r.mu.Unlock()
	r.rouse()
}

func (r *Reconciler) rouse() {
	select {
	case r.roused <- struct{}{}:
	default:
	}
}

// Missed tells that anything may have happened to any bot: all machines are
// looked at. It does not wait.
func (r *Reconciler) Missed() {
	r.mu.Lock()
	r.missed = true
	r.mu.Unlock()
	r.rouse()
}

// Heard takes a hint of another process on this database, about bots or about
// what is declared. It does not wait.
func (r *Reconciler) Heard(n store.News) {
	switch n.Topic {
	case store.NewsBot, store.NewsDeleted:
		r.Rouse(skep.BotID(n.Key))
	case store.NewsMachine:
		what, rest, _ := strings.Cut(n.Key, " ")
		prefix, _, _ := strings.Cut(rest, " ")
		if what == "pool" {
			r.stale(prefix)
		}
		if r.ours(prefix) {
			r.loop.Wake(n.Key)
		}
	case store.NewsQueue:
	}
}

// wake has a pool or machine looked at by whoever looks after the pool.
func (r *Reconciler) wake(prefix, key string) {
	if r.ours(prefix) {
		r.loop.Wake(key)
	} else {
		r.store.Tell(store.News{Topic: store.NewsMachine, Key: key})
	}
}

// follow looks after the machines of roused bots.
func (r *Reconciler) follow(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.roused:
		}
		r.mu.Lock()
		bots, missed := r.bots, r.missed
		r.bots, r.missed = map[skep.BotID]bool{}, false
		r.mu.Unlock()
		if missed {
			if err := r.list(ctx, func(key string) { r.loop.Wake(key) }); err != nil && ctx.Err() == nil {
				r.o.Log.WarnContext(ctx, "machines not looked at", "err", err) // the next look at all finds them
			}
		}
		for bot := range bots {
			v, err := r.store.VMByHostname(ctx, string(bot))
			if err == nil && r.ours(v.Prefix) {
				r.loop.Wake(vmKey(v))
			} else if err != nil && skep.KindOf(err) != skep.NotFound && ctx.Err() == nil {
				r.o.Log.WarnContext(ctx, "machine of a bot not found", "bot", bot, "err", err) // the next look at all finds it
			}
		}
	}
}

// alone says that nobody else has the database.
func (r *Reconciler) alone() bool { return r.store.Engine() == "sqlite" }

// ours says that a pool is this reconciler's to look after, and for a while.
func (r *Reconciler) ours(prefix string) bool {
	if r.alone() {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Add(r.o.LeaseLife / 5).Before(r.leases[prefix])
}

func (r *Reconciler) keepLeases(ctx context.Context) error {
	if r.alone() {
		return nil
	}
	tick := time.NewTicker(r.o.LeaseLife / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := r.renew(ctx); err != nil && ctx.Err() == nil {
			r.o.Log.WarnContext(ctx, "leases not renewed", "err", err)
		}
	}
}

// renew keeps the leases of this reconciler and takes those that nobody has.
// Until when it has them counts from before it asked, by its own clock.
func (r *Reconciler) renew(ctx context.Context) error {
	if r.alone() {
		return nil
	}
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return err
	}
	declared, err := r.declarations(ctx)
	if err != nil {
		return err
	}
	var names []string // in one order with all servers: each waits for what another takes
	if places, err := readPlaces(r.store.Meta(ctx, placesKey)); err != nil {
		return err
	} else if len(places) > 0 {
		names = append(names, auditLease)
	}
	if len(r.projects()) > 0 {
		names = append(names, quotaLease)
	}
	for _, p := range pools {
		if r.reaches(declared, p.Prefix) {
			names = append(names, p.Prefix)
		}
	}
	r.release(names)
	if len(names) == 0 {
		return nil
	}
	asked := time.Now()
	var held []string
	err = r.store.Update(ctx, func(tx *store.Tx) error {
		held = nil
		for _, name := range names {
			ok, err := tx.TakeLease(name, r.holder, tx.Now.Add(r.o.LeaseLife))
			if err != nil {
				return err
			}
			if ok {
				held = append(held, name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.release(held)
	var fresh []string
	r.mu.Lock()
	for _, name := range held {
		if _, had := r.leases[name]; !had && name != auditLease && name != quotaLease {
			fresh = append(fresh, name)
		}
		r.leases[name] = asked.Add(r.o.LeaseLife)
	}
	r.mu.Unlock()
	for _, prefix := range fresh {
		r.loop.Wake(poolKey(prefix))
		if err := r.Inspect(ctx, prefix); err != nil {
			return err
		}
	}
	return nil
}

// release lets go of what is not among names.
func (r *Reconciler) release(names []string) {
	keep := map[string]bool{}
	for _, name := range names {
		keep[name] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.leases {
		if !keep[name] {
			r.drop(name)
		}
	}
}

// drop forgets what was known of a pool as its holder. r.mu is held.
func (r *Reconciler) drop(name string) {
	delete(r.leases, name)
	delete(r.expanded, name)
	delete(r.calm, name)
	delete(r.lately, name)
	r.gates.drop(name)
}

// Keys of the loop: what, pool, which.
func poolKey(prefix string) string { return "pool " + prefix }
func vmKey(v *store.VM) string     { return "vm " + v.Prefix + " " + v.ID }

func (r *Reconciler) step(ctx context.Context, key string) (time.Duration, error) {
	what, rest, _ := strings.Cut(key, " ")
	switch what {
	case "pool":
		if !r.ours(rest) {
			return 0, nil
		}
		return r.poolStep(ctx, rest)
	case "vm":
		prefix, id, _ := strings.Cut(rest, " ")
		if !r.ours(prefix) {
			return 0, nil
		}
		return r.vm(ctx, prefix, id)
	}
	return 0, fmt.Errorf("no such key: %s", key)
}

// list names what may need a step before the next time: every pool, and the
// machines that have something to do.
func (r *Reconciler) list(ctx context.Context, each func(string)) error {
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if r.ours(p.Prefix) {
			each(poolKey(p.Prefix))
		}
	}
	scan := Scan{At: r.o.Now()}
	err = r.eachVM(ctx, func(v *store.VM) {
		scan.Machines++
		if !r.ours(v.Prefix) {
			return
		}
		if step, wait := Next(r.o.Now(), v, r.o.Patience); step != "" || wait > 0 && wait <= r.o.Resync {
			each(vmKey(v))
		}
	})
	if err == nil {
		scan.Took = r.o.Now().Sub(scan.At)
		r.mu.Lock()
		r.scan = scan
		r.mu.Unlock()
	}
	return err
}

// Scan is a look at the records of all machines.
type Scan struct {
	At       time.Time // zero = none was done
	Took     time.Duration
	Machines int
}

// LastScan returns the last one. promise P4.
func (r *Reconciler) LastScan() Scan {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.scan
}

// eachVM shows every machine to fn, a page at a time.
func (r *Reconciler) eachVM(ctx context.Context, fn func(*store.VM)) error {
	const page = 500
	for after := ""; ; {
		vms, err := r.store.VMsAfter(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range vms {
			fn(&vms[i])
		}
		if len(vms) < page {
			return nil
		}
		after = vms[page-1].ID
	}
}

// zonesOf are where machines of a Config may be, in this order.
func zonesOf(c *provider.Config) []string {
	if len(c.Zones) > 0 {
		return c.Zones
	}
	return []string{c.Attributes.Zone}
}

// vm makes the moves of one machine until there is none to make now.
func (r *Reconciler) vm(ctx context.Context, prefix, id string) (time.Duration, error) {
	for range 8 { // a life has no more moves at once
		v, err := r.store.VM(ctx, id)
		if err != nil {
			if skep.KindOf(err) == skep.NotFound { // whoever dropped it
				r.leave(&store.VM{Prefix: prefix, ID: id}, nothing)
			}
			return 0, onlyOther(err)
		}
		step, wait := Next(r.o.Now(), v, r.o.Patience)
		if step == "" {
			if wait > r.o.Resync { // the next look at all comes before
				wait = 0
			}
			return wait, nil
		}
		if again, err := r.do(ctx, step, v); again != 0 || err != nil {
			return max(again, 0), err
		}
	}
	return time.Second, nil
}

// rest is what a step returns that has nothing to say about when.
const rest = time.Duration(-1)

// do makes one move. again 0 = look at once what is next.
func (r *Reconciler) do(ctx context.Context, step Step, v *store.VM) (again time.Duration, err error) {
	switch step {
	case CreateInstance:
		return r.createInstance(ctx, v)
	case ManageBot:
		return 0, r.manageBot(ctx, v)
	case TerminateBot:
		return 0, r.terminateBot(ctx, v)
	case StopInstance:
		return r.stopInstance(ctx, v)
	case StartInstance:
		return r.startInstance(ctx, v)
	case DestroyInstance:
		return r.destroyInstance(ctx, v)
	case DeleteBot:
		return r.deleteBot(ctx, v)
	case DrainVM:
		return rest, r.drainVM(ctx, v.ID)
	default:
		return 0, fmt.Errorf("%s is no step of a machine", step)
	}
}

// Did is what came of a step that was run by its name.
type Did struct {
	Done bool   // there was something to do, and it is done or begun
	Text string // what, or why nothing was done; may be ""
}

// RunStep runs one step by its name, once, and waits for it: of a pool by its
// prefix, of a machine by its id, and an audit by kind/project/zone. A step
// that does not fit how things are does nothing.
func (r *Reconciler) RunStep(ctx context.Context, step Step, id string) (Did, error) {
	if r.clouds == nil {
		return Did{}, skep.Errorf(skep.Precondition, "this server looks after no machines; ask one that does, or skep provider run will take this step when it is due")
	}
	switch step {
	case ExpandConfigs, Inspect:
		if _, err := r.store.MachinePool(ctx, id); err != nil {
			return Did{}, err
		}
		if !r.ours(id) {
			return Did{Text: anothers(id)}, nil
		}
		if step == Inspect {
			return r.inspected(ctx, id)
		}
		_, changed, err := r.pool(ctx, id)
		return Did{Done: changed && err == nil}, err
	case Audit:
		f := append(strings.Split(id, "/"), "", "")
		done, err := r.auditPlace(ctx, f[0], f[1], f[2])
		if err == nil && !done {
			return Did{Text: fmt.Sprintf("nothing to do: %.100q is no KIND/PROJECT/ZONE that is looked at here", id)}, nil
		}
		return Did{Done: done}, err
	case CreateVM:
		done, err := r.createVM(ctx, id)
		if err == nil && !done {
			return Did{Text: fmt.Sprintf("nothing to do: no pool lacks a machine %.100q", id)}, nil
		}
		return Did{Done: done}, err
	case DrainVM:
		v, err := r.store.VM(ctx, id)
		if err != nil {
			return Did{}, err
		}
		return Did{Done: !v.Drained}, r.drainVM(ctx, v.ID)
	case CreateInstance, ManageBot, TerminateBot, StopInstance, StartInstance, DestroyInstance, DeleteBot:
		v, err := r.store.VM(ctx, id)
		if err != nil {
			return Did{}, err
		}
		if next, _ := Next(r.o.Now(), v, r.o.Patience); next != step && next != "" {
			return Did{Text: "what it needs now is " + string(next)}, nil
		} else if next != step {
			return Did{}, nil
		}
		return r.runStep(ctx, step, v)
	}
	return Did{}, skep.Invalidf("step", "%.40q is none of %v", string(step), Steps)
}

func anothers(prefix string) string { return "not now: another server looks after pool " + prefix }

// runStep runs the step that a machine needs. A refusal of its cloud, which is
// noted with the pool, is an error here.
func (r *Reconciler) runStep(ctx context.Context, step Step, v *store.VM) (Did, error) {
	before, err := r.store.MachinePool(ctx, v.Prefix)
	if err != nil {
		return Did{}, err
	}
	if why := r.notNow(before, step, v); why != "" {
		return Did{Text: why}, nil
	}
	r.gates.yields(v.Prefix, v.ID) // who asks for it by name lets nobody go first
	again, err := r.do(ctx, step, v)
	if err != nil {
		return Did{}, err
	}
	switch step {
	case CreateInstance, StartInstance:
		f, err := r.failureOf(ctx, v)
		if err != nil {
			return Did{}, err
		}
		if !f.At.IsZero() && !f.At.Equal(v.Failure.At) && !f.At.Equal(before.Failure.At) {
			return Did{}, &provider.Error{Class: provider.Class(f.Class), Code: f.Code, Reason: f.Reason, Text: f.Text}
		}
	case DeleteBot:
		if again > 0 {
			return Did{Text: "not now: its bot was heard of after the machine went; it is waited for"}, nil
		}
	default:
	}
	if again > 0 {
		return Did{true, "under way"}, nil
	}
	return Did{Done: true}, nil
}

// failureOf is the last failure of a machine, or of its pool if it was given up.
func (r *Reconciler) failureOf(ctx context.Context, v *store.VM) (store.Failure, error) {
	n, err := r.store.VM(ctx, v.ID)
	if err == nil {
		return n.Failure, nil
	}
	if skep.KindOf(err) != skep.NotFound {
		return store.Failure{}, err
	}
	p, err := r.store.MachinePool(ctx, v.Prefix)
	if err != nil {
		return store.Failure{}, onlyOther(err)
	}
	return p.Failure, nil
}

// notNow is why a step that a machine needs is not made now; "" = it is.
func (r *Reconciler) notNow(p *store.MachinePool, step Step, v *store.VM) string {
	now := r.o.Now()
	first := v.Inserted.IsZero() || step == StartInstance && v.Started.IsZero()
	switch {
	case !r.ours(v.Prefix):
		return anothers(v.Prefix)
	case step != CreateInstance && step != StartInstance:
		return ""
	case first && p.Paused.After(now):
		return fmt.Sprintf("not now: pool %s pauses until %s, because of %s: %s", v.Prefix, p.Paused.UTC().Format(time.RFC3339), p.Failure.Class, p.Failure.Text)
	}
	switch until, full := r.gates.full(v.Prefix, v.ID, first, now); {
	case full && until.After(now):
		return fmt.Sprintf("not now: pool %s pauses until %s, because of %s: %s", v.Prefix, until.UTC().Format(time.RFC3339), p.Failure.Class, p.Failure.Text)
	case full:
		return "not now: its pool waits for what comes of other machines first"
	}
	return ""
}

// inspected is Inspect with the number of machines that it is about.
func (r *Reconciler) inspected(ctx context.Context, prefix string) (Did, error) {
	vms, err := r.store.VMsOf(ctx, prefix)
	if err != nil {
		return Did{}, err
	}
	n := 0
	for i := range vms {
		if step, _ := Next(r.o.Now(), &vms[i], r.o.Patience); step != "" {
			n++
			r.loop.Wake(vmKey(&vms[i]))
		}
	}
	return Did{n > 0, fmt.Sprintf("%d of %d machines have a step to make; they are begun", n, len(vms))}, nil
}

// Inspect looks at every machine of a pool, and has done what they need.
func (r *Reconciler) Inspect(ctx context.Context, prefix string) error {
	vms, err := r.store.VMsOf(ctx, prefix)
	if err != nil {
		return err
	}
	for i := range vms {
		r.loop.Wake(vmKey(&vms[i]))
	}
	return nil
}
