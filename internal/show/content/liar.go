package content

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/reapi"
)

// liar is a storage elsewhere that hands out other bytes than it was asked
// for, as often as it is told to.
type liar struct {
	mu    sync.Mutex
	blobs map[cas.Hash][]byte
	lies  map[cas.Hash]*lie
}

// lie is what becomes of one blob.
type lie struct {
	bend func([]byte) []byte
	left int // times; −1 = always
	told int
}

func (l *liar) put(data []byte) cas.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := cas.Sum(data)
	l.blobs[d.Hash] = bytes.Clone(data)
	return d
}

// read returns what the storage says that blob d is.
func (l *liar) read(d cas.Digest) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d == cas.Empty {
		return nil, nil
	}
	b, ok := l.blobs[d.Hash]
	if !ok {
		return nil, &cas.MissingError{Digests: []cas.Digest{d}}
	}
	if f := l.lies[d.Hash]; f != nil && f.left != 0 {
		f.left--
		f.told++
		return f.bend(bytes.Clone(b)), nil
	}
	return b, nil
}

func (l *liar) Missing(_ context.Context, list []cas.Digest) (out []cas.Digest, err error) {
	for _, d := range list {
		if _, err := l.read(d); err != nil {
			out = append(out, d)
		}
	}
	return out, nil
}

func (l *liar) PutBatch(_ context.Context, list []reapi.Blob) []error {
	for _, b := range list {
		l.put(b.Data)
	}
	return make([]error, len(list))
}

func (l *liar) Get(_ context.Context, d cas.Digest, _ int64) ([]byte, error) { return l.read(d) }

func (l *liar) Open(_ context.Context, d cas.Digest, offset int64) (io.ReadCloser, error) {
	b, err := l.read(d)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b[min(offset, int64(len(b))):])), nil
}

func (l *liar) Upload(context.Context, cas.Digest, string) (reapi.Upload, error) {
	return &liarUpload{l: l}, nil
}

func (l *liar) UploadOffset(cas.Digest, string) int64 { return 0 }

type liarUpload struct {
	l *liar
	b []byte
}

func (u *liarUpload) Offset() int64               { return int64(len(u.b)) }
func (u *liarUpload) Write(p []byte) (int, error) { u.b = append(u.b, p...); return len(p), nil }
func (u *liarUpload) Commit(context.Context) error {
	u.l.put(u.b)
	return nil
}
func (u *liarUpload) Close() error { return nil }

// serve serves the storage on a port of its own until stop.
func (l *liar) serve() (url string, stop func(), err error) { return serveStore(l) }

// serveStore serves a storage as skep servers do.
func serveStore(s reapi.Store) (url string, stop func(), err error) {
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	g := reapi.New(reapi.Options{Store: s}).GRPC()
	done := make(chan struct{})
	go func() { defer close(done); _ = g.Serve(at) }()
	return "grpc://" + at.Addr().String(), func() { g.Stop(); <-done }, nil
}
