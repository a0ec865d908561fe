package machine

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// declaration says who declares a pool, of the servers that share a database.
type declaration struct {
	By []string `json:"by"` // homes of the servers whose configuration has it, or had when it was read last
	// Home is the only server that reaches the pool's machines, as they are in
	// its state directory or in an engine of its host; "" = any server does. It
	// stays until the pool is forgotten: older machines are still there.
	Home string `json:"home,omitempty"`
}

// declarations are by pool. One server alone keeps none: all is its own.
type declarations map[string]declaration

const declaredKey = "provider.declared"

func readDeclarations(text string, err error) (declarations, error) {
	d := declarations{}
	if err == nil && text != "" {
		err = json.Unmarshal([]byte(text), &d)
	}
	return d, err
}

func (r *Reconciler) declarations(ctx context.Context) (declarations, error) {
	if r.alone() {
		return nil, nil
	}
	return readDeclarations(r.store.Meta(ctx, declaredKey))
}

// changeDeclarations changes what is known of who declares what.
func (r *Reconciler) changeDeclarations(tx *store.Tx, fn func(declarations)) error {
	if r.alone() {
		return nil
	}
	d, err := readDeclarations(tx.LockMeta(declaredKey))
	if err != nil {
		return err
	}
	fn(d)
	text, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return tx.SetMeta(declaredKey, string(text))
}

// declares says that this server declares a pool, or did.
func (r *Reconciler) declares(d declarations, prefix string) bool {
	return r.alone() || slices.Contains(d[prefix].By, r.o.Home)
}

// reaches says that this server reaches the machines of a pool.
func (r *Reconciler) reaches(d declarations, prefix string) bool {
	home := d[prefix].Home
	return home == "" || home == r.o.Home
}

// home is the only server that reaches machines of a kind that this one makes;
// "" = any server does.
func (r *Reconciler) home(kind string) string {
	if r.alone() || r.o.Local == nil || !r.o.Local(kind) {
		return ""
	}
	return r.o.Home
}

// hostOf is the host of a home, for people.
func hostOf(home string) string {
	host, _, _ := strings.Cut(home, " ")
	return host
}

// kindReleased is what machines are whose host nobody reaches any more.
const kindReleased = "released"

// Release takes a pool from the only server that reaches its machines, whose
// state is lost, so that it never looks after them again: any server may then.
// Machines whose bots are alive end after their tasks, and no cloud is asked
// about them; the others are forgotten. The pool is as one that was taken out,
// until a server declares it anew. by is who asked.
func (r *Reconciler) Release(ctx context.Context, prefix, by string) error {
	var home string
	var alive, gone int
	err := r.store.Update(ctx, func(tx *store.Tx) error {
		alive, gone = 0, 0
		p, err := tx.LockMachinePool(prefix)
		if err != nil {
			return err
		}
		places, err := readPlaces(tx.LockMeta(placesKey))
		if err != nil {
			return err
		}
		d, err := readDeclarations(tx.LockMeta(declaredKey))
		if err != nil {
			return err
		}
		home = d[prefix].Home
		if r.alone() || home == "" {
			return skep.Errorf(skep.Precondition, "any server that is there looks after pool %s; take it out of vms.cfg, or drain it", prefix)
		}
		free, err := tx.TakeLease(prefix, r.holder, tx.Now.Add(r.o.LeaseLife))
		if err != nil {
			return err
		}
		if !free || home == r.o.Home {
			return skep.Errorf(skep.Precondition, "the server on %s looks after pool %s; take it out of that server's vms.cfg, or stop that server if its state is lost", hostOf(home), prefix)
		}
		vms, err := tx.VMsOf(ctx, prefix)
		if err != nil {
			return err
		}
		for i := range vms {
			n, err := tx.LockVM(vms[i].ID)
			if err != nil {
				return err
			}
			n.Kind, n.Drained = kindReleased, true
			if n.Bot.Known && !n.Bot.Dead && !n.Bot.LastSeen.Before(n.Inserted) {
				alive++
			} else {
				n.Deleting, n.Gone = tx.Now, tx.Now
				gone++
			}
			if err := tx.SaveVM(n); err != nil {
				return err
			}
		}
		p.Removed, p.Amount, p.Duts = tx.Now, 0, nil
		if err := tx.SaveMachinePool(p); err != nil {
			return err
		}
		d[prefix] = declaration{}
		if !slices.ContainsFunc(slices.Collect(maps.Values(d)), func(o declaration) bool { return o.Home == home }) {
			places = slices.DeleteFunc(places, func(p place) bool { return p.Home == home }) // nobody would look there
		}
		for key, v := range map[string]any{placesKey: places, declaredKey: d} {
			text, err := json.Marshal(v)
			if err != nil {
				return err
			}
			if err := tx.SetMeta(key, string(text)); err != nil {
				return err
			}
		}
		return nil
	}, store.KeyMachinePool(prefix))
	if err != nil {
		return err
	}
	r.o.Log.WarnContext(ctx, "pool of machines released", "pool", prefix, "host", hostOf(home), "by", by, "drained", alive, "forgotten", gone)
	r.stale(prefix)
	return r.renew(ctx)
}

// nowhere makes no machine and has none.
type nowhere struct{}

var errNowhere = &provider.Error{Class: provider.NotFound, Reason: "released", Text: "nobody reaches the host of this machine any more"}

func (nowhere) Create(context.Context, provider.Order) (bool, error) { return true, errNowhere }
func (nowhere) Get(context.Context, provider.Ref) (provider.Instance, error) {
	return provider.Instance{}, errNowhere
}
func (nowhere) Delete(context.Context, provider.Ref, string) (bool, error) { return true, nil }
func (nowhere) List(context.Context, provider.Scope, string) ([]provider.Instance, string, error) {
	return nil, "", nil
}

// forget drops a pool that has no machines any more, and what is known of it.
func (r *Reconciler) forget(tx *store.Tx, prefix string) error {
	if err := tx.DropMachinePool(prefix); err != nil {
		return err
	}
	return r.changeDeclarations(tx, func(d declarations) { delete(d, prefix) })
}
