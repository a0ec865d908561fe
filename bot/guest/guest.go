// Package guest turns a new virtual machine into a bot: it finds out from the
// machine's metadata which server it is for, fetches the bot's code with the
// identity of the machine, and installs the service that runs it.
//
// It may be killed at any moment and is then run again: every step finds out
// what is done already. What fails is tried again until the context ends.
//
// spec provider.md §13, §15, §17 D9, D10.
package guest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/bot"
	"github.com/skepdev/skep/internal/backoff"
)

// FromMetadata is the value of a server that the metadata names.
const FromMetadata = ":metadata"

const (
	attributeProvider = "provider"
	attributeServer   = "swarming-server"

	callLimit  = 30 * time.Second // of one call, but for the download of code
	maxAnswer  = 64 << 10
	maxValue   = 4 << 10 // of a metadata item that is read
	firstPause = 500 * time.Millisecond
	maxPause   = 15 * time.Second
)

// Options of Run. Dir, Metadata and one of Provider and Server are required.
type Options struct {
	Dir      string // the bot's directory, absolute
	Provider string // URL or host name of the machine provider, or FromMetadata
	Server   string // URL or host name of the bots' server, or FromMetadata; Provider wins
	Metadata string // host of the metadata server
	Account  string // service account that signs for this machine; "" = default

	OS, Arch string         // what the code must be for
	Roots    *x509.CertPool // who vouches for servers; nil = the system's

	// Own gives a file to the account of the bot; nil = it stays the caller's.
	Own func(path string) error
	// Install has the bot run from now on, and starts it; what is installed
	// already stays, and a bot that runs goes on.
	Install func(ctx context.Context, s Service) error

	Log *slog.Logger
}

// Service is what is installed.
type Service struct {
	Dir    string // absolute; the executable in it is Executable
	Exe    string // absolute
	Server string // base URL
	Bot    string // id: the name of the instance
}

// Run makes this machine a bot. When it returns nil, the code that the server
// has for this bot is in place, and its service is installed and was started.
func Run(ctx context.Context, o Options) error {
	if o.Provider == "" && o.Server == "" {
		return skep.Errorf(skep.Invalid, "neither a provider nor a server is named; one of them is needed")
	}
	g := &guest{
		Options: o, ids: &bot.VMIdentities{Host: o.Metadata, Account: o.Account},
		http: &http.Client{
			Transport:     &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.Roots}, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the token is for one server
		},
	}
	var s Service
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"ask the metadata server for this machine's name", func(ctx context.Context) (err error) { s.Bot, err = g.name(ctx); return err }},
		{"find out the server", func(ctx context.Context) (err error) { s.Server, err = g.server(ctx, s.Bot); return err }},
		{"make the bot's directory", func(context.Context) error { return g.makeDir() }},
		{"fetch the bot", func(ctx context.Context) (err error) { s.Exe, err = g.code(ctx, s.Server, s.Bot); return err }},
		{"install the service", func(ctx context.Context) error { s.Dir = o.Dir; return o.Install(ctx, s) }},
	} {
		if err := g.again(ctx, step.what, step.do); err != nil {
			return err
		}
	}
	return nil
}

type guest struct {
	Options
	ids  *bot.VMIdentities
	http *http.Client
}

// again does a step until it succeeds, or cannot, or ctx ends.
func (g *guest) again(ctx context.Context, what string, do func(context.Context) error) error {
	pause := backoff.Exponential{Min: firstPause, Max: maxPause}
	var before error
	for {
		err := do(ctx)
		switch {
		case err == nil:
			g.Log.InfoContext(ctx, "done", "step", what)
			return nil
		case skep.KindOf(err) == skep.Invalid || skep.KindOf(err) == skep.Precondition: // a person must do something
			return fmt.Errorf("%s: %w", what, err)
		}
		if ctx.Err() != nil && before != nil { // an attempt that was cut short does not know what is wrong
			err = fmt.Errorf("%w; before that: %w", err, before)
		}
		before = err
		g.Log.WarnContext(ctx, "tried again soon", "step", what, "err", err)
		if pause.Sleep(ctx, 0) != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// instanceName is also what keeps a name from being anything but a file's and a
// unit's.
var instanceName = regexp.MustCompile(`^[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?$`)

func (g *guest) name(ctx context.Context) (string, error) {
	name, err := g.metadata(ctx, "instance/name")
	if err == nil && !instanceName.MatchString(name) {
		err = fmt.Errorf("the metadata server says that this machine is called %.80q", name)
	}
	return name, err
}

// metadata reads one value of the metadata server.
func (g *guest) metadata(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.Metadata+"/computeMetadata/v1/"+path, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Metadata-Flavor", "Google")
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req) // never by a proxy
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxValue+1))
	switch {
	case err != nil:
		return "", err
	case res.Header.Get("Metadata-Flavor") != "Google":
		return "", errors.New("what answers there is no metadata server")
	case res.StatusCode == http.StatusNotFound:
		return "", fmt.Errorf("the metadata has no %s", path)
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("the metadata server answers %d", res.StatusCode)
	case len(body) > maxValue:
		return "", fmt.Errorf("%s is longer than %d bytes", path, maxValue)
	}
	return strings.TrimSpace(string(body)), nil
}

// base returns the base URL of a server that may be named as a host, or by the
// metadata.
func (g *guest) base(ctx context.Context, value, attribute string) (string, error) {
	if value == FromMetadata {
		var err error
		if value, err = g.metadata(ctx, "instance/attributes/"+attribute); err != nil {
			return "", err
		}
	}
	return baseURL(value)
}

func baseURL(value string) (string, error) {
	if value == "" {
		return "", errors.New("the server's name is empty")
	}
	if !strings.Contains(value, "://") {
		value = "https://" + value
	}
	return botapi.CheckServer(strings.TrimRight(value, "/"))
}

// server returns the base URL of the bot's server.
func (g *guest) server(ctx context.Context, name string) (string, error) {
	if g.Provider == "" {
		return g.base(ctx, g.Server, attributeServer)
	}
	provider, err := g.base(ctx, g.Provider, attributeProvider)
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(map[string]string{"hostname": name})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	res, err := g.call(ctx, http.MethodPost, provider, "/prpc/instances.Instances/Get", bytes.NewReader(body), http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/json"},
	})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return "", err
	}
	return swarmingOf(answer, provider)
}

// swarmingOf reads the answer of Instances.Get: the server of this machine's
// bot, which is the one that answers when it names none.
func swarmingOf(answer []byte, provider string) (string, error) {
	var instance struct {
		Swarming string `json:"swarming"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(answer, []byte(")]}'")), &instance); err != nil {
		return "", errors.New("the provider's answer cannot be read")
	}
	if instance.Swarming == "" {
		return provider, nil
	}
	return baseURL(instance.Swarming)
}

// call sends a request with the identity of this machine, made for this server,
// and returns an answer that is good or a redirection.
func (g *guest) call(ctx context.Context, method, base, path string, body io.Reader, header http.Header) (*http.Response, error) {
	token, err := g.ids.For(base).Token()
	if err != nil {
		return nil, fmt.Errorf("this machine's identity: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, body)
	if err != nil {
		return nil, err
	}
	for key, values := range header {
		req.Header[key] = values
	}
	req.Header.Set(bot.HeaderVMToken, token)
	req.Header.Set("User-Agent", "skep-bot bootstrap-vm")
	return answered(g.http.Do(req))
}

// answered makes an error of an answer that is none. It holds no more of the
// URL than its path: what else there may be is not for logs.
func answered(res *http.Response, err error) (*http.Response, error) {
	if err != nil {
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, err
	}
	switch res.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusRequestedRangeNotSatisfiable:
		return res, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 256)) // what there is of it
	return nil, fmt.Errorf("%s answers %s: %q", res.Request.URL.Path, res.Status, text)
}
