package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// auditLease is the name of the right to look at places. No pool has it: it is
// not a host name.
const auditLease = "(audit)"

// place is where a cloud lists instances.
type place struct {
	Kind, Project, Zone string
	Command             string `json:",omitempty"` // of kind exec, see commandText
	Home                string `json:",omitempty"` // the only server that reaches it; "" = any does
}

func (p place) key() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

func readPlace(text string) (p place, err error) {
	err = json.Unmarshal([]byte(text), &p)
	return p, err
}

// commandText writes a command so that places can be compared: its words a line
// each, or as JSON where one of them has lines. The first word of a command, a
// path, begins with no bracket.
func commandText(words []string) string {
	if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, "\n") }) {
		b, err := json.Marshal(words)
		if err != nil {
			panic(err) // strings always encode
		}
		return string(b)
	}
	return strings.Join(words, "\n")
}

func (p place) command() (words []string) {
	switch {
	case p.Command == "":
		return nil
	case p.Command[0] == '[' && json.Unmarshal([]byte(p.Command), &words) == nil:
		return words
	}
	return strings.Split(p.Command, "\n")
}

// has says that a machine is in this place.
func (p place) has(v *store.VM) bool {
	if v.Kind != p.Kind || v.Project != p.Project || v.Zone != p.Zone {
		return false
	}
	if p.Command == "" {
		return true
	}
	var a provider.Attributes
	return json.Unmarshal(v.Attributes, &a) == nil && commandText(a.Command) == p.Command
}

// looksAt says that a place is this reconciler's to look at.
func (r *Reconciler) looksAt(p place) bool {
	if p.Home != "" {
		return p.Home == r.o.Home
	}
	return r.ours(auditLease)
}

// placesKey holds every place in which there ever were machines: what leaked
// there is looked for also when no pool is there any more.
const placesKey = "provider.places"

func readPlaces(text string, err error) ([]place, error) {
	var places []place
	if err == nil && text != "" {
		err = json.Unmarshal([]byte(text), &places)
	}
	return places, err
}

// placesOf are where machines of a Config may be.
func placesOf(c *provider.Config, home string) (places []place) {
	for _, z := range zonesOf(c) {
		places = append(places, place{c.Kind, c.Attributes.Project, z, commandText(c.Attributes.Command), home})
	}
	return places
}

// remember adds the places of a Config to those that are looked at.
func (r *Reconciler) remember(tx *store.Tx, c *provider.Config) error {
	places, err := readPlaces(tx.LockMeta(placesKey))
	if err != nil {
		return err
	}
	n := len(places)
	for _, p := range placesOf(c, r.home(c.Kind)) {
		if !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	if len(places) == n {
		return nil
	}
	text, err := json.Marshal(places)
	if err != nil {
		return err
	}
	return tx.SetMeta(placesKey, string(text))
}

// AuditResult is what the last look at a place found.
type AuditResult struct {
	Kind, Project, Zone string
	At                  time.Time
	Instances           int // of this fleet
	Leaks               int // of these, without a record
}

// auditEvery is the time between looks at a place of a kind.
func (r *Reconciler) auditEvery(kind string) time.Duration {
	return cmp.Or(r.o.Audits[kind], r.o.Audit)
}

// auditStep is the step of a place.
func (r *Reconciler) auditStep(ctx context.Context, key string) (time.Duration, error) {
	at, err := readPlace(key)
	if err != nil || !r.looksAt(at) { // it is listed again when it is ours
		return 0, err
	}
	places, err := readPlaces(r.store.Meta(ctx, placesKey))
	if err != nil || !slices.Contains(places, at) { // it was forgotten
		return 0, err
	}
	every := r.auditEvery(at.Kind)
	r.mu.Lock()
	last := r.audits[key].At
	r.mu.Unlock()
	if wait := last.Add(every).Sub(r.o.Now()); !last.IsZero() && wait > 0 {
		return wait, nil
	}
	return every, r.audit(ctx, at)
}

// listPlaces names the places to look at.
func (r *Reconciler) listPlaces(ctx context.Context, each func(string)) error {
	places, err := readPlaces(r.store.Meta(ctx, placesKey))
	if err != nil {
		return err
	}
	for _, p := range places {
		if r.looksAt(p) {
			each(p.key())
		}
	}
	return nil
}

// auditLimit is for one place. It may have many pages.
const auditLimit = 10 * time.Minute

// auditsAtOnce bounds how many places are looked at.
const auditsAtOnce = 4

// audit looks at what a cloud has in one place. Instances that carry this
// fleet's label and have no record are leaks and are taken away; others are
// nobody's business. Records whose instance is not there lost it. spec §10,
// promises P20, P21.
func (r *Reconciler) audit(ctx context.Context, at place) error {
	cloud, err := r.clouds(at.Kind, at.command())
	if err != nil {
		return err
	}
	begun := r.o.Now()
	result := AuditResult{Kind: at.Kind, Project: at.Project, Zone: at.Zone, At: begun}
	there := map[string]bool{}
	r.mu.Lock()
	before, last := r.leaks[at.key()], r.audits[at.key()]
	r.mu.Unlock()
	leaks := map[string]*leak{} // by URL
	for token := ""; ; {
		page, next, err := cloud.List(ctx, provider.Scope{Project: at.Project, Zone: at.Zone}, token)
		if err != nil {
			err = fmt.Errorf("list instances in %s %s: %w", at.Project, at.Zone, err)
			if provider.ClassOf(err) == provider.NotFound { // the project is gone
				return r.unused(ctx, at, err)
			}
			return err
		}
		page = slices.DeleteFunc(page, func(in provider.Instance) bool { return in.Labels[provider.LabelOwner] != r.owner })
		ids := make([]string, len(page))
		for i := range page {
			ids[i] = page[i].Labels[provider.LabelVM]
			there[page[i].Ref.Name] = true
		}
		vms, err := r.store.VMsNamed(ctx, ids)
		if err != nil {
			return err
		}
		result.Instances += len(page)
		for i := range page {
			in := &page[i]
			if v := vms[ids[i]]; !leaked(v, in) {
				if in.Ended {
					if err := r.ended(ctx, cloud, v, in); err != nil {
						return err
					}
				}
				continue
			}
			result.Leaks++
			l := &leak{since: begun}
			if old := before[in.URL]; old != nil {
				*l = *old
			}
			leaks[in.URL] = l
			if err := r.plug(ctx, cloud, r.auditEvery(at.Kind), in, l); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				r.o.Log.WarnContext(ctx, "it stays for the next audit", "bot", in.Ref.Name, "err", err)
			}
		}
		if next == "" {
			break
		}
		token = next
	}
	r.mu.Lock()
	r.audits[at.key()], r.leaks[at.key()] = result, leaks
	r.mu.Unlock()
	if err := r.lost(ctx, cloud, at, begun, there); err != nil || result.Instances > 0 || last.At.IsZero() || last.Instances > 0 {
		return err // a place must be empty twice: what is made at this moment may not be listed yet
	}
	return r.unused(ctx, at, nil)
}

// unused forgets a place in which nothing is, unless it is declared or a record
// is of it; else it returns err.
func (r *Reconciler) unused(ctx context.Context, at place, err error) error {
	forgotten := false
	updated := r.store.Update(ctx, func(tx *store.Tx) error {
		forgotten = false
		places, err := readPlaces(tx.LockMeta(placesKey)) // declare adds to it: no pool comes meanwhile
		if err != nil || !slices.Contains(places, at) {
			return err
		}
		pools, err := tx.MachinePools(ctx)
		if err != nil {
			return err
		}
		for i := range pools {
			var c provider.Config
			if err := json.Unmarshal(pools[i].Config, &c); err != nil {
				return err
			}
			if slices.Contains(placesOf(&c, at.Home), at) {
				return nil
			}
		}
		vms, err := tx.VMsIn(ctx, at.Kind, at.Project, at.Zone, "", 1)
		if err != nil || len(vms) > 0 {
			return err
		}
		forgotten = true
		text, err := json.Marshal(slices.DeleteFunc(places, func(p place) bool { return p == at }))
		if err != nil {
			return err
		}
		return tx.SetMeta(placesKey, string(text))
	})
	if updated != nil {
		return errors.Join(err, updated)
	}
	if !forgotten {
		return err
	}
	r.o.Log.InfoContext(ctx, "a place has no machines any more and is not looked at again", "kind", at.Kind, "project", at.Project, "zone", at.Zone, "err", err)
	r.mu.Lock()
	delete(r.audits, at.key())
	delete(r.leaks, at.key())
	r.mu.Unlock()
	return nil
}

// leaked says that v, the record of an instance's id or nil, does not stand for
// the instance. A record is written before the instance and goes after it.
func leaked(v *store.VM, in *provider.Instance) bool {
	return v == nil || v.Hostname != in.Ref.Name || !v.Gone.IsZero() || strconv.FormatInt(v.Generation, 10) != in.Labels[provider.LabelGeneration]
}

// plug takes an instance without a record away. A list is old when it is read,
// and names are used again: what is there now must be the same, and still have
// no record. Where the store is older than the cloud, as a backup is, there are
// bots at work on such instances: they finish their tasks first.
func (r *Reconciler) plug(ctx context.Context, cloud provider.Provider, every time.Duration, in *provider.Instance, l *leak) error {
	now, err := cloud.Get(ctx, in.Ref)
	switch {
	case err != nil && provider.ClassOf(err) != provider.NotFound:
		return err
	case err != nil:
		return nil //nolint:nilerr // it is gone already
	case now.URL != in.URL || now.Labels[provider.LabelGeneration] != in.Labels[provider.LabelGeneration] || now.Labels[provider.LabelOwner] != r.owner:
		return nil // another one of this name
	}
	vms, err := r.store.VMsNamed(ctx, []string{in.Labels[provider.LabelVM]})
	if err != nil || !leaked(vms[in.Labels[provider.LabelVM]], in) {
		return err
	}
	if wait, err := r.occupied(ctx, every, in, l); wait || err != nil {
		return err
	}
	r.o.Log.WarnContext(ctx, "an instance without a record is taken away", "bot", in.Ref.Name, "machine", in.Labels[provider.LabelVM])
	generation, _ := strconv.ParseInt(in.Labels[provider.LabelGeneration], 10, 64)
	what := "plug"
	if !l.failed.IsZero() {
		what += "-" + strconv.FormatInt(l.failed.UnixMicro(), 36)
	}
	_, err = cloud.Delete(ctx, in.Ref, requestID(what, in.Ref.Name, generation))
	if e, ok := errors.AsType[*provider.Error](err); ok && e.Code == 200 {
		l.failed = r.o.Now()
	}
	if err != nil && provider.ClassOf(err) != provider.NotFound {
		return err
	}
	return nil
}

func onlyOther(err error) error {
	if skep.KindOf(err) == skep.NotFound {
		return nil
	}
	return err
}

// leak is what is remembered of an instance without a record between audits.
type leak struct {
	since  time.Time // it was seen first
	asked  time.Time // its bot was asked to end
	failed time.Time // the last operation did, and says so for ever: the next is another one
}

// occupied says that an instance without a record has a bot at work, which is
// asked to end, or may have one that was not heard of yet.
func (r *Reconciler) occupied(ctx context.Context, every time.Duration, in *provider.Instance, l *leak) (bool, error) {
	now := r.o.Now()
	server, bot, err := r.strayBot(ctx, in)
	if err != nil {
		return false, err
	}
	if !bot.Known || bot.LastSeen.Before(in.Created) { // nobody heard of its bot
		newer, err := r.newer(ctx, in)
		if err != nil {
			return false, err
		}
		if newer { // the store is older than the cloud
			r.o.Log.WarnContext(ctx, "an instance is newer than anything this database knows, which may be a backup; it is left alone for now",
				"bot", in.Ref.Name, "machine", in.Labels[provider.LabelVM], "until", l.since.Add(r.o.Patience.Silence))
			return now.Before(l.since.Add(r.o.Patience.Silence)), nil
		}
		return now.Before(r.begun().Add(every)), nil // bots may not have come back since this server began
	}
	switch v, err := r.store.VMByHostname(ctx, in.Ref.Name); {
	case err == nil && v.URL != "" && v.URL != in.URL:
		return false, nil // it is the bot of another instance, in another zone
	case err != nil && skep.KindOf(err) != skep.NotFound:
		return false, err
	}
	switch {
	case bot.Dead && bot.Terminated:
		return false, nil // it took leave
	case bot.Dead:
		return now.Before(bot.LastSeen.Add(r.o.Patience.Silence)), nil
	case !l.asked.IsZero() && now.Before(l.asked.Add(r.o.Patience.Terminate)):
		return true, nil
	}
	r.o.Log.WarnContext(ctx, "an instance without a record is to end after its task", "bot", in.Ref.Name, "machine", in.Labels[provider.LabelVM])
	fleet, err := r.fleetOf(server)
	if err != nil {
		return true, err
	}
	if _, err := fleet.Terminate(ctx, skep.BotID(in.Ref.Name), caller, "machine provider: it has no record of this machine"); err != nil && skep.KindOf(err) != skep.NotFound && !errors.Is(err, ErrNoAnswer) {
		return true, fmt.Errorf("terminate %s: %w", in.Ref.Name, err)
	}
	l.asked = now
	return true, nil
}

// newer says that an instance was planned after anything that its pool knows of.
func (r *Reconciler) newer(ctx context.Context, in *provider.Instance) (bool, error) {
	generation, err := strconv.ParseInt(in.Labels[provider.LabelGeneration], 10, 64)
	if err != nil {
		return false, nil //nolint:nilerr // a label that is no number is older than all
	}
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return false, err
	}
	for i := range pools {
		if strings.HasPrefix(in.Labels[provider.LabelVM], pools[i].Prefix+"-") && generation > pools[i].Generation {
			return true, nil
		}
	}
	return false, nil
}

// begun is when Run did.
func (r *Reconciler) begun() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running
}

// lost finds the machines of a place whose instance was there and is not: after
// a second look, they are gone.
func (r *Reconciler) lost(ctx context.Context, cloud provider.Provider, at place, begun time.Time, there map[string]bool) error {
	var suspects []*store.VM
	const page = 500
	for after := ""; ; {
		vms, err := r.store.VMsIn(ctx, at.Kind, at.Project, at.Zone, after, page)
		if err != nil {
			return err
		}
		for i := range vms {
			v := &vms[i]
			if at.has(v) && v.URL != "" && v.Created.Before(begun) && v.Deleting.IsZero() && v.Gone.IsZero() && !there[v.Hostname] && r.ours(v.Prefix) {
				suspects = append(suspects, v)
			}
		}
		if len(vms) < page {
			break
		}
		after = vms[page-1].ID
	}
	for _, v := range suspects {
		_, err := cloud.Get(ctx, ref(v))
		if err == nil {
			continue
		}
		if provider.ClassOf(err) != provider.NotFound {
			return fmt.Errorf("look at %s: %w", v.Hostname, err)
		}
		if !r.ours(v.Prefix) { // an audit may take long
			continue
		}
		r.o.Log.WarnContext(ctx, "a machine lost its instance", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
		err = r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
			n.Deleting, n.Gone = tx.Now, tx.Now
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ended takes away the instance of a machine that does not run any more, after
// a second look; then the machine is like one that lost it. What ended before
// its bot ever came would do so again: that machine keeps its place for a while
// and its pool says why.
func (r *Reconciler) ended(ctx context.Context, cloud provider.Provider, v *store.VM, in *provider.Instance) error {
	if v.URL != in.URL || !v.Deleting.IsZero() || !r.ours(v.Prefix) {
		return nil
	}
	if !v.Park.IsZero() || !v.Stopping.IsZero() || !v.Stopped.IsZero() { // it is to be stopped, and may be started again
		return nil
	}
	if v.Connected.IsZero() && r.o.Now().Before(v.Created.Add(max(v.Timeout, r.o.Patience.Silence))) {
		if v.Failure.At.IsZero() {
			r.note(ctx, v, &provider.Error{Class: provider.Invalid, Reason: "ended", Text: v.Hostname + " ended before its bot came; see what it wrote"}, pausing{})
		}
		return nil
	}
	now, err := cloud.Get(ctx, in.Ref)
	switch {
	case err != nil && provider.ClassOf(err) != provider.NotFound:
		return fmt.Errorf("look at %s: %w", v.Hostname, err)
	case err != nil || now.URL != in.URL || !now.Ended || !r.ours(v.Prefix):
		return nil //nolint:nilerr // it is gone, another one, or runs
	}
	r.o.Log.WarnContext(ctx, "a machine has ended and is taken away", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix)
	r.counts.destroy(v)
	_, err = cloud.Delete(ctx, in.Ref, requestID("ended", v.Hostname, v.Generation))
	if err != nil && provider.ClassOf(err) != provider.NotFound {
		r.o.Log.WarnContext(ctx, "it stays for the next audit", "bot", v.Hostname, "err", err)
		return ctx.Err()
	}
	if waitsInVain(v) {
		r.neverCame(ctx, v)
	}
	// Should that take long, or fail later, it is an instance without a record.
	return r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		n.Deleting, n.Gone = tx.Now, tx.Now
		return nil
	})
}

// auditPlace looks at the places of a kind, project and zone; done says that
// there is one for this reconciler to look at.
func (r *Reconciler) auditPlace(ctx context.Context, kind, project, zone string) (done bool, err error) {
	places, err := readPlaces(r.store.Meta(ctx, placesKey))
	if err != nil {
		return false, err
	}
	for _, p := range places {
		if p.Kind == kind && p.Project == project && p.Zone == zone && r.looksAt(p) {
			if err := r.audit(ctx, p); err != nil {
				return true, err
			}
			done = true
		}
	}
	return done, nil
}

// Audits returns what the last audits found.
func (r *Reconciler) Audits() []AuditResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]AuditResult, 0, len(r.audits))
	for _, a := range r.audits {
		out = append(out, a)
	}
	return out
}
