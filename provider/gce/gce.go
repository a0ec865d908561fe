// Package gce is the Provider of Compute Engine, spoken to with Google's own
// client. spec/provider.md §2.4, §7.3, §11.
//
// A place is a project and a zone. Creating and deleting are operations of the
// cloud, asked for with a request id: a repeated call follows the operation
// that the first one began, by the id alone when this process has forgotten it.
package gce

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	compute "google.golang.org/api/compute/v1"
	"google.golang.org/api/option"
	htransport "google.golang.org/api/transport/http"

	"github.com/skepdev/skep/provider"
)

const (
	// DefaultTimeout is what one call may take.
	DefaultTimeout = 30 * time.Second
	// idleConns is how many connections are kept: as many as there are calls at once.
	idleConns = 32
	// pageSize is the largest that Compute Engine gives.
	pageSize = 500
	// maxAnswer bounds an answer, in bytes; a page of instances with metadata
	// left out is below 1 MiB.
	maxAnswer = 32 << 20
	// maxFollowed bounds how many operations are known by name; one that is
	// forgotten is found by its request id.
	maxFollowed = 20_000
)

// Options of a Provider.
type Options struct {
	// Endpoint is the root of the API, without version; "" = Google's. One of
	// plain http gets no credentials.
	Endpoint string
	// Transport carries the calls; nil = the net, with the credentials that
	// Google's tools find on this machine. One that is given gets none added.
	Transport http.RoundTripper
	// UserAgent is sent with each call; "" = "skep".
	UserAgent string
	// Timeout of one call; 0 = DefaultTimeout.
	Timeout time.Duration
}

// Provider is Compute Engine.
type Provider struct {
	stable, alpha *compute.Service
	timeout       time.Duration

	mu       sync.Mutex
	followed map[string]string // request id → name of its operation, while it runs
}

var (
	_ provider.Provider    = (*Provider)(nil)
	_ provider.Stopper     = (*Provider)(nil)
	_ provider.QuotaTeller = (*Provider)(nil)
)

// New returns a Provider. Nothing is asked of the cloud yet; an error says that
// this machine has no credentials for it.
func New(ctx context.Context, o Options) (*Provider, error) {
	root := strings.TrimSuffix(o.Endpoint, "/")
	if root == "" {
		root = "https://compute.googleapis.com"
	}
	u, err := url.Parse(root)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("endpoint of Compute Engine %q: want https://HOST", o.Endpoint)
	}
	carrier := o.Transport
	if carrier == nil {
		plain := http.DefaultTransport.(*http.Transport).Clone()
		plain.MaxIdleConnsPerHost = idleConns
		carrier = plain
		if u.Scheme == "https" {
			carrier, err = htransport.NewTransport(ctx, carrier, option.WithScopes(compute.ComputeScope))
			if err != nil {
				return nil, fmt.Errorf("credentials for Compute Engine: %w", err)
			}
		}
	}
	client := option.WithHTTPClient(&http.Client{Transport: bounded{carrier}})
	p := &Provider{timeout: o.Timeout, followed: map[string]string{}}
	if p.timeout == 0 {
		p.timeout = DefaultTimeout
	}
	for _, s := range []struct {
		to      **compute.Service
		version string
	}{{&p.stable, "v1"}, {&p.alpha, "alpha"}} {
		service, err := compute.NewService(ctx, client, option.WithEndpoint(root+"/compute/"+s.version+"/"))
		if err != nil {
			return nil, fmt.Errorf("client of Compute Engine: %w", err)
		}
		service.UserAgent = o.UserAgent
		if service.UserAgent == "" {
			service.UserAgent = "skep"
		}
		*s.to = service
	}
	return p, nil
}

// bounded ends answers that are too long, which the client would read whole.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Body = http.MaxBytesReader(nil, res.Body, maxAnswer)
	}
	return res, err
}

// Create implements provider.Provider.
func (p *Provider) Create(ctx context.Context, o provider.Order) (bool, error) {
	project := o.Attributes.Project
	if err := placed(project, o.Zone, o.Name); err != nil {
		return false, err
	}
	service := p.stable
	if o.Attributes.Channel == "ALPHA" { // BETA too is stable. spec §2.4
		service = p.alpha
	}
	inst := instance(o)
	if _, err := inst.MarshalJSON(); err != nil { // a field that is to be null has a value
		return false, &provider.Error{Class: provider.Invalid, Reason: "attributes", Text: err.Error()}
	}
	done, err := p.follow(ctx, project, o.Zone, o.RequestID, func(ctx context.Context) (*compute.Operation, error) {
		return service.Instances.Insert(project, o.Zone, inst).RequestId(o.RequestID).Context(ctx).Do()
	})
	var e *provider.Error
	if errors.As(err, &e) && e.Class == provider.NotFound {
		e.Class = provider.Invalid // a project, an image, a network of its shape
	}
	return done, err
}

// Delete implements provider.Provider.
func (p *Provider) Delete(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	if err := placed(r.Project, r.Zone, r.Name); err != nil {
		return false, err
	}
	done, err := p.follow(ctx, r.Project, r.Zone, requestID, func(ctx context.Context) (*compute.Operation, error) {
		return p.stable.Instances.Delete(r.Project, r.Zone, r.Name).RequestId(requestID).Context(ctx).Do()
	})
	var e *provider.Error
	if errors.As(err, &e) && e.Class == provider.NotFound {
		return true, nil
	}
	return done && err == nil, err // an operation that failed has left it there
}

// Stop implements provider.Stopper. The instance keeps its disks and gives its
// processors back.
func (p *Provider) Stop(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	if err := placed(r.Project, r.Zone, r.Name); err != nil {
		return false, err
	}
	done, err := p.follow(ctx, r.Project, r.Zone, requestID, func(ctx context.Context) (*compute.Operation, error) {
		return p.stable.Instances.Stop(r.Project, r.Zone, r.Name).RequestId(requestID).Context(ctx).Do()
	})
	return done && err == nil, err
}

// Start implements provider.Stopper.
func (p *Provider) Start(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	if err := placed(r.Project, r.Zone, r.Name); err != nil {
		return false, err
	}
	done, err := p.follow(ctx, r.Project, r.Zone, requestID, func(ctx context.Context) (*compute.Operation, error) {
		return p.stable.Instances.Start(r.Project, r.Zone, r.Name).RequestId(requestID).Context(ctx).Do()
	})
	return done && err == nil, err
}

// follow asks how the operation of requestID goes, with begin when its name is
// not known.
func (p *Provider) follow(ctx context.Context, project, zone, requestID string, begin func(context.Context) (*compute.Operation, error)) (done bool, err error) {
	var op *compute.Operation
	if name := p.operation(requestID); name != "" {
		err = p.call(ctx, func(ctx context.Context) (err error) {
			op, err = p.stable.ZoneOperations.Get(project, zone, name).Context(ctx).Do()
			return err
		})
		var e *provider.Error
		if errors.As(err, &e) && e.Class == provider.NotFound {
			op, err = nil, nil // forgotten there: ask by the request id
		}
		if err != nil {
			return false, err
		}
	}
	if op == nil {
		err = p.call(ctx, func(ctx context.Context) (err error) {
			op, err = begin(ctx)
			return err
		})
		if err != nil {
			p.forget(requestID)
			return false, err
		}
	}
	if op.Status != "DONE" {
		p.remember(requestID, op.Name)
		return false, nil
	}
	p.forget(requestID)
	if op.Error != nil && len(op.Error.Errors) > 0 {
		return true, operationError(op.Error.Errors)
	}
	return true, nil
}

func (p *Provider) operation(requestID string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.followed[requestID]
}

func (p *Provider) remember(requestID, operation string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.followed) >= maxFollowed { // of those that nobody asks about any more
		clear(p.followed)
	}
	p.followed[requestID] = operation
}

func (p *Provider) forget(requestID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.followed, requestID)
}

// What we read of an instance; its metadata alone may be half a megabyte.
const instanceFields = "id,name,selfLink,creationTimestamp,labels,networkInterfaces(networkIP,ipv6Address,accessConfigs/natIP,ipv6AccessConfigs/externalIpv6)"

// Get implements provider.Provider.
func (p *Provider) Get(ctx context.Context, r provider.Ref) (provider.Instance, error) {
	if err := placed(r.Project, r.Zone, r.Name); err != nil {
		return provider.Instance{}, err
	}
	var inst *compute.Instance
	err := p.call(ctx, func(ctx context.Context) (err error) {
		inst, err = p.stable.Instances.Get(r.Project, r.Zone, r.Name).Fields(instanceFields).Context(ctx).Do()
		return err
	})
	if err != nil {
		return provider.Instance{}, err
	}
	return made(provider.Scope{Project: r.Project, Zone: r.Zone}, inst), nil
}

// List implements provider.Provider.
func (p *Provider) List(ctx context.Context, s provider.Scope, token string) ([]provider.Instance, string, error) {
	if err := placed(s.Project, s.Zone, "list"); err != nil {
		return nil, "", err
	}
	var res *compute.InstanceList
	err := p.call(ctx, func(ctx context.Context) (err error) {
		res, err = p.stable.Instances.List(s.Project, s.Zone).MaxResults(pageSize).PageToken(token).
			Fields("nextPageToken,items(" + instanceFields + ")").Context(ctx).Do()
		return err
	})
	if err != nil {
		return nil, "", err
	}
	page := make([]provider.Instance, 0, len(res.Items))
	for _, inst := range res.Items {
		page = append(page, made(s, inst))
	}
	return page, res.NextPageToken, nil
}

// made is what the cloud says of an instance.
func made(s provider.Scope, inst *compute.Instance) provider.Instance {
	i := provider.Instance{
		Ref:    provider.Ref{Project: s.Project, Zone: s.Zone, Name: inst.Name},
		URL:    identity(inst),
		Labels: inst.Labels,
	}
	if t, err := time.Parse(time.RFC3339, inst.CreationTimestamp); err == nil {
		i.Created = t
	}
	for _, n := range inst.NetworkInterfaces {
		a := provider.Address{Internal: n.NetworkIP}
		if a.Internal == "" {
			a.Internal = n.Ipv6Address
		}
		for _, c := range n.AccessConfigs {
			if c.NatIP != "" {
				a.External = append(a.External, c.NatIP)
			}
		}
		for _, c := range n.Ipv6AccessConfigs {
			if c.ExternalIpv6 != "" {
				a.External = append(a.External, c.ExternalIpv6)
			}
		}
		i.Networks = append(i.Networks, a)
	}
	return i
}

// identity is the self link with the number in place of the name: the next
// instance of the same name has the same self link, and another number.
func identity(inst *compute.Instance) string {
	if inst.Id == 0 || inst.SelfLink == "" {
		return inst.SelfLink
	}
	return strings.TrimSuffix(inst.SelfLink, path.Base(inst.SelfLink)) + strconv.FormatUint(inst.Id, 10)
}

// placed refuses what would make another URL than that of an instance.
func placed(project, zone, name string) error {
	for _, part := range []struct{ what, value string }{{"project", project}, {"zone", zone}, {"name", name}} {
		if part.value == "" || strings.ContainsAny(part.value, "/?#%") {
			return &provider.Error{Class: provider.Invalid, Reason: part.what, Text: fmt.Sprintf("%s of the instance is %q; give it a legal one", part.what, part.value)}
		}
	}
	return nil
}

// call runs one call within its time and says of what class its error is.
func (p *Provider) call(ctx context.Context, do func(context.Context) error) error {
	own, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := do(own)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case own.Err() != nil:
		return &provider.Error{Class: provider.Transient, Reason: "timeout", Text: fmt.Sprintf("Compute Engine did not answer within %v", p.timeout)}
	}
	return callError(err)
}
