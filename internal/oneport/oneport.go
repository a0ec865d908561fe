// Package oneport gives HTTP/1 and HTTP/2 connections of one address to two
// servers: net/http for people and small requests, another for gRPC.
//
// Plain connections are told by their first bytes: an HTTP/2 client that knows
// what it talks to opens with a preface that no HTTP/1 request begins with
// (RFC 9113, 3.4). TLS connections are told by ALPN; a client that can do both
// gets HTTP/1.1.
package oneport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// preface is what every HTTP/2 client sends first.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	// sniffTime is how long a plain connection may keep its first bytes to
	// itself before it is taken for HTTP/1, whose server has patience of its own.
	// An HTTP/2 client sends its preface at once.
	sniffTime = 3 * time.Second
	// handshakeTime is how long a TLS handshake may take.
	handshakeTime = 10 * time.Second
)

// Port splits a listener into two. Accept on HTTP1 and HTTP2 works while Serve
// runs.
type Port struct {
	HTTP1, HTTP2 net.Listener

	l      net.Listener
	tls    *tls.Config
	h1, h2 *side
	ctx    context.Context
	cancel context.CancelFunc
}

// New splits l; with a TLS configuration, whose NextProtos it sets itself, its
// connections are TLS.
func New(l net.Listener, config *tls.Config) *Port {
	p := &Port{l: l, h1: newSide(l.Addr()), h2: newSide(l.Addr())}
	p.HTTP1, p.HTTP2 = p.h1, p.h2
	if config != nil {
		p.tls = config.Clone()
		p.tls.NextProtos = []string{"http/1.1", "h2"} // in the order of our preference
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Serve accepts connections until Close, and returns nil then. Those that no
// server took are closed when it returns.
func (p *Port) Serve() error {
	var pending sync.WaitGroup
	defer pending.Wait()
	defer p.cancel()
	pause := time.Duration(0)
	for {
		c, err := p.l.Accept()
		switch {
		case err == nil:
			pause = 0
			pending.Go(func() { p.sort(c) })
			continue
		case p.ctx.Err() != nil:
			return nil
		case !transient(err):
			return err
		}
		// Such as too many open files: others will close theirs.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-p.ctx.Done():
			return nil
		}
	}
}

func transient(err error) bool {
	t, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && t.Temporary()
}

// Close ends Serve and the two listeners. Connections that were accepted from
// them go on.
func (p *Port) Close() error {
	p.cancel()
	_ = p.h1.Close()
	_ = p.h2.Close()
	return p.l.Close()
}

// sort finds out what a connection speaks and gives it to that side.
func (p *Port) sort(c net.Conn) {
	stop := context.AfterFunc(p.ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	conn, side, err := p.look(c)
	// When stop says no, the connection has a deadline that nobody would lift.
	if !stop() || err != nil || !side.offer(conn) {
		_ = c.Close()
	}
}

func (p *Port) look(c net.Conn) (net.Conn, *side, error) {
	if p.tls != nil {
		t := tls.Server(c, p.tls)
		ctx, cancel := context.WithTimeout(p.ctx, handshakeTime)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, nil, err
		}
		if t.ConnectionState().NegotiatedProtocol == "h2" {
			return t, p.h2, nil
		}
		return t, p.h1, nil
	}
	_ = c.SetReadDeadline(time.Now().Add(sniffTime))
	begun, side, err := p.sniff(c)
	if err != nil {
		return nil, nil, err
	}
	if p.ctx.Err() != nil {
		return nil, nil, p.ctx.Err()
	}
	_ = c.SetReadDeadline(time.Time{})
	return &conn{Conn: c, begun: begun}, side, nil
}

// sniff reads until the preface is there or cannot come any more.
func (p *Port) sniff(c net.Conn) ([]byte, *side, error) {
	buf := make([]byte, 0, len(preface))
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case string(buf) == preface:
			return buf, p.h2, nil
		case string(buf) != preface[:len(buf)]:
			return buf, p.h1, nil
		case err != nil && p.ctx.Err() == nil && isTimeout(err):
			return buf, p.h1, nil
		case err != nil:
			return nil, nil, err
		}
	}
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

// conn is a connection of which the first bytes have been read.
type conn struct {
	net.Conn
	begun []byte
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.begun) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.begun)
	if c.begun = c.begun[n:]; len(c.begun) == 0 {
		c.begun = nil
	}
	return n, nil
}

// ReadFrom lets net/http send files without copying them.
func (c *conn) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// CloseWrite lets net/http end its side first, so that a client reads the
// answer before it sees the end.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// side is one of the two listeners.
type side struct {
	addr   net.Addr
	conns  chan net.Conn
	done   chan struct{}
	closed sync.Once
}

func newSide(addr net.Addr) *side {
	return &side{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// offer reports whether somebody accepted c.
func (s *side) offer(c net.Conn) bool {
	select {
	case s.conns <- c:
		return true
	case <-s.done:
		return false
	}
}

func (s *side) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

func (s *side) Close() error {
	s.closed.Do(func() { close(s.done) })
	return nil
}

func (s *side) Addr() net.Addr { return s.addr }
