package remote

import (
	"bufio"
	"context"
	"net"
	"sync"
)

// Sizes of a conn's buffers.
const (
	readAhead   = 128 << 10
	writeBehind = 256 << 10
	writeNow    = 4 << 10 // bytes that are sent at once when nothing else waits
)

// conn talks to the kernel in large pieces. The transport reads and writes
// HTTP/2 frames, 16 KiB at most with other servers than its own, through
// buffers of 4 KiB: two calls for a frame, a quarter of a million for a GiB, each
// of which costs as much as the hash of its bytes. What is written while the
// kernel is busy with what came before goes with the next call.
type conn struct {
	net.Conn
	in *bufio.Reader // of the transport's one reader

	mu      sync.Mutex
	written sync.Cond
	wait    []byte // to be written next
	spare   []byte // the other buffer; nil while it is written
	writing bool
	err     error // of writing, for good
}

// dialer makes connections of that kind.
func dialer(dial func(ctx context.Context, network, addr string) (net.Conn, error)) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return newConn(c), nil
	}
}

func newConn(c net.Conn) *conn {
	out := &conn{Conn: c, in: bufio.NewReaderSize(c, readAhead)}
	out.written.L = &out.mu
	return out
}

// Read returns what has come.
func (c *conn) Read(p []byte) (int, error) { return c.in.Read(p) }

// Write takes p over. An error of the connection may come with a later call; it
// is closed then, so that the reader sees it, too.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := 0; ; {
		for c.err == nil && c.writing && len(c.wait) == writeBehind {
			c.written.Wait()
		}
		if c.err != nil {
			return n, c.err
		}
		if !c.writing && n == 0 && len(p) < writeNow { // of a small call: nobody else need wake up
			c.writing = true
			c.mu.Unlock()
			_, err := c.Conn.Write(p)
			c.mu.Lock()
			if c.ended(err); len(c.wait) > 0 && c.err == nil {
				c.start()
			}
			return len(p), err
		}
		if c.wait == nil {
			c.wait = make([]byte, 0, writeBehind)
		}
		k := copy(c.wait[len(c.wait):writeBehind], p[n:])
		c.wait = c.wait[:len(c.wait)+k]
		if !c.writing {
			c.start()
		}
		if n += k; n == len(p) {
			return n, nil
		}
	}
}

// ended notes the end of a call of the kernel. c.mu is held.
func (c *conn) ended(err error) {
	c.writing = false
	if err != nil && c.err == nil {
		c.err = err
		_ = c.Conn.Close()
	}
	c.written.Broadcast()
}

// start has what waits written. c.mu is held.
func (c *conn) start() {
	c.writing = true
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for len(c.wait) > 0 && c.err == nil {
			out := c.wait
			c.wait, c.spare = c.spare, nil
			c.written.Broadcast()
			c.mu.Unlock()
			_, err := c.Conn.Write(out)
			c.mu.Lock()
			c.spare = out[:0]
			if err != nil {
				c.ended(err)
				return
			}
		}
		c.ended(nil)
	}()
}

// Close ends the connection; what the kernel has not taken yet is lost.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.err == nil {
		c.err = net.ErrClosed
	}
	c.written.Broadcast()
	c.mu.Unlock()
	return c.Conn.Close()
}
