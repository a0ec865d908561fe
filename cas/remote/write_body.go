package remote

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// writeBody makes the WriteRequest messages of a stream. One goroutine of the
// transport reads it, after the call ended too, until it is closed.
type writeBody struct {
	w    *writing
	name string // in the first message only

	mu     sync.Mutex
	r      io.ReadCloser
	buf    []byte // one message, with room in front of the data
	out    []byte // what of buf is still to be read
	at     int64  // of the stream
	end    bool   // the last message was made
	closed bool
	err    error // of r
}

// room is what may stand in front of a message's data.
const room = 512

func (b *writeBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, io.ErrClosedPipe
	}
	if len(b.out) == 0 {
		if b.end {
			return 0, io.EOF
		}
		if err := b.fill(); err != nil {
			b.err = err
			return 0, err
		}
	}
	n := copy(p, b.out)
	b.out = b.out[n:]
	return n, nil
}

// fill makes the next message: fields in front of the data, and the flag that
// it is the last in front of both.
func (b *writeBody) fill() error {
	if b.buf == nil {
		b.buf = make([]byte, room+len(b.name)+chunk)
	}
	start := len(b.buf) - chunk
	n, err := io.ReadFull(b.r, b.buf[start:])
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		b.end = true
	case err != nil:
		return err
	}
	var fields []byte
	fields = appendString(fields, 1, b.name)
	fields = appendInt(fields, 2, b.at)
	if b.end {
		fields = appendInt(fields, 3, 1)
	}
	fields = bytesHead(fields, 10, n)
	head := append(appendFrame(make([]byte, 0, room), len(fields)+n), fields...)
	from := start - len(head)
	copy(b.buf[from:], head)
	b.out = b.buf[from : start+n]
	b.name = ""
	b.at += int64(n)
	b.w.setSent(b.at)
	return nil
}

func (b *writeBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.r.Close()
}

// local is what went wrong with the blob's own bytes.
func (b *writeBody) local() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// position is how far the stream was made.
func (b *writeBody) position() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at
}

// inMemory is a blob in memory as a file.
type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }
