// Package exec is the Provider that a lab writes itself: a program that gets
// one question on its standard input and answers on its standard output. wire: docs/wire/provider-exec.md
package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/proc"
	"github.com/skepdev/skep/provider"
)

const (
	// Version of the questions.
	Version = 1
	// DefaultTimeout is what one call of a program may take.
	DefaultTimeout = time.Minute
	// DefaultParallel is how many may run at once.
	DefaultParallel = 16
	// maxOutput bounds an answer, in bytes.
	maxOutput = 8 << 20
	// maxPage bounds the instances of one answer.
	maxPage = 5000
)

// Options of a Provider.
type Options struct {
	Command  []string      // the program, looked up in PATH, and arguments before the verb
	Timeout  time.Duration // of one call; 0 = DefaultTimeout
	Parallel int           // calls at once; 0 = DefaultParallel

	// For bots of these servers, by their URLs, alone:
	Servers []string
	CAFile  string // on this host, PEM certificates that vouch for them; "" = anybody's
	// Token makes what a machine's bot buys a credential of its own with, once
	// (decisions.md 10). The program is told it on its standard input, which nobody
	// else sees. nil or "" = none is needed.
	Token func(ctx context.Context, bot string) (string, error)
}

// Provider asks a program.
type Provider struct {
	o    Options
	free chan struct{}

	mu    sync.Mutex
	busy  map[string]chan struct{} // names that a call is about; closed when it ends
	entry map[string]entry         // of machines that are being made, by name
}

// entry is what lets a machine's bot in: the same in every repeat of a question.
type entry struct{ request, token string }

var _ provider.Provider = (*Provider)(nil)

// New returns the Provider of a program. It is not started yet.
func New(o Options) (*Provider, error) {
	if len(o.Command) == 0 || o.Command[0] == "" {
		return nil, errors.New("provider exec: no command; name the program")
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	return &Provider{o: o, free: make(chan struct{}, o.Parallel), busy: map[string]chan struct{}{}, entry: map[string]entry{}}, nil
}

// question is what the program reads.
type question struct {
	Version    int                  `json:"version"`
	Verb       string               `json:"verb"`
	RequestID  string               `json:"request_id,omitempty"`
	Project    string               `json:"project,omitempty"`
	Zone       string               `json:"zone,omitempty"`
	Name       string               `json:"name,omitempty"`
	Token      string               `json:"token,omitempty"`
	Labels     map[string]string    `json:"labels,omitempty"`
	Attributes *provider.Attributes `json:"attributes,omitempty"`
	Server     string               `json:"server,omitempty"`
	Device     string               `json:"device,omitempty"`
	CAFile     string               `json:"ca_file,omitempty"`
	Bootstrap  string               `json:"bootstrap_token,omitempty"`
}

// answer is what it writes.
type answer struct {
	Done      *bool      `json:"done"`
	Instance  *instance  `json:"instance"`
	Instances []instance `json:"instances"`
	Next      string     `json:"next"`
	Error     *failure   `json:"error"`
}

type failure struct {
	Class  provider.Class `json:"class"`
	Reason string         `json:"reason"`
	Text   string         `json:"text"`
}

type instance struct {
	Project  string            `json:"project"`
	Zone     string            `json:"zone"`
	Name     string            `json:"name"`
	URL      string            `json:"url"`
	Created  time.Time         `json:"created"`
	Labels   map[string]string `json:"labels"`
	Networks []struct {
		Internal string   `json:"internal"`
		External []string `json:"external"`
	} `json:"networks"`
	Ended bool `json:"ended"`
}

// Create implements provider.Provider.
func (p *Provider) Create(ctx context.Context, o provider.Order) (bool, error) {
	q := &question{
		Verb: "create", RequestID: o.RequestID, Project: o.Attributes.Project, Zone: o.Zone, Name: o.Name,
		Labels: o.Labels, Attributes: &o.Attributes, Server: o.Server, Device: o.Device,
	}
	if slices.Contains(p.o.Servers, o.Server) {
		q.CAFile = p.o.CAFile
		var err error
		if q.Bootstrap, err = p.token(ctx, o.Name, o.RequestID); err != nil {
			return false, transient("token", "%v", err)
		}
	}
	a, err := p.ask(ctx, q)
	done := a.Done != nil && *a.Done
	if e := (*provider.Error)(nil); done || errors.As(err, &e) && e.Class != provider.Transient && e.Class != provider.RateLimit {
		p.forget(o.Name)
	}
	return done, err
}

func (p *Provider) token(ctx context.Context, name, request string) (string, error) {
	if p.o.Token == nil {
		return "", nil
	}
	p.mu.Lock()
	e := p.entry[name]
	p.mu.Unlock()
	if e.request == request && e.token != "" {
		return e.token, nil
	}
	token, err := p.o.Token(ctx, name)
	if err != nil || token == "" {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.entry[name] = entry{request, token}
	return token, nil
}

// forget drops the entry of a machine that is not being made any more.
func (p *Provider) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.entry, name)
}

// Get implements provider.Provider.
func (p *Provider) Get(ctx context.Context, r provider.Ref) (provider.Instance, error) {
	a, err := p.ask(ctx, &question{Verb: "get", Project: r.Project, Zone: r.Zone, Name: r.Name})
	if err != nil {
		return provider.Instance{}, err
	}
	return a.Instance.noun(provider.Scope{Project: r.Project, Zone: r.Zone}), nil
}

// Delete implements provider.Provider.
func (p *Provider) Delete(ctx context.Context, r provider.Ref, requestID string) (bool, error) {
	p.forget(r.Name)
	a, err := p.ask(ctx, &question{Verb: "delete", RequestID: requestID, Project: r.Project, Zone: r.Zone, Name: r.Name})
	var e *provider.Error
	if errors.As(err, &e) && e.Class == provider.NotFound {
		return true, nil
	}
	return err == nil && *a.Done, err
}

// List implements provider.Provider.
func (p *Provider) List(ctx context.Context, s provider.Scope, token string) ([]provider.Instance, string, error) {
	a, err := p.ask(ctx, &question{Verb: "list", Project: s.Project, Zone: s.Zone, Token: token})
	if err != nil {
		return nil, "", err
	}
	page := make([]provider.Instance, 0, len(a.Instances))
	for i := range a.Instances {
		page = append(page, a.Instances[i].noun(s))
	}
	return page, a.Next, nil
}

// noun is the instance; where it says nothing of its place it is where it was
// asked for.
func (i *instance) noun(s provider.Scope) provider.Instance {
	n := provider.Instance{
		Ref: provider.Ref{Project: i.Project, Zone: i.Zone, Name: i.Name},
		URL: i.URL, Created: i.Created, Labels: i.Labels, Ended: i.Ended,
	}
	if n.Ref.Project == "" {
		n.Ref.Project = s.Project
	}
	if n.Ref.Zone == "" {
		n.Ref.Zone = s.Zone
	}
	for _, a := range i.Networks {
		n.Networks = append(n.Networks, provider.Address{Internal: a.Internal, External: a.External})
	}
	return n
}

// ask runs the program once. What it did not answer in order is Transient: it
// may have done what it was asked for.
func (p *Provider) ask(ctx context.Context, q *question) (answer, error) {
	q.Version = Version
	text, err := line(q)
	if err != nil {
		return answer{}, &provider.Error{Class: provider.Invalid, Reason: "attributes", Text: err.Error()}
	}
	release, err := p.turn(ctx, q.Name)
	if err != nil {
		return answer{}, err
	}
	defer release()
	own, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	res, err := proc.Run(own, proc.RunOptions{
		Args: append(append([]string{}, p.o.Command...), q.Verb), Env: environment(q), Stdin: text, MaxOutput: maxOutput,
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, proc.ErrNotFound):
		return answer{}, &provider.Error{Class: provider.Invalid, Reason: "command", Text: fmt.Sprintf("%s cannot be started: %v", p.o.Command[0], err)}
	case err != nil: // this host is short of something, and says nothing about the program
		return answer{}, transient("start", "%s cannot be started now: %v", p.o.Command[0], err)
	case ctx.Err() != nil:
		return answer{}, ctx.Err()
	case res.TimedOut:
		return answer{}, transient("timeout", "%s %s did not end within %v and was killed", p.o.Command[0], q.Verb, p.o.Timeout)
	case res.Truncated:
		return answer{}, transient("output", "%s %s wrote more than %d bytes", p.o.Command[0], q.Verb, maxOutput)
	}
	a, err := decode(q.Verb, q.Name, res.Stdout)
	if res.Status.Code != 0 { // only an error that it tells counts then
		var e *provider.Error
		if errors.As(err, &e) && a.Error != nil {
			return a, err
		}
		return answer{}, transient("exit "+strconv.Itoa(res.Status.Code), "%s %s: %s", p.o.Command[0], q.Verb, tail(res.Stderr))
	}
	return a, err
}

func transient(reason, format string, args ...any) *provider.Error {
	return &provider.Error{Class: provider.Transient, Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// turn waits until no other call is about name, and until one more may run.
func (p *Provider) turn(ctx context.Context, name string) (release func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	done := make(chan struct{})
	for name != "" {
		p.mu.Lock()
		other := p.busy[name]
		if other == nil {
			p.busy[name] = done
		}
		p.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	leave := func() {
		if name != "" {
			p.mu.Lock()
			delete(p.busy, name)
			p.mu.Unlock()
		}
		close(done)
	}
	select {
	case p.free <- struct{}{}:
		return func() { <-p.free; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// line is v as JSON on one line, in which <, > and & stand for themselves: a
// program in shell looks for what it is told.
func line(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}

// environment is what the program gets of ours, which may hold secrets of the
// server, and the question's main parts for those that read no JSON.
func environment(q *question) []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "SystemRoot", "TEMP", "USERPROFILE"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	labels := "{}"
	if text, err := line(q.Labels); err == nil && q.Labels != nil {
		labels = string(bytes.TrimSpace(text))
	}
	if q.Attributes != nil && len(q.Attributes.Pools) > 0 {
		env = append(env, provider.EnvPools+"="+strings.Join(q.Attributes.Pools, ","))
	}
	return append(env, "SKEP_VERB="+q.Verb, "SKEP_REQUEST_ID="+q.RequestID, "SKEP_PROJECT="+q.Project, "SKEP_ZONE="+q.Zone,
		"SKEP_NAME="+q.Name, "SKEP_LABELS="+labels, "SKEP_SERVER="+q.Server, "SKEP_DEVICE="+q.Device)
}

// decode reads the answer to a question.
func decode(verb, name string, text []byte) (answer, error) {
	var a answer
	bad := func(format string, args ...any) (answer, error) {
		return answer{}, transient("answer", "the answer to %s is wrong: %s", verb, fmt.Sprintf(format, args...))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); errors.Is(err, io.EOF) {
		return bad("there is none")
	} else if err != nil {
		return bad("%s", clip(err.Error()))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return bad("something follows it")
	}
	if a.Error != nil {
		return a, a.Error.noun()
	}
	switch verb {
	case "create", "delete":
		if a.Done == nil {
			return bad("it does not say whether it is done")
		}
	case "get":
		if a.Instance == nil {
			return bad("it has no instance")
		}
		if a.Instance.Name != name {
			return bad("it is about %q", clip(a.Instance.Name))
		}
		if a.Instance.URL == "" {
			return bad("the instance has no url")
		}
	case "list":
		if len(a.Instances) > maxPage {
			return bad("it has more than %d instances; use next", maxPage)
		}
		for _, i := range a.Instances {
			if i.Name == "" || i.URL == "" {
				return bad("an instance has no name or no url")
			}
		}
	}
	return a, nil
}

func (f *failure) noun() *provider.Error {
	e := &provider.Error{Class: f.Class, Reason: clip(f.Reason), Text: clip(f.Text)}
	switch f.Class {
	case provider.RateLimit, provider.Transient, provider.Permission, provider.Quota,
		provider.Invalid, provider.Conflict, provider.Exhausted, provider.NotFound:
	default:
		e.Class = provider.Transient
		e.Text = fmt.Sprintf("%s (class %q is none)", e.Text, clip(string(f.Class)))
	}
	if e.Reason == "" {
		e.Reason = string(e.Class)
	}
	if e.Text == "" {
		e.Text = "the program says no more"
	}
	return e
}

const maxText = 1000

// clip bounds a text that goes into the log and the store.
func clip(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// tail is the end of what a program complained about, where the reason is.
func tail(text []byte) string {
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return "it wrote nothing to its standard error"
	}
	return clip(strings.ToValidUTF8(string(text[max(0, len(text)-maxText):]), ""))
}
