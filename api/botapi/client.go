package botapi

import (
	"bytes"
	"context"
	"crypto/sha1" // names a traffic split, protects nothing
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// Limits of one call.
const (
	callTimeout  = 60 * time.Second // a call that does not ask the server to wait
	waitSlack    = 15 * time.Second // what a long poll may take beyond its wait
	dialTimeout  = 10 * time.Second
	idleTimeout  = 90 * time.Second
	maxAnswer    = 16 << 20 // bytes; a manifest is at most a few hundred KiB
	maxErrorBody = 64 << 10
)

// Options say whom a Client calls, and as whom.
type Options struct {
	Server  string                   // scheme://host[:port]; plain HTTP only to loopback
	BotID   string                   // sent with every call
	Dir     string                   // working directory; part of the traffic-split cookie, "" = no cookie. spec bot.md §2.1
	Headers func() map[string]string // authentication headers, asked for at every call; nil = none
	RootCAs *x509.CertPool           // who may vouch for the server; nil = the system's roots
	// Certificate is what the client shows in TLS, asked for at every connection;
	// nil = nothing.
	Certificate func() (*tls.Certificate, error)

	Log *slog.Logger     // nil = silent
	Now func() time.Time // nil = time.Now

	Transport http.RoundTripper // nil = a pool of keep-alive connections of this client's own
}

// Client speaks Bot API v1 for one bot. Every method makes one attempt, over
// connections that are kept; IsTransient says whether another may help. It may
// be used by many goroutines. spec bot.md §2.1, §2.2.
type Client struct {
	base  string
	opt   Options
	http  *http.Client
	agent string

	mu      sync.Mutex
	session string
}

// NewClient returns a client that has not called anybody yet, or an Invalid
// error about "server".
func NewClient(opt Options) (*Client, error) {
	base, err := CheckServer(opt.Server)
	if err != nil {
		return nil, err
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Transport == nil {
		opt.Transport = newTransport(opt.RootCAs, opt.Certificate)
	}
	return &Client{
		base: base, opt: opt, agent: UserAgent(),
		http: &http.Client{
			Transport: opt.Transport,
			// A redirected POST would lose its body or carry our credential elsewhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// CheckServer returns the base URL server without a trailing slash, or an
// Invalid error about "server": it must be http or https without path, query
// or user, and plain HTTP only reaches this machine.
func CheckServer(server string) (string, error) {
	u, err := url.Parse(server)
	if err != nil {
		return "", skep.Invalidf("server", "%q is not a URL", server)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return "", skep.Invalidf("server", "%q must be like https://host[:port]", server)
	case u.User != nil, u.RawQuery != "", u.Fragment != "", strings.Trim(u.Path, "/") != "":
		return "", skep.Invalidf("server", "%q has more than scheme, host and port", u.Redacted())
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return "", skep.Invalidf("server", "%s is plain HTTP to another machine; use https", server)
	}
	return u.Scheme + "://" + u.Host, nil
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// UserAgent is how bots of this host name themselves. spec bot.md §1.2.
func UserAgent() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return "swarming_bot/1.0.0@" + host
}

// newTransport leaves http.DefaultTransport alone: its HTTP/2 and its pool are
// start-up time and memory that a bot does not need.
func newTransport(roots *x509.CertPool, cert func() (*tls.Certificate, error)) *http.Transport {
	var p http.Protocols
	p.SetHTTP1(true)
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	secure := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert() }
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment, // never for loopback
		DialContext:         d.DialContext,
		TLSClientConfig:     secure,
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     idleTimeout,
		DisableCompression:  true,
		Protocols:           &p,
		ReadBufferSize:      2 << 10,
		WriteBufferSize:     2 << 10,
	}
}

// Session returns the newest session token, "" before the handshake.
func (c *Client) Session() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

// SetSession replaces the token that later calls carry; "" keeps the old one,
// as an answer without one does. spec bot.md §2.4.
func (c *Client) SetSession(s string) {
	if s == "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = s
}

// CloseIdle drops the connections that no call uses.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// Handshake opens a session; the client then uses its token. Any non-empty
// answer is a success. spec bot.md §2.6.
func (c *Client) Handshake(ctx context.Context, req *HandshakeRequest) (*HandshakeResponse, error) {
	res := &HandshakeResponse{}
	n, err := c.post(ctx, PathHandshake, 0, req, res)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, &Error{Path: PathHandshake, Status: http.StatusOK, Text: "the answer is an empty object", Transient: true}
	}
	c.SetSession(res.Session)
	return res, nil
}

// Poll asks for a command and waits up to req.Wait for one. With "run" it also
// returns the manifest as it came; when that is not a Manifest,
// PollResponse.Manifest is nil and the raw one says which task to fail (see
// ManifestTask). spec bot.md §2.7, §3.
func (c *Client) Poll(ctx context.Context, req *PollRequest) (*PollResponse, json.RawMessage, error) {
	r := *req
	if r.Session == "" {
		r.Session = c.Session()
	}
	var raw json.RawMessage
	if _, err := c.post(ctx, PathPoll, r.Wait, &r, &raw); err != nil {
		return nil, nil, err
	}
	res, manifest, err := DecodePoll(raw)
	if err != nil {
		return nil, nil, &Error{Path: PathPoll, Status: http.StatusOK, Text: err.Error(), Transient: true, cause: ErrBadCommand}
	}
	c.SetSession(res.Session)
	return res, manifest, nil
}

// DecodePoll reads a poll answer as any server sends it: unknown keys are
// skipped, a key of a command that is not this answer's may have any shape.
// The manifest comes back verbatim; a broken one leaves Manifest nil.
func DecodePoll(data []byte) (*PollResponse, json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, nil, fmt.Errorf("the answer is not a JSON object: %w", err)
	}
	res := &PollResponse{}
	if err := json.Unmarshal(all["cmd"], &res.Cmd); err != nil || res.Cmd == "" {
		return nil, nil, fmt.Errorf("the answer has no cmd")
	}
	_ = json.Unmarshal(all["session"], &res.Session) // one of another type is no token
	want := func(key string, v any) error {
		if err := json.Unmarshal(all[key], v); err != nil {
			return fmt.Errorf("%s without a usable %s", res.Cmd, key)
		}
		return nil
	}
	switch res.Cmd {
	case CmdSleep:
		var d float64
		if err := want("duration", &d); err != nil {
			return nil, nil, err
		}
		res.Duration = &d
		var q bool
		if json.Unmarshal(all["quarantined"], &q) == nil {
			res.Quarantined = &q
		}
	case CmdRun:
		raw := all["manifest"]
		if len(raw) == 0 || raw[0] != '{' {
			return nil, nil, fmt.Errorf("run without a usable manifest")
		}
		var m Manifest
		if json.Unmarshal(raw, &m) == nil && m.TaskID != "" {
			res.Manifest = &m
		}
		return res, raw, nil
	case CmdTerminate:
		if err := want("task_id", &res.TaskID); err != nil {
			return nil, nil, err
		}
	case CmdUpdate:
		if err := want("version", &res.Version); err != nil {
			return nil, nil, err
		}
	case CmdBotRestart, CmdHostReboot, CmdRestart:
		_ = json.Unmarshal(all["message"], &res.Message) // the reason is for people only
	}
	return res, nil, nil
}

// ManifestTask returns the run id inside a manifest that may be broken
// otherwise, or "".
func ManifestTask(raw json.RawMessage) string {
	var m struct {
		TaskID json.RawMessage `json:"task_id"`
	}
	var id string
	if json.Unmarshal(raw, &m) != nil || json.Unmarshal(m.TaskID, &id) != nil {
		return ""
	}
	return id
}

// TaskUpdate reports output, progress or the end of a task, or asks (Wait).
// spec bot.md §2.10.
func (c *Client) TaskUpdate(ctx context.Context, req *TaskUpdate) (*TaskUpdateResponse, error) {
	r := *req
	c.sign(&r.ID, &r.Session)
	res := &TaskUpdateResponse{}
	n, err := c.post(ctx, PathTaskUpdate+"/"+r.TaskID, r.Wait, &r, res)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, &Error{Path: PathTaskUpdate, Status: http.StatusOK, Text: "the answer is an empty object", Transient: true}
	}
	c.SetSession(res.Session)
	return res, nil
}

// TaskError ends a task that this bot could not run. spec bot.md §2.11.
func (c *Client) TaskError(ctx context.Context, req *TaskErrorRequest) error {
	r := *req
	c.sign(&r.ID, &r.Session)
	return c.tell(ctx, PathTaskError+"/"+r.TaskID, &r)
}

// Event reports something for the bot's page. spec bot.md §2.9.
func (c *Client) Event(ctx context.Context, req *EventRequest) error {
	r := *req
	c.sign(nil, &r.Session)
	return c.tell(ctx, PathEvent, &r)
}

// Token asks for a token of an account at path PathOAuthToken or PathIDToken.
// A status of 400 is final, anything else may be tried again. spec bot.md §2.12.
func (c *Client) Token(ctx context.Context, path string, req *TokenRequest) (*TokenResponse, error) {
	r := *req
	c.sign(&r.ID, &r.Session)
	res := &TokenResponse{}
	if _, err := c.post(ctx, path, 0, &r, res); err != nil {
		return nil, err
	}
	return res, nil
}

// BotCode returns the bot code with this digest from offset on; the caller
// closes it and checks what came. It takes as long as ctx lets it.
func (c *Client) BotCode(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	path := PathBotCode + digest
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.setHeaders(req, false)
	want := http.StatusOK
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		want = http.StatusPartialContent
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, &Error{Path: path, Text: "no answer: " + withoutURL(err).Error(), Transient: true, cause: err}
	}
	if res.StatusCode == want {
		return res.Body, nil
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	return nil, refusal(path, res, body)
}

// Ping asks whether the server is there. It needs no session.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.call(ctx, http.MethodGet, PathServerPing, 0, nil)
	return err
}

func (c *Client) sign(id, session *string) {
	if id != nil && *id == "" {
		*id = c.opt.BotID
	}
	if *session == "" {
		*session = c.Session()
	}
}

// tell posts a message whose answer holds nothing but, at most, a new token.
func (c *Client) tell(ctx context.Context, path string, req any) error {
	var res struct {
		Session string `json:"session"`
	}
	if _, err := c.post(ctx, path, 0, req, &res); err != nil {
		return err
	}
	c.SetSession(res.Session)
	return nil
}

// post makes one attempt of an RPC and returns how many keys the answer has.
func (c *Client) post(ctx context.Context, path string, wait float64, req, res any) (int, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return 0, fmt.Errorf("encode %s: %w", path, err)
	}
	answer, err := c.call(ctx, http.MethodPost, path, wait, body)
	if err != nil {
		return 0, err
	}
	bad := func(text string) error {
		return &Error{Path: path, Status: http.StatusOK, Text: text, Transient: true}
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(answer, &keys); err != nil || keys == nil {
		return 0, bad("the answer is not a JSON object")
	}
	if text, ok := truthyError(keys["error"]); ok {
		return 0, bad(text)
	}
	if err := json.Unmarshal(answer, res); err != nil {
		return 0, bad("the answer does not decode: " + err.Error())
	}
	return len(keys), nil
}

// truthyError reads the key by which a server refuses with status 200.
func truthyError(raw json.RawMessage) (string, bool) {
	switch s := string(raw); s {
	case "", "null", `""`, "false", "0", "{}", "[]":
		return "", false
	default:
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return text, true
		}
		return s, true
	}
}

func (c *Client) call(ctx context.Context, method, path string, wait float64, body []byte) ([]byte, error) {
	timeout := callTimeout
	if wait > 0 {
		timeout = time.Duration(wait*float64(time.Second)) + waitSlack
	}
	attempt, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(attempt, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	c.setHeaders(req, body != nil)
	start := c.opt.Now()
	answer, err := c.roundTrip(req, path)
	if err != nil {
		if ctx.Err() != nil {
			err = &Error{Path: path, Text: "given up by the caller", cause: ctx.Err()}
		}
		c.opt.Log.DebugContext(ctx, "call failed", "path", path, "err", err, "took", c.opt.Now().Sub(start))
	}
	return answer, err
}

func (c *Client) setHeaders(req *http.Request, hasBody bool) {
	h := req.Header
	h.Set("User-Agent", c.agent)
	h.Set(HeaderBotID, c.opt.BotID)
	h.Set("Accept", "*/*")
	// Every call may be repeated (design rule 1): an empty value lets net/http
	// send one again when the server had closed the kept connection, and is not
	// written to the wire.
	h["X-Idempotency-Key"] = nil
	if hasBody {
		h.Set("Content-Type", "application/json; charset=UTF-8")
	}
	if c.opt.Dir != "" {
		h.Set("Cookie", "GOOGAPPUID="+trafficSplit(c.opt.Now(), c.opt.BotID, c.opt.Dir))
	}
	if c.opt.Headers != nil {
		for k, v := range c.opt.Headers() {
			h.Set(k, v)
		}
	}
}

// trafficSplit spreads bots over the versions of a hosted server.
// spec bot.md §2.1.
func trafficSplit(now time.Time, bot, dir string) string {
	sum := sha1.Sum([]byte(now.UTC().Format(time.DateOnly) + "-" + bot + ":" + dir))
	var n uint64 // the 160-bit number modulo 1000, in steps of 32 bits
	for i := 0; i < len(sum); i += 4 {
		n = (n<<32 | uint64(binary.BigEndian.Uint32(sum[i:]))) % 1000
	}
	return strconv.FormatUint(n, 10)
}

func (c *Client) roundTrip(req *http.Request, path string) ([]byte, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, &Error{Path: path, Text: "no answer: " + withoutURL(err).Error(), Transient: true, cause: err}
	}
	defer res.Body.Close()
	limit := int64(maxAnswer)
	if res.StatusCode >= 300 {
		limit = maxErrorBody
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	switch {
	case res.StatusCode >= 300:
		return nil, refusal(path, res, body)
	case err != nil:
		return nil, &Error{Path: path, Status: res.StatusCode, Text: "the answer broke off: " + err.Error(), Transient: true, cause: err}
	case int64(len(body)) > limit:
		return nil, &Error{Path: path, Status: res.StatusCode, Text: fmt.Sprintf("the answer is longer than %d bytes", limit)}
	}
	return body, nil
}

// withoutURL drops net/http's `Post "…": ` prefix; the Error names the path.
func withoutURL(err error) error {
	if u, ok := err.(*url.Error); ok { //nolint:errorlint // only the outermost one is meant
		return u.Err
	}
	return err
}
