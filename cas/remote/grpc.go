package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Sizes of messages.
const (
	frameHeader   = 5                  // a flag and the length
	maxMessage    = 4 << 20            // what servers take, as far as they say nothing else
	messageSlack  = 64 << 10           // of a message for what is not the blobs' bytes
	maxAnswer     = maxMessage + 1<<20 // what we read: some servers go a little over their own limit
	unaryDeadline = 2 * time.Minute    // of one attempt
	stallDeadline = 2 * time.Minute    // without a byte in either direction
)

// appendFrame puts the header of a message of n bytes behind b.
func appendFrame(b []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0), uint32(n))
}

// segments is a body in pieces, so that a message need not be copied together.
type segments struct {
	rest [][]byte
}

func (s *segments) Read(p []byte) (n int, err error) {
	for len(s.rest) > 0 && n < len(p) {
		k := copy(p[n:], s.rest[0])
		n += k
		if s.rest[0] = s.rest[0][k:]; len(s.rest[0]) == 0 {
			s.rest = s.rest[1:]
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// stream is a call whose answer is under way.
type stream struct {
	resp  *http.Response
	stop  context.CancelCauseFunc
	stall *time.Timer
	head  [frameHeader]byte
}

var errStalled = errors.New("the connection stands still")

// open starts a call. body is the framed request of size bytes, -1 when that is
// not known. within is the limit of the whole call; 0 only limits how long it may
// stand still. The answer's end and its errors come from recv.
func (c *Client) open(ctx context.Context, method string, body io.Reader, size int64, within time.Duration) (*stream, error) {
	ctx, stop := context.WithCancelCause(ctx)
	s := &stream{stop: stop, stall: time.AfterFunc(stallDeadline, func() { stop(errStalled) })}
	if within > 0 {
		s.stall.Reset(within)
	}
	u, err := url.Parse(c.base + method)
	if err != nil {
		s.close()
		return nil, permanentError{err}
	}
	req := (&http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host, ContentLength: size,
		Header: http.Header{
			"Content-Type": {"application/grpc"},
			"Te":           {"trailers"},
			"User-Agent":   {"skep"},
		},
		Body: &sending{Reader: body, s: s, within: within},
	}).WithContext(ctx)
	if at, has := ctx.Deadline(); has {
		req.Header.Set("Grpc-Timeout", timeout(time.Until(at)))
	} else if within > 0 {
		req.Header.Set("Grpc-Timeout", timeout(within))
	}
	if c.opt.Headers != nil {
		for k, v := range c.opt.Headers() {
			req.Header.Set(k, v)
		}
	}
	if s.resp, err = c.http.RoundTrip(req); err != nil { //nolint:bodyclose // close does
		err = cause(ctx, err)
		s.close()
		return nil, err
	}
	c.answered.Store(true)
	switch {
	case s.resp.ProtoMajor != 2:
		err = permanentError{fmt.Errorf("%s does not speak HTTP/2", c.base)}
	case s.resp.StatusCode != http.StatusOK:
		err = httpStatus(s.resp)
	case !strings.HasPrefix(s.resp.Header.Get("Content-Type"), "application/grpc"):
		err = permanentError{fmt.Errorf("%s does not speak gRPC: it answers %.80q", c.base, s.resp.Header.Get("Content-Type"))}
	case s.resp.Header.Get("Grpc-Status") != "": // no message follows
		err = trailerStatus(s.resp.Header)
		if err == nil {
			err = statusf(unavailable, "the answer has no message")
		}
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// cause prefers why we ended the call ourselves.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
		return fmt.Errorf("%w: %w", why, err)
	}
	return err
}

// sending is the body of a request: as long as it moves the call does not
// stand still.
type sending struct {
	io.Reader
	s      *stream
	within time.Duration
}

func (b *sending) Read(p []byte) (int, error) {
	if b.within == 0 {
		b.s.stall.Reset(stallDeadline)
	}
	return b.Reader.Read(p)
}

func (b *sending) Close() error {
	if c, ok := b.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// next reads the header of the next message and returns its size; io.EOF is
// the end of a call that was OK.
func (s *stream) next(limit int) (int, error) {
	_, err := io.ReadFull(s.resp.Body, s.head[:])
	if err == io.EOF {
		if err := trailerStatus(s.resp.Trailer); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if err != nil {
		return 0, s.cut(err)
	}
	if s.head[0] != 0 {
		return 0, statusf(unimplemented, "the answer is compressed, which nobody asked for")
	}
	n := binary.BigEndian.Uint32(s.head[1:])
	if int64(n) > int64(limit) {
		return 0, statusf(unimplemented, "the answer has a message of %d bytes, %d is the limit", n, limit)
	}
	return int(n), nil
}

// cut is the error of an answer that ended within a message.
func (s *stream) cut(err error) error {
	return statusf(unavailable, "the answer was cut off: %v", cause(s.resp.Request.Context(), err))
}

// recv reads the next message into buf, which grows as needed, up to limit
// bytes. io.EOF is the end of a call that was OK.
func (s *stream) recv(buf []byte, limit int) ([]byte, error) {
	n, err := s.next(limit)
	if err != nil {
		return nil, err
	}
	s.stall.Reset(stallDeadline)
	// A header may lie: memory follows what arrives.
	const step = 1 << 20
	buf = buf[:0]
	for len(buf) < n {
		k := min(n-len(buf), max(step, cap(buf)-len(buf)))
		at := len(buf)
		if cap(buf) < at+k {
			grown := make([]byte, at, max(at+k, min(2*cap(buf), n)))
			copy(grown, buf)
			buf = grown
		}
		buf = buf[:at+k]
		if _, err := io.ReadFull(s.resp.Body, buf[at:]); err != nil {
			return nil, s.cut(err)
		}
		s.stall.Reset(stallDeadline)
	}
	return buf, nil
}

// close ends the call, whatever is under way.
func (s *stream) close() {
	s.stall.Stop()
	s.stop(context.Canceled)
	if s.resp != nil {
		_ = s.resp.Body.Close()
	}
}

// unary makes a call with one message each way, once. buf is for the answer
// and may be nil.
func (c *Client) unary(ctx context.Context, method string, msg [][]byte, buf []byte) ([]byte, error) {
	answer, _, err := c.call(ctx, method, msg, buf)
	return answer, err
}

// call is unary that returns the headers of the answer, too.
func (c *Client) call(ctx context.Context, method string, msg [][]byte, buf []byte) ([]byte, http.Header, error) {
	size := 0
	for _, m := range msg {
		size += len(m)
	}
	head := appendFrame(make([]byte, 0, frameHeader), size)
	s, err := c.open(ctx, method, &segments{append([][]byte{head}, msg...)}, int64(frameHeader+size), unaryDeadline)
	if err != nil {
		return nil, nil, err
	}
	defer s.close()
	answer, err := s.recv(buf, maxAnswer)
	if errors.Is(err, io.EOF) {
		return nil, nil, statusf(unavailable, "the answer has no message")
	}
	if err != nil {
		return nil, nil, err
	}
	switch _, err = s.next(maxAnswer); {
	case errors.Is(err, io.EOF):
		return answer, s.resp.Header, nil
	case err == nil:
		return nil, nil, statusf(unimplemented, "the answer has more than one message")
	default:
		return nil, nil, err
	}
}

// timeout is the value of grpc-timeout: at most eight digits and a unit.
func timeout(d time.Duration) string {
	d = max(d, time.Millisecond)
	if ms := d.Milliseconds(); ms < 1e8 {
		return strconv.FormatInt(ms, 10) + "m"
	}
	return strconv.FormatInt(min(int64(d.Seconds()), 1e8-1), 10) + "S"
}

// one frames a message that is in one piece.
func one(msg []byte) io.Reader {
	return bytes.NewReader(append(appendFrame(make([]byte, 0, frameHeader+len(msg)), len(msg)), msg...))
}
