package remote

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
)

// Options are the choices of a Client.
type Options struct {
	URL      string                   // grpc://HOST:PORT[/INSTANCE], grpcs://…, or a skep server's http(s):// base URL; without TLS to loopback only
	Instance string                   // when URL names none; "" is the instance without a name
	Headers  func() map[string]string // such as authorization; asked for each call; nil = none
	RootCAs  *x509.CertPool           // whom to trust; nil = the system's
	Patience time.Duration            // how long a call is tried without any progress; 0 = 5 min
	Refused  time.Duration            // the same for a storage that refuses connections and never answered; 0 = Patience
	Parallel int                      // transfers under way at once; 0 = 4
	Log      *slog.Logger             // nil = none
}

// Client is a client of one storage and one instance of it. Many may use it at
// a time. Errors are *cas.MissingError, or of a kind that skep.KindOf tells.
type Client struct {
	opt      Options
	base     string // scheme and host as net/http wants them
	instance string
	loopback bool
	http     *http.Transport // of gRPC
	plain    *http.Transport // of HTTP/1.1
	slots    chan struct{}   // one for each message of up to 4 MiB in memory
	zstd     codec
	answered atomic.Bool // once

	caps   sync.Mutex
	limits *Limits // nil until asked
}

// New returns a Client, or an Invalid error about the address. It connects
// with the first call.
func New(opt Options) (*Client, error) {
	c := &Client{opt: opt}
	if err := c.address(opt.URL); err != nil {
		return nil, err
	}
	c.instance = cmp.Or(c.instance, strings.Trim(opt.Instance, "/"))
	c.opt.Patience = cmp.Or(max(opt.Patience, 0), 5*time.Minute)
	c.opt.Refused = cmp.Or(max(opt.Refused, 0), c.opt.Patience)
	c.opt.Parallel = cmp.Or(max(opt.Parallel, 0), 4)
	if c.opt.Log == nil {
		c.opt.Log = slog.New(slog.DiscardHandler)
	}
	c.slots = make(chan struct{}, c.opt.Parallel)
	c.http, c.plain = newTransport(strings.HasPrefix(c.base, "https:"), opt.RootCAs), newPlainTransport(opt.RootCAs)
	return c, nil
}

// address takes the URL of Options apart.
func (c *Client) address(s string) error {
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil || u.Hostname() == "" {
		return skep.Errorf(skep.Invalid, "storage address %q: want grpc://HOST:PORT[/INSTANCE], grpcs://… or the URL of a skep server", s)
	}
	if u.User != nil {
		return skep.Errorf(skep.Invalid, "a storage address holds no user or password; give a token instead")
	}
	c.loopback = isLoopback(u.Hostname())
	port := u.Port()
	switch u.Scheme {
	case "grpc", "http":
		if !c.loopback {
			return skep.Errorf(skep.Invalid, "storage address %q: without TLS only loopback addresses are used; write grpcs:// or https://", s)
		}
		c.base, port = "http://", cmp.Or(port, "80")
	case "grpcs", "https":
		c.base, port = "https://", cmp.Or(port, "443")
	default:
		return skep.Errorf(skep.Invalid, "storage address %q: the scheme must be grpc, grpcs, http or https", s)
	}
	c.base += net.JoinHostPort(u.Hostname(), port)
	if strings.HasPrefix(u.Scheme, "grpc") {
		c.instance = strings.Trim(u.Path, "/")
	}
	return nil
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && ip.IsLoopback()
}

func newTransport(secure bool, roots *x509.CertPool) *http.Transport {
	var p http.Protocols
	p.SetHTTP2(secure)
	p.SetUnencryptedHTTP2(!secure)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment, // never for loopback
		DialContext:         dialer((&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext),
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		Protocols:           &p,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: 1 << 20, // it is memory, and loopback needs no more
			SendPingTimeout:           20 * time.Second,
			PingTimeout:               20 * time.Second,
		},
	}
}

// Instance is the instance that the client uses, as CASReference.cas_instance.
func (c *Client) Instance() string { return c.instance }

// Close gives up idle connections. Calls under way go on.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	c.plain.CloseIdleConnections()
	return nil
}

// hold waits for a place among the transfers under way.
func (c *Client) hold(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *Client) release() { <-c.slots }
