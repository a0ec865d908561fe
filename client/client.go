// Package client is the Go client of a server's API: one method per RPC of swarming.v2, and Watch of skep.v1.
package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"time"

	"github.com/skepdev/skep/api/prpc"

	"google.golang.org/protobuf/proto"
)

// DefaultTimeout is how long one attempt of a call may take unless told otherwise.
const DefaultTimeout = 90 * time.Second

// Options are the choices of a Client.
type Options struct {
	Server string // as ParseServer takes it; required
	Token  string // API token; "" sends none, and is anonymous
	// TokenSource returns the token of each attempt, in place of Token; nil = Token.
	TokenSource func() string
	UserAgent   string         // "" is prpc.DefaultUserAgent
	RootCAs     *x509.CertPool // whom to trust for https; nil is the system's
	Timeout     time.Duration  // of one attempt; 0 is DefaultTimeout
	Retry       prpc.Retry     // of every call but Watch
	HTTP        *http.Client   // nil makes one of RootCAs; otherwise that is not used
}

// Client calls one server. Many may use it at a time. Errors are *prpc.Error: skep.KindOf reads their kind,
// prpc.Refused finds a server that does not run. Close it when it is no longer needed.
type Client struct {
	server string
	http   *http.Client
	rpc    *prpc.Client
	once   *prpc.Client // rpc without retries
}

// New returns a Client, or an error about the address. It connects with the first call.
func New(opt Options) (*Client, error) {
	server, err := ParseServer(opt.Server)
	if err != nil {
		return nil, err
	}
	c := &Client{server: server, http: opt.HTTP}
	if c.http == nil {
		c.http = newHTTP(opt.RootCAs)
	}
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultTimeout
	}
	if opt.TokenSource == nil {
		opt.TokenSource = func() string { return opt.Token }
	}
	rpc := func(retry prpc.Retry) *prpc.Client {
		return &prpc.Client{
			HTTP: c.http, BaseURL: server, Token: opt.TokenSource,
			UserAgent: opt.UserAgent, Timeout: opt.Timeout, Retry: retry,
		}
	}
	c.rpc, c.once = rpc(opt.Retry), rpc(prpc.Retry{Times: -1})
	return c, nil
}

// newHTTP keeps enough connections for callers that have many calls under way.
func newHTTP(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
	}}
}

// Server returns the base URL of the server, as ParseServer made it.
func (c *Client) Server() string { return c.server }

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// response is satisfied by *T where T is a generated message.
type response[T any] interface {
	*T
	proto.Message
}

// call makes one call; the response type follows from where its result goes.
func call[T any, P response[T]](ctx context.Context, c *prpc.Client, service, method string, req proto.Message) (P, error) {
	resp := P(new(T))
	if err := c.Call(ctx, service, method, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}
