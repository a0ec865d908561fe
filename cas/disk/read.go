package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Missing returns those of ds that the store does not have, in their order.
// The others are kept for Keep at least.
func (s *Store) Missing(ctx context.Context, ds []cas.Digest) ([]cas.Digest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	var missing []cas.Digest
	for _, d := range ds {
		if d == cas.Empty {
			continue
		}
		if r, ok := s.find(d); ok {
			s.touch(r, true)
		} else {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// Get returns a whole blob of at most limit bytes; a larger one is an Invalid
// error, one that the store does not have a *cas.MissingError.
func (s *Store) Get(ctx context.Context, d cas.Digest, limit int64) ([]byte, error) {
	return s.get(ctx, d, limit, true)
}

func (s *Store) get(ctx context.Context, d cas.Digest, limit int64, touch bool) ([]byte, error) {
	if d == cas.Empty {
		return []byte{}, nil
	}
	if d.Size > limit {
		return nil, skep.Errorf(skep.Invalid, "blob %s is larger than %d bytes; read it as a stream", d, limit)
	}
	if d.Size <= smallMax {
		return s.getSmall(ctx, d, touch)
	}
	r, err := s.openLarge(ctx, d, 0, touch)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, d.Size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

// Open returns the content of a blob from offset on. Every byte was checked
// before it is handed out. A blob that is not there, or found damaged half way,
// is a *cas.MissingError of Open or Read; an offset outside of the blob is an
// Invalid error.
func (s *Store) Open(ctx context.Context, d cas.Digest, offset int64) (io.ReadCloser, error) {
	if offset < 0 || offset > d.Size {
		return nil, skep.Errorf(skep.Invalid, "offset %d is not within blob %s", offset, d)
	}
	if d.Size > smallMax {
		return s.openLarge(ctx, d, offset, true)
	}
	b, err := s.get(ctx, d, smallMax, true)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b[offset:])), nil
}

func missing(d cas.Digest) error { return &cas.MissingError{Digests: []cas.Digest{d}} }

// look finds a blob for reading.
func (s *Store) look(d cas.Digest, touch bool) (r ref, p *pack, off int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return r, nil, 0, errClosed
	}
	r, ok := s.find(d)
	if !ok {
		return r, nil, 0, missing(d)
	}
	if touch {
		s.touch(r, false)
	}
	if p = s.packs[r.pack]; p != nil {
		o, _ := p.extent(r.ord)
		off = int64(o)
	}
	return r, p, off, nil
}

func (s *Store) getSmall(ctx context.Context, d cas.Digest, touch bool) ([]byte, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, p, off, err := s.look(d, touch)
		if err != nil {
			return nil, err
		}
		b := make([]byte, recordLen+d.Size)
		err = s.readPack(p, b, off)
		if err == nil {
			b, err = checkRecord(b, p.marker, d)
		}
		switch {
		case err == nil:
			return b, nil
		case errors.Is(err, fs.ErrNotExist) && !s.at(d, r): // compacted meanwhile
		case damaged(err):
			s.condemnRecord(d, r, err)
		default:
			return nil, fmt.Errorf("read blob %s: %w", d, err)
		}
	}
}

// damaged says that what was read, or not, is the content's fault.
func damaged(err error) bool {
	return errors.Is(err, errChecksum) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || isUnreadable(err)
}

// at says whether d still lies at r.
func (s *Store) at(d cas.Digest, r ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index[d.Hash] == r
}

func (s *Store) openLarge(ctx context.Context, d cas.Digest, offset int64, touch bool) (io.ReadCloser, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, _, _, err := s.look(d, touch); err != nil {
			return nil, err
		}
		_, name := blobName(d.Hash)
		f, err := s.root.Open(name)
		if err == nil {
			var sums []uint32
			if sums, err = s.footerOf(ctx, f, d); err == nil {
				return &reader{s: s, ctx: ctx, d: d, f: f, sums: sums, at: offset / pieceLen * pieceLen, skip: offset % pieceLen}, nil
			}
			_ = f.Close()
		}
		if !damaged(err) {
			return nil, fmt.Errorf("read blob %s: %w", d, err)
		}
		if err := s.condemnFile(ctx, d, err); err != nil {
			return nil, err
		}
	}
}

// reader hands out a large blob piece by piece, each when it was checked.
type reader struct {
	s    *Store
	ctx  context.Context
	d    cas.Digest
	f    *os.File
	sums []uint32
	room *[pieceLen]byte
	buf  []byte // checked and not handed out
	at   int64  // of the next piece
	skip int64  // bytes at its start that nobody asked for
	err  error
}

var rooms = sync.Pool{New: func() any { return new([pieceLen]byte) }}

// fill reads and checks the next piece.
func (r *reader) fill() error {
	if r.err != nil {
		return r.err
	}
	if r.at == r.d.Size {
		return io.EOF
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if r.room == nil {
		r.room = rooms.Get().(*[pieceLen]byte)
	}
	b := r.room[:min(pieceLen, r.d.Size-r.at)]
	for again := false; ; again = true {
		_, err := r.f.ReadAt(b, r.at)
		if err == nil && crc(b) != r.sums[r.at/pieceLen] {
			err = errChecksum
		}
		if err == nil {
			break
		}
		if damaged(err) {
			if err = r.s.condemnFile(r.ctx, r.d, err); err == nil {
				err = missing(r.d)
				if f, e := r.reopen(); e == nil && !again { // the file at that name is good
					_ = r.f.Close()
					r.f = f
					continue
				}
			}
		}
		r.err = err
		return err
	}
	r.buf, r.at, r.skip = b[r.skip:], r.at+int64(len(b)), 0
	return nil
}

func (r *reader) reopen() (*os.File, error) {
	_, name := blobName(r.d.Hash)
	return r.s.root.Open(name)
}

// Read gives at most the rest of a piece.
func (r *reader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// WriteTo saves a copy.
func (r *reader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		if len(r.buf) == 0 {
			if err := r.fill(); errors.Is(err, io.EOF) {
				return n, nil
			} else if err != nil {
				return n, err
			}
		}
		k, err := w.Write(r.buf)
		n, r.buf = n+int64(k), r.buf[k:]
		if err != nil {
			return n, err
		}
	}
}

// Close gives the file back.
func (r *reader) Close() error {
	if r.room != nil {
		rooms.Put(r.room)
		r.room, r.buf = nil, nil
	}
	r.err = os.ErrClosed
	return r.f.Close()
}
