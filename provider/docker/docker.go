// Package docker is the Provider of a container engine: a machine is a
// container of deploy/bot-image, or of another image that becomes a bot in the
// same way. docs/hosts.md says how the image does.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/engine"
	"github.com/skepdev/skep/provider"
)

// LabelRequest is the request that a container was made for.
const LabelRequest = "skep-request"

const (
	pullTimeout = 30 * time.Minute
	maxPulls    = 4 // at once
	logLimit    = 4 << 20
)

// Options of a Provider.
type Options struct {
	Engine     engine.Engine
	Network    string   // of containers whose pool names none; "" = the engine's default
	ExtraHosts []string // "name:address"

	// For bots of these servers, by their URLs, alone:
	Servers []string
	CAFile  string // on the engine's host, PEM certificates that vouch for them; "" = those of the image
	// Token makes what a container's bot buys a credential of its own with, once
	// (decisions.md 10): who may ask the engine sees it. nil or "" = none is needed.
	Token func(ctx context.Context, bot string) (string, error)
}

// Provider is a container engine.
type Provider struct {
	o      Options
	ctx    context.Context // of pulls
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	pulls map[string]*pull // by image
}

// pull is one that goes on, or that has failed and was not told yet.
type pull struct {
	ended bool
	err   error
}

var (
	_ provider.Provider = (*Provider)(nil)
	_ provider.Stopper  = (*Provider)(nil)
)

// New returns the Provider of an engine, which is asked nothing yet.
func New(o Options) *Provider {
	ctx, cancel := context.WithCancel(context.Background())
	return &Provider{o: o, ctx: ctx, cancel: cancel, pulls: map[string]*pull{}}
}

// Close ends pulls and returns when they have.
func (p *Provider) Close() {
	p.cancel()
	p.wg.Wait()
}

// Create implements provider.Provider. The image is named by its digest, as
// "NAME@sha256:…" which is pulled when it is missing, or as the "sha256:…" of
// one that the engine has.
func (p *Provider) Create(ctx context.Context, o provider.Order) (bool, error) {
	image := o.Attributes.Image
	if engine.Digest(image) == "" && !strings.HasPrefix(image, "sha256:") {
		return false, &provider.Error{Class: provider.Invalid, Reason: "image", Text: fmt.Sprintf("image %q has no digest; name it as NAME@sha256:…, so that all machines of the pool are the same", image)}
	}
	if o.Name == "" {
		return false, &provider.Error{Class: provider.Invalid, Reason: "name", Text: "the machine has no name"}
	}
	c, err := p.find(ctx, o.Name)
	if isNotFound(err) {
		c, err = p.make(ctx, o)
	}
	switch {
	case err != nil:
		return false, err
	case c.ID == "": // on its way
		return false, nil
	case c.Labels[LabelRequest] != o.RequestID:
		return false, &provider.Error{Class: provider.Conflict, Reason: "name", Text: fmt.Sprintf("another container is called %s", o.Name)}
	case c.State != engine.Created: // it runs, or has: a bot that ends is not started again
		return true, nil
	}
	if err := p.o.Engine.Start(ctx, c.ID); err != nil {
		return false, classed(ctx, err)
	}
	return true, nil
}

// make makes a container, which is not started; its ID is "" when that
// takes longer: its image is pulled, or another call is at it.
func (p *Provider) make(ctx context.Context, o provider.Order) (engine.Container, error) {
	labels := map[string]string{}
	maps.Copy(labels, o.Attributes.Labels)
	maps.Copy(labels, o.Labels) // whose it is cannot be declared away
	labels[LabelRequest] = o.RequestID
	env := []string{"SWARM_URL=" + strings.TrimSuffix(o.Server, "/") + "/bot_code"}
	var mounts []engine.Mount
	if len(o.Attributes.Pools) > 0 {
		env = append(env, provider.EnvPools+"="+strings.Join(o.Attributes.Pools, ","))
	}
	ours := slices.Contains(p.o.Servers, o.Server)
	if p.o.CAFile != "" && ours {
		mounts = append(mounts, engine.Mount{Source: p.o.CAFile, Target: "/etc/skep/ca.pem", ReadOnly: true})
		env = append(env, "SKEP_CA_FILE=/etc/skep/ca.pem")
	}
	if o.Device != "" {
		env = append(env, "SKEP_DEVICE="+o.Device)
	}
	if p.o.Token != nil && ours {
		token, err := p.o.Token(ctx, o.Name)
		if err != nil {
			return engine.Container{}, &provider.Error{Class: provider.Transient, Reason: "token", Text: err.Error()}
		}
		if token != "" {
			env = append(env, "SKEP_BOOTSTRAP_TOKEN="+token)
		}
	}
	id, err := p.o.Engine.Create(ctx, engine.Spec{
		Name: o.Name, Hostname: o.Name, Image: o.Attributes.Image, Labels: labels, Env: env, Mounts: mounts,
		Network: cmp.Or(o.Attributes.Network, p.o.Network), ExtraHosts: p.o.ExtraHosts, StopSignal: "SIGTERM", LogLimit: logLimit,
	})
	switch skep.KindOf(err) {
	case skep.NotFound:
		if _, gone := p.o.Engine.Image(ctx, o.Attributes.Image); skep.KindOf(gone) == skep.NotFound {
			return engine.Container{}, p.fetch(o.Attributes.Image)
		}
	case skep.Conflict: // somebody was faster, perhaps for the same request
		c, err := p.find(ctx, o.Name)
		if isNotFound(err) { // the engine reserves the name first
			return engine.Container{}, nil
		}
		return c, err
	default:
	}
	if err != nil {
		return engine.Container{}, classed(ctx, err)
	}
	return engine.Container{ID: id, State: engine.Created, Labels: labels}, nil
}

// fetch begins to pull an image, or says how the last pull failed.
func (p *Provider) fetch(image string) error {
	if engine.Digest(image) == "" {
		return &provider.Error{Class: provider.Invalid, Reason: "image", Text: fmt.Sprintf("the engine has no image %s, and no name to pull it by", image)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	running := 0
	for _, other := range p.pulls {
		if !other.ended {
			running++
		}
	}
	switch now := p.pulls[image]; {
	case now != nil && !now.ended:
		return nil
	case now != nil: // told once; the next call tries anew
		delete(p.pulls, image)
		return now.err
	case running >= maxPulls || p.ctx.Err() != nil:
		return &provider.Error{Class: provider.Transient, Reason: "pulls", Text: fmt.Sprintf("%d images are pulled already", running)}
	}
	if len(p.pulls) > 100 { // failures that nobody came back for
		maps.DeleteFunc(p.pulls, func(_ string, one *pull) bool { return one.ended })
	}
	one := &pull{}
	p.pulls[image] = one
	p.wg.Go(func() {
		ctx, cancel := context.WithTimeout(p.ctx, pullTimeout)
		defer cancel()
		err := p.o.Engine.Pull(ctx, image)
		p.mu.Lock()
		defer p.mu.Unlock()
		one.ended = true
		switch {
		case err == nil:
			delete(p.pulls, image)
		case skep.KindOf(err) == skep.NotFound, skep.KindOf(err) == skep.Invalid:
			one.err = &provider.Error{Class: provider.Invalid, Reason: "image", Text: err.Error()}
		default:
			one.err = &provider.Error{Class: provider.Transient, Reason: "pull", Text: err.Error()}
		}
	})
	return nil
}

// find returns the container of a name. The engine takes a piece of an id for
// a name too.
func (p *Provider) find(ctx context.Context, name string) (engine.Container, error) {
	if name == "" {
		return engine.Container{}, &provider.Error{Class: provider.Invalid, Reason: "name", Text: "the machine has no name"}
	}
	c, err := p.o.Engine.Inspect(ctx, name)
	if err != nil {
		return engine.Container{}, classed(ctx, err)
	}
	if c.Name != name {
		return engine.Container{}, &provider.Error{Class: provider.NotFound, Reason: "container", Text: "no container is called " + name}
	}
	return c, nil
}

// Get implements provider.Provider.
func (p *Provider) Get(ctx context.Context, r provider.Ref) (provider.Instance, error) {
	c, err := p.find(ctx, r.Name)
	if err != nil {
		return provider.Instance{}, err
	}
	return made(provider.Scope{Project: r.Project, Zone: r.Zone}, c), nil
}

func made(s provider.Scope, c engine.Container) provider.Instance {
	return provider.Instance{
		Ref: provider.Ref{Project: s.Project, Zone: s.Zone, Name: c.Name},
		URL: "container:" + c.ID, Created: c.Created, Labels: c.Labels,
		Ended: c.State == engine.Exited || c.State == engine.Dead,
	}
}

// Delete implements provider.Provider. A container that no provider made is
// refused, whatever it is called.
func (p *Provider) Delete(ctx context.Context, r provider.Ref, _ string) (bool, error) {
	c, err := p.own(ctx, r.Name)
	if isNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if err := p.o.Engine.Remove(ctx, c.ID); err != nil { // by id: a later one of the name is another
		return false, classed(ctx, err)
	}
	return true, nil
}

// own is find for a container that is one of a provider's.
func (p *Provider) own(ctx context.Context, name string) (engine.Container, error) {
	c, err := p.find(ctx, name)
	if err == nil && c.Labels[provider.LabelOwner] == "" {
		err = &provider.Error{Class: provider.Permission, Reason: "owner", Text: fmt.Sprintf("container %s was made by somebody else: it has no label %s", name, provider.LabelOwner)}
	}
	return c, err
}

// Stop implements provider.Stopper. The bot has ended, and mostly its container
// with it; what is left in there is killed.
func (p *Provider) Stop(ctx context.Context, r provider.Ref, _ string) (bool, error) {
	c, err := p.own(ctx, r.Name)
	if err != nil {
		return false, err
	}
	switch c.State {
	case engine.Created, engine.Exited, engine.Dead:
		return true, nil
	case engine.Paused:
		if err := p.o.Engine.Unpause(ctx, c.ID); err != nil {
			return false, classed(ctx, err)
		}
	default: // it runs, or is about to end
	}
	if err := p.o.Engine.Signal(ctx, c.ID, "SIGKILL"); err != nil && skep.KindOf(err) != skep.Conflict { // it ended meanwhile
		return false, classed(ctx, err)
	}
	return false, nil
}

// Start implements provider.Stopper.
func (p *Provider) Start(ctx context.Context, r provider.Ref, _ string) (bool, error) {
	c, err := p.own(ctx, r.Name)
	if err != nil {
		return false, err
	}
	if err := p.o.Engine.Start(ctx, c.ID); err != nil {
		return false, classed(ctx, err)
	}
	return true, nil
}

// List implements provider.Provider. There is one page.
func (p *Provider) List(ctx context.Context, s provider.Scope, _ string) ([]provider.Instance, string, error) {
	all, err := p.o.Engine.List(ctx, nil)
	if err != nil {
		return nil, "", classed(ctx, err)
	}
	page := make([]provider.Instance, 0, len(all))
	for _, c := range all {
		page = append(page, made(s, c))
	}
	return page, "", nil
}

func isNotFound(err error) bool {
	var e *provider.Error
	return errors.As(err, &e) && e.Class == provider.NotFound
}

// classed says what is done about an engine's error.
func classed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e := &provider.Error{Class: provider.Transient, Reason: "engine", Text: err.Error()}
	switch skep.KindOf(err) {
	case skep.NotFound:
		e.Class, e.Reason = provider.NotFound, "container"
	case skep.Conflict:
		e.Class, e.Reason = provider.Conflict, "container"
	case skep.Invalid:
		e.Class, e.Reason = provider.Invalid, "container"
	default: // an engine that is away, or fails without a reason that we know
	}
	return e
}
