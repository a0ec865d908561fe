package remote

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// chunk is how many bytes of a blob one message of a stream has.
const chunk = 1 << 20

// write uploads one blob as a stream, at a place among the transfers.
func (c *Client) write(ctx context.Context, s Source, limits Limits, progress func(int64)) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	return c.writeHeld(ctx, s, limits, progress)
}

func (c *Client) writeHeld(ctx context.Context, s Source, limits Limits, progress func(int64)) error {
	w := &writing{c: c, source: s, progress: progress, compressed: limits.Zstd && c.pays(s.Digest.Size)}
	w.rename()
	err := c.retry(ctx, "upload blob "+s.Digest.String(), w.try)
	if err == nil {
		w.told(s.Digest.Size)
	}
	return err
}

// writing is one blob on its way to the storage.
type writing struct {
	c          *Client
	source     Source
	progress   func(int64)
	compressed bool

	name    string // resource: the same for all tries that go on where one stopped
	tried   bool   // with this name
	resumed bool
	most    int64 // the furthest that the storage confirmed

	mu   sync.Mutex // a body of an earlier try may still be read
	sent int64      // bytes of the stream, in all tries with this name
	done int64      // bytes told to progress
}

// rename begins a new upload.
func (w *writing) rename() {
	w.name = w.c.upload(w.source.Digest, newUUID(), w.compressed)
	w.tried, w.resumed, w.most = false, false, 0
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = 0
}

func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// told reports that the blob is sent up to n.
func (w *writing) told(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n > w.done {
		w.progress(n - w.done)
		w.done = n
	}
}

// setSent notes how much of the stream was given away.
func (w *writing) setSent(n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = max(w.sent, n)
}

// try sends the blob, from where the last try stopped.
func (w *writing) try(ctx context.Context) (progress bool, err error) {
	var at int64
	if w.tried {
		complete := false
		at, complete, err = w.status(ctx)
		if err != nil || complete {
			return false, err
		}
		progress, w.most = at > w.most, max(w.most, at)
		w.resumed = w.resumed || at > 0
	}
	w.tried = true
	err = w.once(ctx, at)
	if w.resumed && (codeOf(err) == invalidArgument || codeOf(err) == outOfRange) {
		// What storages say of an offset in a compressed stream differs: begin anew, once.
		w.rename()
		return true, statusf(unavailable, "%v", err)
	}
	if w.compressed && codeOf(err) == unimplemented {
		w.compressed = false
		w.rename()
		return true, statusf(unavailable, "%v", err)
	}
	return progress, err
}

// status asks how much of the blob the storage has.
func (w *writing) status(ctx context.Context) (at int64, complete bool, err error) {
	b, err := w.c.unary(ctx, methodWriteStatus, [][]byte{appendString(nil, 1, w.name)}, nil)
	if c := codeOf(err); c == notFound || c == unimplemented {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if at, complete, err = decodeWrite(b); err != nil {
		return 0, false, malformed("query write status", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if at < 0 || at > w.sent || !w.compressed && at > w.source.Digest.Size {
		at = 0
	}
	return at, complete, nil
}

// once sends the stream's bytes from at on.
func (w *writing) once(ctx context.Context, at int64) error {
	r, err := w.reader(at)
	if err != nil {
		return permanentError{err}
	}
	body := &writeBody{w: w, r: r, at: at, name: w.name}
	s, err := w.c.open(ctx, methodWrite, body, -1, 0)
	if local := body.local(); local != nil {
		err = permanentError{local}
	}
	if err != nil {
		return err
	}
	defer s.close()
	answer, err := s.recv(nil, maxAnswer)
	if local := body.local(); local != nil {
		return permanentError{local}
	}
	if errors.Is(err, io.EOF) {
		return statusf(unavailable, "the answer has no message")
	}
	if err != nil {
		return err
	}
	if _, err = s.next(maxAnswer); !errors.Is(err, io.EOF) {
		if err == nil {
			err = statusf(unimplemented, "the answer has more than one message")
		}
		return err
	}
	committed, _, err := decodeWrite(answer)
	if err != nil {
		return malformed("write", err)
	}
	// The whole blob; -1 for a compressed one that is there already, or the
	// compressed bytes where a storage counts those.
	if committed != w.source.Digest.Size && (!w.compressed || committed != -1 && committed != body.position()) {
		return statusf(unavailable, "the storage has taken %d of %d bytes", committed, w.source.Digest.Size)
	}
	return nil
}

// reader opens the stream of the blob at an offset.
func (w *writing) reader(at int64) (io.ReadCloser, error) {
	f, err := w.source.open()
	if err != nil {
		return nil, err
	}
	if !w.compressed {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			f.Close()
			return nil, err
		}
		return &exact{f: f, d: w.source.Digest, left: w.source.Digest.Size - at, told: w.told, at: at}, nil
	}
	r := compress(&exact{f: f, d: w.source.Digest, left: w.source.Digest.Size, told: w.told})
	if _, err := io.CopyN(io.Discard, r, at); err != nil { // one encoder gives the same bytes each time
		r.Close()
		return nil, err
	}
	return r, nil
}

// compress returns the compressed form of r.
func compress(r io.ReadCloser) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() {
		defer r.Close()
		e, err := zstd.NewWriter(pw, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow))
		if err == nil {
			if _, err = io.CopyBuffer(struct{ io.Writer }{e}, r, make([]byte, 256<<10)); err == nil {
				err = e.Close()
			}
		}
		pw.CloseWithError(err)
	}()
	return pr
}

// exact reads the bytes of a file that its digest speaks of, no fewer and no
// more.
type exact struct {
	f        io.ReadCloser
	d        cas.Digest
	left, at int64
	told     func(int64)
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		if n, _ := e.f.Read(make([]byte, 1)); n > 0 {
			return 0, changed(e.d)
		}
		return 0, io.EOF
	}
	n, err := e.f.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	e.told(e.at) // what went before is on its way
	e.at += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if n == 0 {
			err = changed(e.d)
		}
	}
	return n, err
}

func (e *exact) Close() error { return e.f.Close() }

// open gives the bytes of a source, whichever way it has them.
func (s Source) open() (io.ReadSeekCloser, error) {
	if s.Open != nil {
		return s.Open()
	}
	if int64(len(s.Data)) != s.Digest.Size {
		return nil, skep.Errorf(skep.Invalid, "blob %s has %d bytes", s.Digest, len(s.Data))
	}
	return inMemory{bytes.NewReader(s.Data)}, nil
}
