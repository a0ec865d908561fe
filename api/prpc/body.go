package prpc

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// MaxRequest is the largest request body, as received and after decompression (spec/prpc.md §7).
const MaxRequest = 64 << 20

// maxPooled keeps one large call from pinning its memory for ever.
const maxPooled = 256 << 10

var (
	buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	zippers = sync.Pool{New: func() any {
		w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a valid one
		return w
	}}
	unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }}
)

func getBuffer() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) }

func putBuffer(b *bytes.Buffer) {
	if b.Cap() <= maxPooled {
		b.Reset()
		buffers.Put(b)
	}
}

// errTooLarge says that more came than was allowed.
var errTooLarge = errors.New("too large")

// readBody reads all of src into dst, at most limit bytes. size is the expected number of bytes, negative when it is
// not known.
func readBody(dst *bytes.Buffer, src io.Reader, size, limit int64) error {
	if size > limit {
		return errTooLarge
	}
	if size > 0 {
		// A claim is not yet a byte: room beyond a little is made as they come.
		dst.Grow(int(min(size, maxPooled)) + bytes.MinRead)
	}
	n, err := dst.ReadFrom(io.LimitReader(src, limit+1))
	if n > limit {
		return errTooLarge
	}
	return err
}

// gunzip appends the decompressed form of src to dst, at most limit bytes.
func gunzip(dst *bytes.Buffer, src []byte, limit int64) error {
	z := unzippers.Get().(*gzip.Reader)
	defer func() {
		_ = z.Reset(bytes.NewReader(nil)) // lets go of src
		unzippers.Put(z)
	}()
	if err := z.Reset(bytes.NewReader(src)); err != nil {
		return err
	}
	return readBody(dst, z, -1, limit)
}

// compress appends the gzip form of src to dst.
func compress(dst *bytes.Buffer, src []byte) {
	z := zippers.Get().(*gzip.Writer)
	defer zippers.Put(z)
	z.Reset(dst)
	_, _ = z.Write(src) // a bytes.Buffer takes everything
	_ = z.Close()
}

// requestBody reads the body of a request into a buffer of the pool, which the caller gives back.
func requestBody(r *http.Request, limit int64) (*bytes.Buffer, *failure) {
	raw := getBuffer()
	if err := readBody(raw, r.Body, r.ContentLength, limit); err != nil {
		putBuffer(raw)
		if errors.Is(err, errTooLarge) {
			return nil, refuse(code.Code_UNAVAILABLE, "reading the request: the request size exceeds the server limit of %d bytes", limit)
		}
		return nil, refuse(code.Code_CANCELLED, "reading the request: %v", err)
	}
	if r.Header.Get("Content-Encoding") != "gzip" {
		return raw, nil
	}
	defer putBuffer(raw)
	plain := getBuffer()
	if err := gunzip(plain, raw.Bytes(), limit); err != nil {
		putBuffer(plain)
		if errors.Is(err, errTooLarge) {
			return nil, refuse(code.Code_UNAVAILABLE, "reading the request: the decompressed request size exceeds the server limit of %d bytes", limit)
		}
		return nil, refuse(code.Code_INVALID_ARGUMENT, "could not decode body: %v", err)
	}
	return plain, nil
}
