package machine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// Swarming is a Swarming server that is not this fleet's: what is asked of it
// about the bots that live there. Of a bot that it does not know it returns a
// NotFound error.
type Swarming interface {
	// Fleet is used with one more rule: an error of Terminate that wraps
	// ErrNoAnswer says that the bot may have been told all the same.
	Fleet
	// Bots returns the next page of bots, 1,000 or so, that have a dimension
	// pool:pool; of all with "". cursor is "" at first; next "" = that was all.
	Bots(ctx context.Context, pool, cursor string) (page []SwarmingBot, next string, err error)
	// Bot returns one of them.
	Bot(ctx context.Context, id skep.BotID) (store.VMBot, error)
	// Left reports whether a bot was told to end, and does, since then.
	Left(ctx context.Context, id skep.BotID, since time.Time) (bool, error)
}

// SwarmingBot is a bot as its server knows it.
type SwarmingBot struct {
	ID skep.BotID
	store.VMBot
}

// ErrNoAnswer says that a call may have been heeded.
var ErrNoAnswer = errors.New("no answer")

// Bounds of what is asked of another server. promises P2, P6.
const (
	pagesAtOnce = 8  // of one server
	pageTries   = 10 // of one page, with pauses of pageFirst to pageLast
	pageFirst   = 200 * time.Millisecond
	pageLast    = 10 * time.Second
	sweepLimit  = 10 * time.Minute // for all bots of one server
	seenEvery   = 5 * time.Minute  // that a bot is alive is stored; all else about it at once
)

// foreign returns the server that a Config names as that of its bots, in one
// way of writing; "" = it is this fleet's.
func (r *Reconciler) foreign(swarming string) string {
	if swarming == "" || r.o.Elsewhere == nil {
		return ""
	}
	server := ServerURL(swarming)
	if r.own[server] {
		return ""
	}
	return server
}

// ServerURL writes the URL of a server, or its host, in one way: servers are
// told apart by it.
func ServerURL(server string) string {
	u, err := url.Parse(serverURL(strings.TrimSpace(server)))
	if err != nil {
		return server
	}
	host := strings.ToLower(u.Host)
	if u.Scheme == "https" {
		host = strings.TrimSuffix(host, ":443")
	}
	return u.Scheme + "://" + host
}

// serverOf is the URL of the server that a machine's bot is to connect to.
func (r *Reconciler) serverOf(v *store.VM) string {
	switch one := ServerURL(v.Swarming); {
	case v.Swarming == "":
		return r.o.Server
	case r.own[one]:
		return one
	}
	return serverURL(v.Swarming)
}

// fleetOf returns who can be told about the bots of a server, "" = this fleet's.
func (r *Reconciler) fleetOf(server string) (Fleet, error) {
	if server == "" {
		return r.fleet, nil
	}
	return r.elsewhere(server)
}

func (r *Reconciler) elsewhere(server string) (Swarming, error) {
	if r.o.Elsewhere == nil {
		return nil, skep.Errorf(skep.Precondition, "this process asks nobody about the bots of %s", server)
	}
	return r.o.Elsewhere(server)
}

// listServers names the other servers that have bots of our machines.
func (r *Reconciler) listServers(ctx context.Context, each func(string)) error {
	if r.o.Elsewhere == nil {
		return nil
	}
	servers, err := r.store.ForeignServers(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	maps.DeleteFunc(r.swept, func(server string, _ sweep) bool { return servers[server] == nil })
	r.mu.Unlock()
	for server, prefixes := range servers {
		if slices.ContainsFunc(prefixes, r.ours) {
			each(server)
		}
	}
	return nil
}

// serverStep is the step of another server: a look at all of its bots, now and
// then.
func (r *Reconciler) serverStep(ctx context.Context, server string) (time.Duration, error) {
	servers, err := r.store.ForeignServers(ctx)
	if err != nil || !slices.ContainsFunc(servers[server], r.ours) {
		return 0, err // it is listed again when it has machines of ours
	}
	r.mu.Lock()
	last := r.swept[server]
	r.mu.Unlock()
	if wait := last.at.Add(r.o.Sweep).Sub(r.o.Now()); last.err == nil && !last.at.IsZero() && wait > 0 {
		return wait, nil
	}
	begun := r.o.Now()
	err = r.sweep(ctx, server, servers[server])
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return 0, ctx.Err()
	}
	r.mu.Lock()
	r.swept[server] = sweep{begun, err}
	r.mu.Unlock()
	if err != nil && last.err == nil {
		r.o.Log.WarnContext(ctx, "another server is not heard; nothing is done about its bots", "server", server, "err", err)
	}
	if err != nil {
		return 0, err
	}
	return max(begun.Add(r.o.Sweep).Sub(r.o.Now()), time.Millisecond), nil
}

// sweep is the last look at all bots of a server.
type sweep struct {
	at  time.Time // it began
	err error
}

// ServerState says how another server was heard last.
type ServerState struct {
	Server string
	At     time.Time
	Err    error
}

// Servers returns the other servers that this process asks, by URL.
func (r *Reconciler) Servers() []ServerState {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]ServerState, 0, len(r.swept))
	for server, s := range r.swept {
		out = append(out, ServerState{server, s.at, s.err})
	}
	slices.SortFunc(out, func(a, b ServerState) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// sweep looks at all bots of a server that may be those of our machines, and
// then for those of our machines that were not among them. prefixes are the
// pools that have machines there.
func (r *Reconciler) sweep(ctx context.Context, server string, prefixes []string) error {
	s, err := r.elsewhere(server)
	if err != nil {
		return err
	}
	pools, err := r.swarmingPools(ctx, server, prefixes)
	if err != nil {
		return err
	}
	l := &listing{r: r, s: s, server: server, begun: r.o.Now(), filtered: pools[0] != "", seen: map[string]bool{}}
	g, pages := errgroup.WithContext(ctx)
	g.SetLimit(pagesAtOnce)
	for _, pool := range pools {
		g.Go(func() error { return l.read(pages, pool) })
	}
	err = g.Wait()
	began := false
	if ctx.Err() == nil || !errors.Is(context.Cause(ctx), context.Canceled) {
		after, cancel := aftermath(ctx)
		defer cancel()
		err = errors.Join(err, r.store.Update(after, func(tx *store.Tx) (err2 error) {
			began, err2 = tx.SaveForeignServer(server, err == nil)
			return err2
		}))
	}
	if err != nil {
		return err
	}
	return l.rest(ctx, began)
}

// swarmingPools are the values of the dimension pool that the bots of pools
// have, by which a server can be asked for them; {""} = all of its bots are to
// be looked at.
func (r *Reconciler) swarmingPools(ctx context.Context, server string, prefixes []string) ([]string, error) {
	r.mu.Lock()
	all := r.unfiltered[server]
	r.mu.Unlock()
	var pools []string
	for _, prefix := range prefixes {
		p, err := r.store.MachinePool(ctx, prefix)
		if skep.KindOf(err) == skep.NotFound && err != nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		var c provider.Config
		if err := json.Unmarshal(p.Config, &c); err != nil {
			return nil, err
		}
		if len(c.SwarmingPools) == 0 || r.foreign(c.Swarming) != server { // older machines may be of other pools
			all = true
		}
		pools = append(pools, c.SwarmingPools...)
	}
	if all || len(pools) == 0 {
		return []string{""}, nil
	}
	slices.Sort(pools)
	return slices.Compact(pools), nil
}

// listing is one look at all bots of a server.
type listing struct {
	r        *Reconciler
	s        Swarming
	server   string
	begun    time.Time
	filtered bool

	mu   sync.Mutex
	seen map[string]bool // names of our machines
}

// read reads one chain of pages. promise P6: a page that fails is asked for
// again, and no other.
func (l *listing) read(ctx context.Context, pool string) error {
	for cursor := ""; ; {
		asked := l.r.o.Now()
		page, next, err := l.page(ctx, pool, cursor)
		if err != nil {
			return fmt.Errorf("list the bots of %s: %w", l.server, err)
		}
		if err := l.note(ctx, asked, page); err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		if next == cursor {
			return fmt.Errorf("list the bots of %s: it says that a page follows itself", l.server)
		}
		cursor = next
	}
}

func (l *listing) page(ctx context.Context, pool, cursor string) (page []SwarmingBot, next string, err error) {
	pause := backoff.Exponential{Min: pageFirst, Max: pageLast}
	for range pageTries {
		page, next, err = l.s.Bots(ctx, pool, cursor)
		if err == nil || isFinal(err) {
			return page, next, err
		}
		if pause.Sleep(ctx, 0) != nil {
			break
		}
	}
	return nil, "", err
}

// isFinal says that a call would be refused again.
func isFinal(err error) bool {
	return slices.Contains([]skep.Kind{skep.Invalid, skep.Denied, skep.Unauthenticated, skep.NotFound, skep.Precondition}, skep.KindOf(err))
}

// note stores what is new about the bots of our machines. asked is when their
// server was.
func (l *listing) note(ctx context.Context, asked time.Time, page []SwarmingBot) error {
	names := make([]string, len(page))
	for i := range page {
		names[i] = string(page[i].ID)
	}
	vms, err := l.r.store.VMsByHostname(ctx, l.server, names)
	if err != nil {
		return err
	}
	var changed []*store.VM
	for i := range page {
		v := vms[names[i]]
		if v == nil || !l.r.ours(v.Prefix) {
			continue
		}
		l.mu.Lock()
		l.seen[v.Hostname] = true
		l.mu.Unlock()
		b := page[i].VMBot
		b.Heard = asked
		if err := l.r.tookLeave(ctx, l.s, v, &b); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.r.o.Log.WarnContext(ctx, "whether a dead bot was told to end is not known yet", "bot", v.Hostname, "server", l.server, "err", err)
			continue // the next look finds it
		}
		if isNews(&v.Bot, &b) {
			v.Bot = b
			changed = append(changed, v)
		}
	}
	if err := l.r.saveBots(ctx, changed); err != nil {
		return err
	}
	for _, v := range changed {
		l.r.loop.Wake(vmKey(v))
	}
	return nil
}

// tookLeave notes of a bot that is found to be dead whether it was told to end:
// servers need not say so in its record. They are asked once for each death.
func (r *Reconciler) tookLeave(ctx context.Context, s Swarming, v *store.VM, b *store.VMBot) (err error) {
	if !b.Dead || b.Terminated {
		return nil
	}
	if v.Bot.Known && v.Bot.Dead && b.LastSeen.Sub(v.Bot.LastSeen).Abs() < seenEvery {
		b.Terminated = v.Bot.Terminated
		return nil
	}
	if v.Created.IsZero() || b.LastSeen.Before(v.Inserted) { // it is an earlier machine's
		return nil
	}
	b.Terminated, err = s.Left(ctx, skep.BotID(v.Hostname), v.Created)
	if err != nil && isFinal(err) {
		err = nil // nobody says so
	}
	return err
}

// isNews says that what a server says of a bot now must be stored.
func isNews(old, now *store.VMBot) bool {
	return !old.Known || old.Dead != now.Dead || old.Terminated != now.Terminated || old.Ill != now.Ill || (old.Task != 0) != (now.Task != 0) ||
		now.LastSeen.Sub(old.LastSeen).Abs() >= seenEvery || now.FirstSeen.Sub(old.FirstSeen).Abs() >= seenEvery
}

// saveBots stores the bots of machines as they were heard of.
func (r *Reconciler) saveBots(ctx context.Context, vms []*store.VM) error {
	if len(vms) == 0 {
		return nil
	}
	slices.SortFunc(vms, func(a, b *store.VM) int { return cmp.Compare(a.Hostname, b.Hostname) }) // rows are locked in one order
	return r.store.Update(ctx, func(tx *store.Tx) error {
		for _, v := range vms {
			if err := tx.SaveForeignBot(v.Server, v.Hostname, v.Bot); err != nil {
				return err
			}
		}
		return nil
	})
}

// rest asks about the bots of our machines that were known and are not among
// those that were listed. began says that the server answers again: all of our
// machines there are looked at.
func (l *listing) rest(ctx context.Context, began bool) error {
	const page = 500
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pagesAtOnce)
	for after := ""; ; {
		vms, err := l.r.store.VMsAt(ctx, l.server, after, page)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		for i := range vms {
			v := &vms[i]
			if !l.r.ours(v.Prefix) {
				continue
			}
			if began {
				l.r.loop.Wake(vmKey(v))
			}
			if !v.Bot.Known || l.seen[v.Hostname] || v.Bot.Heard.After(l.begun) || !v.Gone.IsZero() {
				continue
			}
			g.Go(func() error {
				b, err := l.r.ask(ctx, v)
				if err == nil && l.filtered && b.Known && b.FirstSeen.Before(l.begun) {
					l.r.unfilter(ctx, l.server, v)
				}
				l.r.loop.Wake(vmKey(v))
				return err
			})
		}
		if len(vms) < page {
			return g.Wait()
		}
		after = vms[page-1].ID
	}
}

// unfilter has all bots of a server looked at from now on: some of our machines
// have not the pools that are declared for them.
func (r *Reconciler) unfilter(ctx context.Context, server string, v *store.VM) {
	r.mu.Lock()
	was := r.unfiltered[server]
	r.unfiltered[server] = true
	r.mu.Unlock()
	if !was {
		r.o.Log.WarnContext(ctx, "a bot has none of the swarming_pools that are declared for it; all bots of its server are looked at from now on", "bot", v.Hostname, "pool", v.Prefix, "server", server)
	}
}

// ask asks the server of a machine's bot about it, and stores what it says.
func (r *Reconciler) ask(ctx context.Context, v *store.VM) (store.VMBot, error) {
	s, err := r.elsewhere(v.Server)
	if err != nil {
		return store.VMBot{}, err
	}
	asked := r.o.Now()
	b, err := s.Bot(ctx, skep.BotID(v.Hostname))
	if skep.KindOf(err) == skep.NotFound && err != nil {
		b, err = store.VMBot{}, nil
	}
	if err == nil {
		err = r.tookLeave(ctx, s, v, &b)
	}
	if err != nil {
		return b, fmt.Errorf("ask %s about %s: %w", v.Server, v.Hostname, err)
	}
	b.Heard = asked
	now := *v
	now.Bot = b
	return b, r.saveBots(ctx, []*store.VM{&now})
}

// terminateElsewhere is terminateBot for a bot of another server. That it was
// asked is written down before: whoever comes after a crash does not ask again
// within the hour. promise P19.
func (r *Reconciler) terminateElsewhere(ctx context.Context, v *store.VM, why string) error {
	s, err := r.elsewhere(v.Server)
	if err != nil {
		return err
	}
	before, ok := v.Asked, false
	err = r.change(ctx, v.ID, v.Generation, func(tx *store.Tx, n *store.VM) error {
		step, _ := Next(r.o.Now(), n, r.o.Patience)
		if ok = step == TerminateBot && n.Asked.Equal(before); ok {
			n.Asked = tx.Now
		}
		return nil
	})
	if err != nil || !ok {
		return err
	}
	task, err := s.Terminate(ctx, skep.BotID(v.Hostname), caller, why)
	after, cancel := aftermath(ctx)
	defer cancel()
	switch {
	case skep.KindOf(err) == skep.NotFound && err != nil:
		return nil
	case errors.Is(err, ErrNoAnswer):
		r.o.Log.WarnContext(ctx, "a server may not have heard that a bot is to end; it is told again later", "machine", v.ID, "bot", v.Hostname, "server", v.Server, "after", r.o.Patience.Terminate, "err", err)
		return nil
	case err != nil:
		return errors.Join(fmt.Errorf("terminate %s at %s: %w", v.Hostname, v.Server, err), r.change(after, v.ID, v.Generation, func(_ *store.Tx, n *store.VM) error {
			n.Asked = before
			return nil
		}))
	}
	r.o.Log.InfoContext(ctx, "machine is to end", "machine", v.ID, "bot", v.Hostname, "pool", v.Prefix, "server", v.Server, "why", why)
	return r.change(after, v.ID, v.Generation, func(_ *store.Tx, n *store.VM) error {
		n.AskedTask = task
		return nil
	})
}

// strayBot finds the bot of an instance without a record: at the server where
// the bots of its pool live, or, of a pool that is not there any more, at any
// that was ever asked. Nobody knows it = a zero VMBot.
func (r *Reconciler) strayBot(ctx context.Context, in *provider.Instance) (server string, b store.VMBot, err error) {
	pools, err := r.store.MachinePools(ctx)
	if err != nil {
		return "", b, err
	}
	var servers []string
	for i := range pools {
		if !strings.HasPrefix(in.Labels[provider.LabelVM], pools[i].Prefix+"-") {
			continue
		}
		var c provider.Config
		if err := json.Unmarshal(pools[i].Config, &c); err != nil {
			return "", b, err
		}
		servers = append(servers, r.foreign(c.Swarming))
	}
	if len(servers) == 0 && r.o.Elsewhere != nil {
		known, err := r.store.KnownServers(ctx)
		if err != nil {
			return "", b, err
		}
		servers = known
	}
	if !slices.Contains(servers, "") {
		servers = append(servers, "")
	}
	for _, server := range servers {
		if server == "" {
			own, err := r.store.Bot(ctx, skep.BotID(in.Ref.Name))
			if err == nil {
				return "", store.VMBot{Known: true, FirstSeen: own.FirstSeen, LastSeen: own.LastSeen, Dead: own.Dead, Terminated: own.Terminated != 0, Task: own.Task}, nil
			}
			if skep.KindOf(err) != skep.NotFound {
				return "", b, err
			}
			continue
		}
		s, err := r.elsewhere(server)
		if err != nil {
			return server, b, err
		}
		if b, err = s.Bot(ctx, skep.BotID(in.Ref.Name)); err == nil {
			return server, b, nil
		}
		if skep.KindOf(err) != skep.NotFound {
			return server, b, fmt.Errorf("ask %s about %s: %w", server, in.Ref.Name, err)
		}
	}
	return "", store.VMBot{}, nil
}
