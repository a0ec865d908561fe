package remote

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// load is blobs of every size class, made once: about both sides of each limit.
// Their bytes are few, as the race detector looks at every one of them.
var load = sync.OnceValue(func() (list []Source) {
	for i, n := range []int{0, 1, 100, 5000, 64 << 10, 300_000, 4<<20 - 70_000, 4<<20 + 1} {
		for _, data := range [][]byte{noise(uint64(i), n), text(uint64(i), n)} {
			list = append(list, Source{Digest: cas.Sum(data), Data: data})
		}
	}
	for i := range 1100 {
		data := text(uint64(i), 20+i%300)
		list = append(list, Source{Digest: cas.Sum(data), Open: func() (io.ReadSeekCloser, error) { return inMemory{bytes.NewReader(data)}, nil }, Data: nil})
	}
	return list
})

func TestUploadAndRead(t *testing.T) {
	for _, tc := range []struct {
		name   string
		server func(*storage)
		far    bool
	}{
		{"skep's limits", func(*storage) {}, false},
		{"far away, compressed", func(*storage) {}, true},
		{"compressed bytes counted", func(s *storage) { s.count = true }, true},
		{"no zstd", func(s *storage) { s.caps.SupportedCompressors, s.caps.SupportedBatchUpdateCompressors = nil, nil }, true},
		{"small batches", func(s *storage) { s.caps.MaxBatchTotalSizeBytes = 100_000 }, false},
		{"no limit said", func(s *storage) { s.caps.MaxBatchTotalSizeBytes = 0 }, false},
		{"no capabilities", func(s *storage) { s.noCaps, s.caps.MaxBatchTotalSizeBytes = true, 0 }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStorage()
			tc.server(s)
			c := client(t, s.start(t, nil)+"/some/instance")
			c.loopback = !tc.far
			list := load()
			var told atomic.Int64
			stats, err := c.Upload(t.Context(), list, func(n int64) { told.Add(n) })
			if err != nil {
				t.Fatal(err)
			}
			var want int64
			seen := map[cas.Digest]bool{}
			var digests []cas.Digest
			for _, l := range list {
				if !seen[l.Digest] {
					want += l.Digest.Size
				}
				seen[l.Digest] = true
				digests = append(digests, l.Digest)
			}
			if told.Load() != want {
				t.Errorf("progress of %d bytes, want %d", told.Load(), want)
			}
			if len(stats.Cold) != len(seen)-1 || len(stats.Hot) != 0 {
				t.Errorf("%d cold and %d hot, want %d cold", len(stats.Cold), len(stats.Hot), len(seen)-1)
			}
			stats, err = c.Upload(t.Context(), list, nil)
			if err != nil || len(stats.Cold) != 0 || len(stats.Hot) != len(seen)-1 {
				t.Errorf("again: %d cold, %d hot, %v", len(stats.Cold), len(stats.Hot), err)
			}
			var mu sync.Mutex
			got := map[cas.Digest]int{}
			err = c.ReadBatch(t.Context(), digests, func(d cas.Digest, b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				if got[d]++; cas.Sum(b) != d {
					t.Errorf("%s: other bytes", d)
				}
				return nil
			})
			if err != nil || len(got) != len(seen) {
				t.Fatalf("read %d of %d: %v", len(got), len(seen), err)
			}
			for d, n := range got {
				if n != 1 {
					t.Errorf("%s came %d times", d, n)
				}
			}
			for _, l := range list[:16] {
				var b bytes.Buffer
				if err := c.Read(t.Context(), l.Digest, &b); err != nil || !bytes.Equal(b.Bytes(), l.Data) {
					t.Errorf("Read(%s): %d bytes, %v", l.Digest, b.Len(), err)
				}
			}
			if !s.names["some/instance"] {
				t.Errorf("instances %v", s.names)
			}
			absent := cas.Sum([]byte("absent"))
			missing, err := c.Missing(t.Context(), append(digests, absent, absent))
			if diff := cmp.Diff([]cas.Digest{absent}, slices.DeleteFunc(missing, func(d cas.Digest) bool { return d == cas.Empty })); diff != "" || err != nil {
				t.Errorf("missing, %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Connections that end after a random number of bytes do not change what
// arrives.
func TestConnectionsBreak(t *testing.T) {
	for _, far := range []bool{false, true} {
		s := newStorage()
		addr := s.start(t, func(l net.Listener) net.Listener {
			return &flaky{l, func() int64 { return 20_000 + rand.Int64N(4<<20) }}
		})
		c := client(t, addr)
		c.loopback = !far
		list := load()
		if _, err := c.Upload(t.Context(), list, nil); err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if _, is := s.get(l.Digest); !is {
				t.Fatalf("%s is not there", l.Digest)
			}
		}
		var digests []cas.Digest
		for _, l := range list {
			digests = append(digests, l.Digest)
		}
		n := atomic.Int64{}
		err := c.ReadBatch(t.Context(), digests, func(d cas.Digest, b []byte) error { n.Add(1); return nil })
		if err != nil {
			t.Fatal(err)
		}
		big := s.put(noise(9, 12<<20))
		h := &counted{}
		if err := c.Read(t.Context(), big, h); err != nil || h.n != big.Size {
			t.Fatalf("%d bytes, %v", h.n, err)
		}
		if s.called("Read") < 4 {
			t.Errorf("%d calls of Read: nothing broke", s.called("Read"))
		}
	}
}

type counted struct{ n int64 }

func (c *counted) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

// A write that was cut goes on where the storage stands.
func TestWriteResumes(t *testing.T) {
	s := newStorage()
	first := true
	addr := s.start(t, func(l net.Listener) net.Listener {
		return &flaky{l, func() int64 {
			if first {
				first = false
				return 12 << 20
			}
			return -1
		}}
	})
	c := client(t, addr)
	data := noise(1, 20<<20)
	d := cas.Sum(data)
	var read counted
	src := Source{Digest: d, Open: func() (io.ReadSeekCloser, error) {
		return struct {
			io.Reader
			io.Seeker
			io.Closer
		}{}, errors.New("not used")
	}}
	src.Open = func() (io.ReadSeekCloser, error) {
		r := bytes.NewReader(data)
		return struct {
			io.Reader
			io.Seeker
			io.Closer
		}{io.TeeReader(r, &read), r, io.NopCloser(nil)}, nil
	}
	if _, err := c.Upload(t.Context(), []Source{src}, nil); err != nil {
		t.Fatal(err)
	}
	if read.n > d.Size+8<<20 {
		t.Errorf("read %d bytes for a blob of %d: it did not go on where it stopped", read.n, d.Size)
	}
}

func TestFaults(t *testing.T) {
	small, large := []byte("small"), noise(2, 6<<20)
	for _, tc := range []struct {
		name  string
		wrong func(cas.Digest, []byte) []byte
		fail  func(n int64) error
		check func(t *testing.T, err error)
	}{
		{"flipped bit", func(_ cas.Digest, b []byte) []byte { b = slices.Clone(b); b[len(b)/2] ^= 1; return b }, nil, corrupt},
		{"longer than said", func(_ cas.Digest, b []byte) []byte { return append(slices.Clone(b), 1, 2, 3) }, nil, corrupt},
		{"shorter than said", func(_ cas.Digest, b []byte) []byte { return b[:len(b)-1] }, nil, unavailableErr},
		{"transient for a while", nil, func(n int64) error {
			if n < 4 {
				return rpc.Error(codes.Unavailable, "not now")
			}
			return nil
		}, func(t *testing.T, err error) {
			if err != nil {
				t.Error(err)
			}
		}},
		{"denied", nil, func(int64) error { return rpc.Error(codes.PermissionDenied, "not you: 100 % no") }, func(t *testing.T, err error) {
			if skep.KindOf(err) != skep.Denied || !strings.Contains(err.Error(), "not you: 100 % no") {
				t.Errorf("got %v", err)
			}
		}},
		{"no token", nil, func(int64) error { return rpc.Error(codes.Unauthenticated, "who?") }, func(t *testing.T, err error) {
			if skep.KindOf(err) != skep.Unauthenticated {
				t.Errorf("got %v", err)
			}
		}},
		{"full for ever", nil, func(int64) error { return rpc.Error(codes.ResourceExhausted, "full") }, func(t *testing.T, err error) {
			if skep.KindOf(err) != skep.Exhausted {
				t.Errorf("got %v", err)
			}
		}},
	} {
		for _, data := range [][]byte{small, large} {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				s := newStorage()
				d := s.put(data)
				s.wrong = tc.wrong
				var n atomic.Int64
				if tc.fail != nil {
					s.fail = func(_ context.Context, method string) error {
						if strings.HasSuffix(method, "GetCapabilities") {
							return nil
						}
						return tc.fail(n.Add(1))
					}
				}
				c := client(t, s.start(t, nil), func(o *Options) {
					if tc.name != "transient for a while" { // which is waited for
						o.Patience = time.Second
					}
				})
				b, err := c.Blob(t.Context(), d)
				tc.check(t, err)
				if err == nil && !bytes.Equal(b, data) {
					t.Error("other bytes")
				}
			})
		}
	}
}

func corrupt(t *testing.T, err error) {
	t.Helper()
	if e := (*CorruptError)(nil); !errors.As(err, &e) {
		t.Errorf("got %v, want a CorruptError", err)
	}
}

func unavailableErr(t *testing.T, err error) {
	t.Helper()
	if skep.KindOf(err) != skep.Unavailable {
		t.Errorf("got %v", err)
	}
}

func TestMissingBlobs(t *testing.T) {
	s := newStorage()
	there := s.put([]byte("there"))
	gone, bigGone := cas.Sum([]byte("gone")), cas.Digest{Hash: cas.Sum([]byte("big")).Hash, Size: 100 << 20}
	c := client(t, s.start(t, nil))
	var got []cas.Digest
	err := c.ReadBatch(t.Context(), []cas.Digest{gone, there, bigGone}, func(d cas.Digest, _ []byte) error { got = append(got, d); return nil })
	e := (*cas.MissingError)(nil)
	if !errors.As(err, &e) || len(e.Digests) != 2 || len(got) != 1 || got[0] != there {
		t.Errorf("got %v, %v", got, err)
	}
	if err := c.Read(t.Context(), gone, io.Discard); !errors.As(err, &e) {
		t.Errorf("Read: %v", err)
	}
	if _, err := c.Tree(t.Context(), gone); !errors.As(err, &e) {
		t.Errorf("Tree: %v", err)
	}
}

func TestTree(t *testing.T) {
	for _, noTree := range []bool{false, true} {
		s := newStorage()
		s.noTree = noTree
		want := map[cas.Hash]*cas.Directory{}
		put := func(d cas.Directory) cas.Digest {
			at := s.put(d.Encode())
			want[at.Hash] = &d
			return at
		}
		file := s.put([]byte("x"))
		leaf := put(cas.Directory{Files: []cas.File{{Name: "f", Digest: file}}})
		deep := leaf
		for range 30 {
			deep = put(cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: deep}}})
		}
		empty := put(cas.Directory{})
		root := put(cas.Directory{Dirs: []cas.Dir{{Name: "a", Digest: deep}, {Name: "b", Digest: leaf}, {Name: "c", Digest: empty}}, Symlinks: []cas.Symlink{{Name: "l", Target: "a"}}})
		c := client(t, s.start(t, nil))
		got, err := c.Tree(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("without GetTree %v (-want +got):\n%s", noTree, diff)
		}
		if tree, err := c.Tree(t.Context(), cas.Empty); err != nil || len(tree) != 1 {
			t.Errorf("empty: %v, %v", tree, err)
		}

		for range 300 {
			deep = put(cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: deep}}})
		}
		if _, err := c.Tree(t.Context(), deep); skep.KindOf(err) != skep.Invalid {
			t.Errorf("too deep: %v", err)
		}
		bomb := leaf
		for range 30 {
			bomb = put(cas.Directory{Dirs: []cas.Dir{{Name: "a", Digest: bomb}, {Name: "b", Digest: bomb}}})
		}
		if _, err := c.Tree(t.Context(), bomb); skep.KindOf(err) != skep.Invalid {
			t.Errorf("two to the 30 entries: %v", err)
		}
		bad := s.put((&cas.Directory{Files: []cas.File{{Name: "../x", Digest: file}}}).Encode())
		if _, err := c.Tree(t.Context(), bad); skep.KindOf(err) != skep.Invalid {
			t.Errorf("a name that leaves the tree: %v", err)
		}
	}
}

func TestUploadFaults(t *testing.T) {
	s := newStorage()
	c := client(t, s.start(t, nil), func(o *Options) { o.Patience = time.Second })
	for _, n := range []int{10, 6 << 20} {
		for _, k := range []int{-1, 0, 1} {
			other := noise(7, n+k) // as a file that changed since it was hashed
			if k == 0 {
				other[3] ^= 1
			}
			src := Source{Digest: cas.Sum(noise(7, n)), Open: func() (io.ReadSeekCloser, error) { return inMemory{bytes.NewReader(other)}, nil }}
			if _, err := c.Upload(t.Context(), []Source{src}, nil); skep.KindOf(err) != skep.Invalid {
				t.Errorf("%d bytes for %d: %v", n+k, n, err)
			}
		}
	}
	gone := errors.New("the file is gone")
	for _, n := range []int64{10, 6 << 20} {
		src := Source{Digest: cas.Digest{Hash: cas.Sum(nil).Hash, Size: n}, Open: func() (io.ReadSeekCloser, error) { return nil, gone }}
		if _, err := c.Upload(t.Context(), []Source{src}, nil); !errors.Is(err, gone) {
			t.Errorf("got %v", err)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	c := client(t, "grpc://"+addr, func(o *Options) { o.Patience = 50 * time.Millisecond })
	if _, err := c.Missing(t.Context(), []cas.Digest{cas.Sum([]byte("x"))}); skep.KindOf(err) != skep.Unavailable {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	c = client(t, "grpc://"+addr)
	if _, err := c.Missing(ctx, []cas.Digest{cas.Sum([]byte("x"))}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestHeaders(t *testing.T) {
	s := newStorage()
	var got atomic.Value
	s.fail = func(ctx context.Context, _ string) error {
		md, _ := metadata.FromIncomingContext(ctx)
		got.Store(strings.Join(md.Get("authorization"), ","))
		return nil
	}
	c := client(t, s.start(t, nil), func(o *Options) {
		o.Headers = func() map[string]string { return map[string]string{"authorization": "Bearer tok"} }
	})
	if _, err := c.Missing(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Limits(t.Context()); err != nil || got.Load() != "Bearer tok" {
		t.Errorf("got %v, %v", got.Load(), err)
	}
}

func TestAddresses(t *testing.T) {
	for _, tc := range []struct{ in, base, instance string }{
		{"grpc://127.0.0.1:9", "http://127.0.0.1:9", ""},
		{"grpc://localhost:9/projects/x/instances/y/", "http://localhost:9", "projects/x/instances/y"},
		{"grpc://[::1]:9", "http://[::1]:9", ""},
		{"grpcs://Cas.example.com/main", "https://Cas.example.com:443", "main"},
		{"https://skep.example.com/some/page", "https://skep.example.com:443", ""},
		{"http://127.0.0.1:8900", "http://127.0.0.1:8900", ""},
		{"grpc://cas.example.com:9", "", ""},
		{"http://10.0.0.1:8900", "", ""},
		{"grpcs://me:secret@cas.example.com", "", ""},
		{"cas.example.com:9", "", ""},
		{"", "", ""},
	} {
		c, err := New(Options{URL: tc.in})
		if tc.base == "" {
			if skep.KindOf(err) != skep.Invalid || strings.Contains(err.Error(), "secret") {
				t.Errorf("New(%q) = %v, %v", tc.in, c, err)
			}
			continue
		}
		if err != nil || c.base != tc.base || c.instance != tc.instance {
			t.Errorf("New(%q) = %+v, %v", tc.in, c, err)
		}
	}
}
