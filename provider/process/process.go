// Package process is the cloud on a laptop: an instance is a directory of this
// host and a bot in it, kept alive as a service manager keeps a machine's.
//
// Instances outlive whoever made them, killed or not, with their tasks: the
// next Provider over the same directory finds them and looks after them on.
package process

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/host/supervise"
	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/backoff"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/provider"
)

// Options of New. Bot is required.
type Options struct {
	Dir string // holds the instances; no other process uses it
	// Bot returns how the bot of an instance, which has these labels and is to be
	// in these pools, is kept in its directory.
	Bot func(name, dir string, labels map[string]string, pools []string) (supervise.Bot, error)
	// Ended reports whether the bot of an instance ended for good, by what its
	// server knows: it is not started again. It is asked for instances of an
	// earlier run that have no process. nil = none did.
	Ended func(name string) bool
	Grace time.Duration // between the order to stop and the kill; 0 = 30 s
	Host  string        // of the instances' URLs
	// Servers are the URLs of the server that Bot's bots speak to: an order for
	// bots of another is refused. nil = none is.
	Servers []string
	Log     *slog.Logger
}

var (
	_ provider.Provider = (*Provider)(nil)
	_ provider.Stopper  = (*Provider)(nil)
)

// Provider makes instances on this host. Its methods may be called at once by
// many.
type Provider struct {
	o    Options
	ctx  context.Context // of the bots' keepers; ends with Close
	stop context.CancelFunc
	kept sync.WaitGroup

	mu        sync.Mutex
	instances map[string]*instance
	draining  bool
}

// instance is one of them.
type instance struct {
	record
	keeper *supervise.Supervisor // nil = its bot has ended
	over   chan struct{}         // closed when the keeper has ended
}

// record is what is on disk of an instance, beside its directory.
type record struct {
	Name      string            `json:"name"`
	RequestID string            `json:"request_id"`
	Created   time.Time         `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
	Pools     []string          `json:"pools,omitempty"`
	Deleting  bool              `json:"deleting,omitempty"`
	Stopped   bool              `json:"stopped,omitempty"` // its bot is not to run
}

const (
	recordSuffix = ".json"
	goneDir      = ".gone" // names of requests whose instances are gone
	goneLife     = 24 * time.Hour
	pageSize     = 500
)

// name is what a host may be called.
var name = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// New returns a Provider and looks after what is in its directory. Close it.
func New(o Options) (*Provider, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Grace = cmp.Or(o.Grace, 30*time.Second)
	p := &Provider{o: o, instances: map[string]*instance{}}
	if err := os.MkdirAll(filepath.Join(o.Dir, goneDir), 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, err
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue
		}
		r, err := readRecord(filepath.Join(o.Dir, e.Name()))
		if err == nil && r.Name != base {
			err = fmt.Errorf("it is of %q", r.Name)
		}
		if err != nil {
			o.Log.Error("an instance cannot be read; it is left alone", "bot", base, "err", err)
			continue
		}
		p.instances[r.Name] = &instance{record: r}
	}
	for _, in := range p.instances {
		err := p.keep(in, true)
		if err != nil {
			o.Log.Error("the bot of an instance cannot be kept", "bot", in.Name, "err", err)
		}
		if in.Deleting {
			p.remove(in)
		}
	}
	return p, nil
}

func readRecord(path string) (r record, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// Close ends looking after the instances. They go on.
func (p *Provider) Close() {
	p.stop()
	p.kept.Wait()
}

// DrainAll has every bot finish its task and end, until Close: the next Provider
// starts them again. Wait waits for that.
func (p *Provider) DrainAll() { p.end((*supervise.Supervisor).Drain) }

// StopAll has every bot cancel its task and end, as DrainAll does.
func (p *Provider) StopAll() { p.end((*supervise.Supervisor).Stop) }

func (p *Provider) end(how func(*supervise.Supervisor)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = true
	for _, in := range p.instances {
		if in.keeper != nil {
			how(in.keeper)
		}
	}
}

// Wait returns when no bot runs any more, or with ctx's error.
func (p *Provider) Wait(ctx context.Context) error {
	p.mu.Lock()
	var over []chan struct{}
	for _, in := range p.instances {
		if in.keeper != nil {
			over = append(over, in.over)
		}
	}
	p.mu.Unlock()
	for _, c := range over {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Has reports whether there is an instance of this name whose bot has a process.
func (p *Provider) Has(name string) bool {
	p.mu.Lock()
	in := p.instances[name]
	p.mu.Unlock()
	return in != nil && in.keeper != nil && in.keeper.Has(name)
}

// dir is the directory of an instance's bot.
func (p *Provider) dir(name string) string { return filepath.Join(p.o.Dir, name) }

func (p *Provider) path(name string) string { return filepath.Join(p.o.Dir, name+recordSuffix) }

// keep starts the keeper of an instance's bot. found says that the instance is
// of an earlier run: its bot may run, or may have ended for good.
func (p *Provider) keep(in *instance, found bool) error {
	b, err := p.o.Bot(in.Name, p.dir(in.Name), in.Labels, in.Pools)
	if err != nil {
		return err
	}
	b.ID, b.Dir = in.Name, p.dir(in.Name)
	if found && (in.Deleting || in.Stopped || p.o.Ended != nil && p.o.Ended(in.Name)) {
		b.Retired = true
	}
	prepare := b.Prepare
	b.Prepare = func() (string, error) {
		if _, err := os.Stat(p.path(in.Name)); err != nil {
			p.lose(in)
			return "", fmt.Errorf("its instance is lost: %w", err)
		}
		return prepare()
	}
	keeper, over := supervise.New([]supervise.Bot{b}, supervise.Options{Log: p.o.Log, MaxPause: 5 * time.Second}), make(chan struct{})
	in.keeper, in.over = keeper, over
	p.kept.Go(func() {
		defer close(over)
		_ = keeper.Run(p.ctx) // says only that ctx ended
	})
	return nil
}

// lose clears away what is left of an instance whose record somebody took.
func (p *Provider) lose(in *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.there(in.Name)
}

// Create implements provider.Provider. An instance is there when it returns.
func (p *Provider) Create(ctx context.Context, o provider.Order) (done bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if !name.MatchString(o.Name) {
		return true, &provider.Error{Class: provider.Invalid, Reason: "NAME", Text: fmt.Sprintf("%q is not the name of a host: letters a-z, digits and dashes, 63 at most", o.Name)}
	}
	if p.o.Servers != nil && !slices.Contains(p.o.Servers, o.Server) {
		return true, &provider.Error{Class: provider.Invalid, Reason: "SERVER", Text: fmt.Sprintf("machines of kind process are bots of this server, not of %s: leave swarming out, or take another kind", o.Server)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch in := p.instances[o.Name]; {
	case in != nil && in.RequestID == o.RequestID:
		return true, nil
	case in != nil:
		return true, &provider.Error{Class: provider.Conflict, Code: 409, Reason: "ALREADY_EXISTS", Text: "there is an instance " + o.Name}
	case p.draining:
		return false, &provider.Error{Class: provider.Transient, Reason: "DRAINING", Text: "this host takes no new instances now"}
	}
	if _, err := os.Stat(p.gone(o.RequestID)); err == nil {
		return true, nil // it was there
	}
	if _, err := os.Stat(p.dir(o.Name)); err == nil {
		return true, &provider.Error{Class: provider.Conflict, Code: 409, Reason: "DIRECTORY_EXISTS", Text: "there is a directory of an instance " + o.Name}
	}
	in := &instance{record: record{Name: o.Name, RequestID: o.RequestID, Created: time.Now().UTC(), Labels: maps.Clone(o.Labels), Pools: o.Attributes.Pools}}
	if err := p.save(in); err != nil {
		return false, failed(err)
	}
	if err := p.keep(in, false); err != nil {
		return false, failed(errors.Join(err, os.Remove(p.path(in.Name))))
	}
	p.instances[in.Name] = in
	return true, nil
}

func (p *Provider) gone(requestID string) string {
	return filepath.Join(p.o.Dir, goneDir, filepath.Base(requestID))
}

func failed(err error) error {
	return &provider.Error{Class: provider.Transient, Reason: "HOST", Text: err.Error()}
}

func (p *Provider) save(in *instance) error {
	b, err := json.Marshal(in.record)
	if err != nil {
		return err
	}
	return atomicfile.Write(p.path(in.Name), append(b, '\n'), 0o600)
}

// there returns an instance unless it, or its record, is gone.
func (p *Provider) there(name string) *instance {
	in := p.instances[name]
	if in == nil {
		return nil
	}
	if _, err := os.Stat(p.path(name)); !errors.Is(err, fs.ErrNotExist) {
		return in
	}
	// Somebody took it away: what is left of it goes too.
	if !in.Deleting {
		in.Deleting = true
		p.remove(in)
	}
	return nil
}

// Get implements provider.Provider.
func (p *Provider) Get(ctx context.Context, r provider.Ref) (provider.Instance, error) {
	if ctx.Err() != nil {
		return provider.Instance{}, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	in := p.there(r.Name)
	if in == nil {
		return provider.Instance{}, &provider.Error{Class: provider.NotFound, Code: 404, Reason: "NOT_FOUND", Text: "no instance " + r.Name}
	}
	return p.describe(in), nil
}

func (p *Provider) describe(in *instance) provider.Instance {
	return provider.Instance{
		Ref: provider.Ref{Name: in.Name}, URL: "process://" + p.o.Host + "/" + in.Name + "#" + in.RequestID, Created: in.Created, Labels: maps.Clone(in.Labels),
	}
}

// Delete implements provider.Provider.
func (p *Provider) Delete(ctx context.Context, r provider.Ref, _ string) (done bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	in := p.there(r.Name)
	if in == nil {
		return true, nil
	}
	if in.Deleting {
		return false, nil
	}
	in.Deleting = true
	if err := p.save(in); err != nil {
		in.Deleting = false
		return false, failed(err)
	}
	p.remove(in)
	return false, nil
}

// present returns an instance that is not being taken away, or an Error.
func (p *Provider) present(name string) (*instance, error) {
	switch in := p.there(name); {
	case in == nil:
		return nil, &provider.Error{Class: provider.NotFound, Code: 404, Reason: "NOT_FOUND", Text: "no instance " + name}
	case in.Deleting:
		return nil, &provider.Error{Class: provider.Transient, Reason: "NOT_READY", Text: "instance " + name + " is being taken away"}
	default:
		return in, nil
	}
}

// Stop implements provider.Stopper: the bot ends, and its directory stays.
func (p *Provider) Stop(ctx context.Context, r provider.Ref, _ string) (done bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	in, err := p.present(r.Name)
	if err != nil {
		return false, err
	}
	if !in.Stopped {
		in.Stopped = true
		if err := p.save(in); err != nil {
			in.Stopped = false
			return false, failed(err)
		}
		if keeper, over := in.keeper, in.over; keeper != nil {
			keeper.Stop()
			p.kept.Go(func() {
				kill := time.AfterFunc(p.o.Grace, keeper.Kill)
				defer kill.Stop()
				<-over
			})
		}
	}
	return in.ended(), nil
}

// ended reports whether nothing of an instance's bot runs.
func (in *instance) ended() bool {
	if in.keeper == nil {
		return true
	}
	select {
	case <-in.over:
		return true
	default:
		return false
	}
}

// Start implements provider.Stopper.
func (p *Provider) Start(ctx context.Context, r provider.Ref, _ string) (done bool, err error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	in, err := p.present(r.Name)
	switch {
	case err != nil:
		return false, err
	case !in.Stopped:
		return true, nil
	case p.draining:
		return false, &provider.Error{Class: provider.Transient, Reason: "DRAINING", Text: "this host starts no instances now"}
	case !in.ended():
		return false, nil
	}
	in.Stopped = false
	if err := p.save(in); err != nil {
		in.Stopped = true
		return false, failed(err)
	}
	if err := p.keep(in, false); err != nil {
		in.Stopped = true
		return false, failed(errors.Join(err, p.save(in)))
	}
	return true, nil
}

// remove takes an instance away, in the background.
func (p *Provider) remove(in *instance) {
	keeper, over := in.keeper, in.over
	if keeper != nil {
		keeper.Stop()
	}
	p.kept.Go(func() {
		if keeper != nil {
			kill := time.AfterFunc(p.o.Grace, keeper.Kill)
			defer kill.Stop()
			<-over
		}
		pause := backoff.Exponential{Max: time.Minute}
		for p.ctx.Err() == nil {
			err := p.clear(in)
			if err == nil {
				return
			}
			p.o.Log.Warn("an instance is not gone; it is tried again", "bot", in.Name, "err", err)
			_ = pause.Sleep(p.ctx, 0)
		}
	})
}

// clear removes what is on disk of an instance whose bot has ended, its record
// last.
func (p *Provider) clear(in *instance) error {
	if p.ctx.Err() != nil { // the bot may run on
		return p.ctx.Err()
	}
	if err := debris.Remove(p.dir(in.Name)); err != nil {
		return err
	}
	p.prune()
	if err := os.WriteFile(p.gone(in.RequestID), nil, 0o600); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := os.Remove(p.path(in.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if p.instances[in.Name] == in {
		delete(p.instances, in.Name)
	}
	return nil
}

// prune forgets requests that nobody repeats any more.
func (p *Provider) prune() {
	entries, err := os.ReadDir(filepath.Join(p.o.Dir, goneDir))
	if err != nil {
		return
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > goneLife {
			_ = os.Remove(filepath.Join(p.o.Dir, goneDir, e.Name()))
		}
	}
}

// List implements provider.Provider. There is one place, "".
func (p *Provider) List(ctx context.Context, _ provider.Scope, token string) (page []provider.Instance, next string, err error) {
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(p.instances)) {
		if name <= token {
			continue
		}
		in := p.there(name)
		if in == nil {
			continue
		}
		if len(page) == pageSize {
			return page, page[pageSize-1].Ref.Name, nil
		}
		page = append(page, p.describe(in))
	}
	return page, "", nil
}
