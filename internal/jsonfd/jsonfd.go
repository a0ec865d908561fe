// Package jsonfd sends and receives lines of JSON over a Unix socket, and open
// files with them.
package jsonfd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// MaxLine is the longest line in bytes, its end included.
const MaxLine = 64 << 10

// maxWaiting is how many files may have come that nobody took yet.
const maxWaiting = 32

// ErrTooLong is a line of more than MaxLine bytes.
var ErrTooLong = fmt.Errorf("a message is longer than %d bytes", MaxLine)

// Conn is one side of a connection. One goroutine may receive while many send.
type Conn struct {
	c   *net.UnixConn
	raw syscall.RawConn

	buf   []byte // received; of it next..len is not given out
	next  int
	files []*os.File // received and not taken

	sending sync.Mutex
}

// NewConn makes a Conn of c, which is then its.
func NewConn(c *net.UnixConn) *Conn {
	raw, _ := c.SyscallConn() // fails for no connection only, as all that follows
	return &Conn{c: c, raw: raw}
}

// Socket returns the connection underneath, to ask it things.
func (c *Conn) Socket() *net.UnixConn { return c.c }

// Receive returns the next line, without its end. It is valid until the next
// call. At the end of the stream it returns io.EOF, and io.ErrUnexpectedEOF
// within a line.
func (c *Conn) Receive() ([]byte, error) {
	for scanned := c.next; ; {
		if i := bytes.IndexByte(c.buf[scanned:], '\n'); i >= 0 {
			line := c.buf[c.next : scanned+i]
			c.next = scanned + i + 1
			if len(line) >= MaxLine {
				return nil, ErrTooLong
			}
			return line, nil
		}
		if len(c.buf)-c.next >= MaxLine {
			return nil, ErrTooLong
		}
		if c.next > 0 {
			c.buf = append(c.buf[:0], c.buf[c.next:]...)
			c.next = 0
		}
		scanned = len(c.buf)
		if err := c.fill(); err != nil {
			if errors.Is(err, io.EOF) && len(c.buf) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// fill reads once more, when something is there: one that says nothing has no
// buffer, and a small stack.
func (c *Conn) fill() error {
	if err := c.wait(); err != nil {
		return err
	}
	return c.read()
}

// read receives what is there. The buffer grows with what comes, so that a
// connection that says little costs little.
func (c *Conn) read() error {
	if cap(c.buf)-len(c.buf) < 512 {
		grown := make([]byte, len(c.buf), max(1024, 2*cap(c.buf)))
		copy(grown, c.buf)
		c.buf = grown
	}
	var oob [oobSize]byte
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf[len(c.buf):cap(c.buf)], oob[:])
	if oobn > 0 {
		files, ferr := received(oob[:oobn], flags)
		c.files = append(c.files, files...)
		if ferr != nil {
			return ferr
		}
		if len(c.files) > maxWaiting {
			return errors.New("more open files came than messages speak of")
		}
	}
	if n > 0 {
		c.buf = c.buf[:len(c.buf)+n]
		return nil
	}
	if err == nil {
		err = io.EOF
	}
	return err
}

// Take returns the next n files that came; they are the caller's then.
func (c *Conn) Take(n int) ([]*os.File, error) {
	if n < 0 || n > len(c.files) {
		return nil, fmt.Errorf("the message speaks of %d open files, and %d came", n, len(c.files))
	}
	taken := c.files[:n:n]
	c.files = append([]*os.File(nil), c.files[n:]...)
	return taken, nil
}

// Send sends v as one line, and files with it; they stay the caller's.
func (c *Conn) Send(v any, files ...*os.File) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if len(line) > MaxLine {
		return ErrTooLong
	}
	oob, err := rights(files)
	if err != nil {
		return err
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	n, _, err := c.c.WriteMsgUnix(line, oob, nil)
	if err == nil && n < len(line) {
		_, err = c.c.Write(line[n:])
	}
	return err
}

// Close ends the connection. Files that came and were not taken are closed by
// the goroutine that receives, with Drop.
func (c *Conn) Close() error { return c.c.Close() }

// Drop closes the files that were not taken.
func (c *Conn) Drop() {
	for _, f := range c.files {
		_ = f.Close()
	}
	c.files = nil
}

// Decode reads line into v: one JSON value and nothing else, without fields
// that v has not.
func Decode(line []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("more than one JSON value in a line")
	}
	return nil
}
