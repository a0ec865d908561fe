package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/jsonfd"
)

// Client is a connection to a pool. It may be used by many at once. The rooms
// that it got are its own and end with it.
type Client struct {
	conn *jsonfd.Conn

	mu    sync.Mutex
	last  uint64
	calls map[uint64]chan Response
	err   error // why it is over
	done  chan struct{}
}

// Dial connects to the pool whose socket is at path. An Unavailable error means
// that nobody answers there.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, Refusef(skep.Unavailable, ReasonNoService, "no pool answers at %s (%v); start one with skep pool start", path, err)
	}
	cl := &Client{conn: jsonfd.NewConn(c.(*net.UnixConn)), calls: map[uint64]chan Response{}, done: make(chan struct{})} //nolint:errcheck // "unix" gives no other
	go cl.receive()
	return cl, nil
}

// Close ends the connection, and with it its rooms.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	return err
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) receive() {
	defer close(c.done)
	defer c.conn.Drop()
	for {
		line, err := c.conn.Receive()
		var r Response
		if err == nil {
			err = jsonfd.Decode(line, &r)
		}
		c.mu.Lock()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				err = Refusef(skep.Unavailable, ReasonNoService, "the connection to the pool has ended")
			}
			if c.err == nil {
				c.err = err
			}
			for id, call := range c.calls {
				close(call)
				delete(c.calls, id)
			}
			c.mu.Unlock()
			_ = c.conn.Close()
			return
		}
		if r.ID == 0 && r.Error != nil {
			c.err = r.Error // the service ends the connection next
		}
		call := c.calls[r.ID]
		if call != nil && r.Started == nil {
			delete(c.calls, r.ID)
		}
		if call != nil {
			call <- r // holds as many as can come
		}
		c.mu.Unlock()
	}
}

// lastWord is what a service that ended a connection has to say why.
const lastWord = 5 * time.Second

// begin sends r under a new id. Its answers come from the channel, which is
// closed when the connection ends.
func (c *Client) begin(ctx context.Context, r *Request, files ...*os.File) (chan Response, error) {
	answers := make(chan Response, 2)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.last++
	r.ID = c.last
	c.calls[r.ID] = answers
	c.mu.Unlock()
	if err := c.conn.Send(r, files...); err != nil {
		c.forget(r.ID)
		// The service has ended the connection, and says why first. What else keeps
		// a message from being sent ends nothing: our rooms live on.
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
			_ = c.conn.Socket().CloseWrite()
			late := time.NewTimer(lastWord)
			select {
			case <-c.done:
			case <-ctx.Done():
			case <-late.C:
			}
			late.Stop()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			err = c.err
		}
		return nil, fmt.Errorf("pool: %w", err)
	}
	return answers, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, id)
}

func (c *Client) answer(ctx context.Context, id uint64, answers chan Response) (*Response, error) {
	select {
	case r, ok := <-answers:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		}
		if r.Error != nil {
			return nil, r.Error
		}
		return &r, nil
	case <-ctx.Done():
		c.forget(id)
		return nil, ctx.Err()
	}
}

func (c *Client) call(ctx context.Context, r *Request, files ...*os.File) (*Response, error) {
	answers, err := c.begin(ctx, r, files...)
	if err != nil {
		return nil, err
	}
	return c.answer(ctx, r.ID, answers)
}

// Echo asks whether the service lives.
func (c *Client) Echo(ctx context.Context, text string) (string, error) {
	r, err := c.call(ctx, &Request{Echo: &Echo{Text: text}})
	if err != nil {
		return "", err
	}
	if r.Echo == nil {
		return "", errNoSense
	}
	return r.Echo.Text, nil
}

var errNoSense = errors.New("the pool's answer has not what was asked for")

// Status returns how the pool is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	r, err := c.call(ctx, &Request{Status: &StatusAsked{}})
	if err != nil {
		return nil, err
	}
	if r.Status == nil {
		return nil, errNoSense
	}
	return r.Status, nil
}

// Rebase has rooms made of another base image; see the message. It takes as long
// as unpacking that does.
func (c *Client) Rebase(ctx context.Context, r Rebase) error {
	_, err := c.call(ctx, &Request{Rebase: &r})
	return err
}

// Shutdown ends the service, and returns when everything it had is removed.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.call(ctx, &Request{Shutdown: &Shutdown{}})
	return err
}

// Get returns a room, or an Exhausted error with ReasonNoStock when none came
// within the time. When ctx ends first the connection must be closed, as the
// room may be under way.
func (c *Client) Get(ctx context.Context, g Get) (*Room, error) {
	return c.room(ctx, &Request{Get: &g})
}

// Confirm takes the room of l for good; see the message.
func (c *Client) Confirm(ctx context.Context, l Lease, keep time.Duration) (*Room, error) {
	return c.room(ctx, &Request{Confirm: &Confirm{Lease: l, KeepMS: keep.Milliseconds()}})
}

func (c *Client) room(ctx context.Context, r *Request) (*Room, error) {
	res, err := c.call(ctx, r)
	if err != nil {
		return nil, err
	}
	if res.Room == nil {
		return nil, errNoSense
	}
	return res.Room, nil
}

// Bind makes dir, an open directory, appear in the room at a path.
func (c *Client) Bind(ctx context.Context, l Lease, dir *os.File, at string, readOnly bool) error {
	_, err := c.call(ctx, &Request{Bind: &Bind{Lease: l, At: at, ReadOnly: readOnly}}, dir)
	return err
}

// Release ends the room, and returns when none of its processes is left.
func (c *Client) Release(ctx context.Context, l Lease) error {
	_, err := c.call(ctx, &Request{Release: &Release{Lease: l}})
	return err
}

// Command is a command that runs in a room.
type Command struct {
	PID int // in the room

	c       *Client
	lease   Lease
	id      uint64
	answers chan Response
}

// Start starts e in its room with files as standard input, output and error,
// which stay the caller's. A Precondition error with ReasonExec means that the
// command cannot be started.
func (c *Client) Start(ctx context.Context, e Exec, files [3]*os.File) (*Command, error) {
	r := &Request{Exec: &e}
	answers, err := c.begin(ctx, r, files[:]...)
	if err != nil {
		return nil, err
	}
	res, err := c.answer(ctx, r.ID, answers)
	if err != nil {
		return nil, err
	}
	if res.Started == nil {
		return nil, errNoSense
	}
	return &Command{PID: res.Started.PID, c: c, lease: e.Lease, id: r.ID, answers: answers}, nil
}

// Wait returns how the command ended: its exit code, or -N when signal N
// killed it.
func (cmd *Command) Wait(ctx context.Context) (int, error) {
	r, err := cmd.c.answer(ctx, cmd.id, cmd.answers)
	if err != nil {
		return 0, err
	}
	if r.Exit == nil {
		return 0, errNoSense
	}
	return r.Exit.Code, nil
}

// Signal sends a signal, by its number on Linux, to the command's process.
func (cmd *Command) Signal(ctx context.Context, signal int) error {
	_, err := cmd.c.call(ctx, &Request{Signal: &Signal{Lease: cmd.lease, Exec: cmd.id, Signal: signal}})
	return err
}
