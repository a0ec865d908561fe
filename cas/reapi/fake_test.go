package reapi

import (
	"bytes"
	"context"
	"io"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// memory is a Store for tests.
type memory struct {
	mu      sync.Mutex
	blobs   map[cas.Digest][]byte
	uploads map[string]*bytes.Buffer
	fail    error
	reading sync.WaitGroup // readers that are open
}

func newMemory(blobs ...[]byte) *memory {
	m := &memory{blobs: map[cas.Digest][]byte{}, uploads: map[string]*bytes.Buffer{}}
	for _, b := range blobs {
		m.blobs[cas.Sum(b)] = b
	}
	return m
}

func (m *memory) Missing(_ context.Context, ds []cas.Digest) (out []cas.Digest, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range ds {
		if _, ok := m.blobs[d]; !ok {
			out = append(out, d)
		}
	}
	return out, m.fail
}

func (m *memory) put(d cas.Digest, b []byte) error {
	if cas.Sum(b) != d {
		return skep.Errorf(skep.Invalid, "blob %s: the data is %s", d, cas.Sum(b))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blobs[d] = bytes.Clone(b)
	return m.fail
}

func (m *memory) PutBatch(_ context.Context, blobs []Blob) []error {
	errs := make([]error, len(blobs))
	for i, b := range blobs {
		errs[i] = m.put(b.Digest, b.Data)
	}
	return errs
}

func (m *memory) Get(_ context.Context, d cas.Digest, _ int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return nil, &cas.MissingError{Digests: []cas.Digest{d}}
	}
	return b, m.fail
}

func (m *memory) Open(ctx context.Context, d cas.Digest, offset int64) (io.ReadCloser, error) {
	b, err := m.Get(ctx, d, 0)
	if err != nil {
		return nil, err
	}
	m.reading.Add(1)
	return &memoryReader{bytes.NewReader(b[offset:]), m}, nil
}

type memoryReader struct {
	*bytes.Reader
	m *memory
}

func (r *memoryReader) Close() error { r.m.reading.Done(); return nil }

func (m *memory) Upload(_ context.Context, d cas.Digest, id string) (Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := d.String() + id
	if m.uploads[key] == nil {
		m.uploads[key] = new(bytes.Buffer)
	}
	return &memoryUpload{m, m.uploads[key], d, key}, m.fail
}

func (m *memory) UploadOffset(d cas.Digest, id string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.uploads[d.String()+id]; b != nil {
		return int64(b.Len())
	}
	return 0
}

type memoryUpload struct {
	m   *memory
	buf *bytes.Buffer
	d   cas.Digest
	key string
}

func (u *memoryUpload) Offset() int64               { return int64(u.buf.Len()) }
func (u *memoryUpload) Write(p []byte) (int, error) { return u.buf.Write(p) }
func (u *memoryUpload) Close() error                { return nil }
func (u *memoryUpload) Commit(context.Context) error {
	u.m.mu.Lock()
	delete(u.m.uploads, u.key)
	u.m.mu.Unlock()
	return u.m.put(u.d, u.buf.Bytes())
}

var _ Store = (*memory)(nil)

func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x>>24) & 0x3f
	}
	return b
}
