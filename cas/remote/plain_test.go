package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/oneport"
)

// startPlain serves s, and h to those who speak HTTP/1.1 at the same address.
func (s *storage) startPlain(t *testing.T, h http.HandlerFunc) string {
	s.plain = true
	return s.start(t, func(l net.Listener) net.Listener {
		p, srv := oneport.New(l, nil), &http.Server{Handler: h} //nolint:gosec // of a test
		go func() { _ = p.Serve() }()
		go func() { _ = srv.Serve(p.HTTP1) }()
		t.Cleanup(func() { _ = srv.Close(); _ = p.Close() })
		return p.HTTP2
	})
}

// A large blob comes by HTTP/1.1, and by gRPC from where that stopped.
func TestReadPlain(t *testing.T) {
	blob := make([]byte, plainFrom+12345)
	_, _ = rand.NewChaCha8([32]byte{}).Read(blob)
	d := cas.Sum(blob)
	damaged := bytes.Clone(blob)
	damaged[len(blob)/2]++
	for _, tt := range []struct {
		name    string
		serve   func(w http.ResponseWriter, b []byte)
		by      int // calls of gRPC
		corrupt bool
	}{
		{"whole", func(w http.ResponseWriter, b []byte) { _, _ = w.Write(b) }, 0, false},
		{"refused", func(w http.ResponseWriter, _ []byte) { http.Error(w, "no", http.StatusUnauthorized) }, 1, false},
		{"not there", func(w http.ResponseWriter, _ []byte) { http.Error(w, "no", http.StatusNotFound) }, 1, false},
		{"another length", func(w http.ResponseWriter, b []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
			_, _ = w.Write(append(b[:len(b):len(b)], 0))
		}, 1, false},
		{"cut off", func(w http.ResponseWriter, b []byte) { _, _ = w.Write(b[:len(b)/3]) }, 1, false},
		{"damaged", func(w http.ResponseWriter, _ []byte) { _, _ = w.Write(damaged) }, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStorage()
			s.put(blob)
			url := s.startPlain(t, func(w http.ResponseWriter, r *http.Request) {
				if want := "/cas/some/where/" + d.String(); r.Method != http.MethodGet || r.URL.Path != want || r.Header.Get("Authorization") != "Bearer me" {
					t.Errorf("%s %s, %v", r.Method, r.URL.Path, r.Header)
				}
				w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
				tt.serve(w, blob)
			})
			c := client(t, url+"/some/where", func(o *Options) {
				o.Headers = func() map[string]string { return map[string]string{"authorization": "Bearer me"} }
			})
			var got bytes.Buffer
			err := c.Read(t.Context(), d, &got)
			if corrupt := (*CorruptError)(nil); tt.corrupt != errors.As(err, &corrupt) || !tt.corrupt && (err != nil || !bytes.Equal(got.Bytes(), blob)) {
				t.Errorf("%d bytes, %v", got.Len(), err)
			}
			if n := s.called("Read"); n != tt.by {
				t.Errorf("%d calls by gRPC, want %d", n, tt.by)
			}
		})
	}
}

// A writer that takes no more ends the reading, and is not asked again.
func TestReadPlainIntoAFullDisk(t *testing.T) {
	blob := make([]byte, plainFrom)
	s := newStorage()
	d := s.put(blob)
	url := s.startPlain(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(blob)))
		_, _ = w.Write(blob)
	})
	full := errors.New("full")
	w := &failing{after: 1 << 20, err: full}
	if err := client(t, url).Read(t.Context(), d, w); !errors.Is(err, full) || w.refused != 1 || s.called("Read") != 0 {
		t.Errorf("%v, refused %d times", err, w.refused)
	}
}

type failing struct {
	after, refused int
	err            error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		f.refused++
		return 0, f.err
	}
	return len(p), nil
}

// A large file is hashed where it comes in, or by the caller.
func TestHash(t *testing.T) {
	blob := make([]byte, plainFrom+1)
	_, _ = rand.NewChaCha8([32]byte{}).Read(blob)
	d := cas.Sum(blob)
	path := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(path, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	changed := errors.New("changed")
	took := func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(blob)) || r.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("%d bytes, %v, %v", r.ContentLength, err, r.Header)
		}
		fmt.Fprintln(w, cas.Sum(b))
	}
	for _, tt := range []struct {
		name      string
		size      int64
		serve     http.HandlerFunc
		unchanged error
		want      error
		asked     int
	}{
		{"taken", d.Size, took, nil, nil, 1},
		{"small", plainFrom - 1, took, nil, ErrNotTaken, 0},
		{"changed meanwhile", d.Size, took, changed, changed, 1},
		{"refused", d.Size, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }, nil, ErrNotTaken, 1},
		{"another blob", d.Size, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprintln(w, cas.Empty)
		}, nil, ErrNotTaken, 1},
		{"no digest", d.Size, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, nil, ErrNotTaken, 1},
		{"it is shorter", d.Size + 1, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, nil, ErrNotTaken, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			s := newStorage()
			c := client(t, s.startPlain(t, func(w http.ResponseWriter, r *http.Request) {
				if asked++; r.Method != http.MethodPost || r.URL.Path != "/cas/uploads" {
					t.Errorf("%s %s", r.Method, r.URL.Path)
				}
				tt.serve(w, r)
			}))
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var told int64
			u := c.Uploader(t.Context(), func(n int64) { told += n })
			got, err := u.Hash(f, tt.size, func() error { return tt.unchanged })
			if !errors.Is(err, tt.want) || tt.want == nil && got != d || asked != tt.asked {
				t.Errorf("%v, %v, asked %d times", got, err, asked)
			}
			stats, err := u.Wait()
			if err != nil || (len(stats.Cold) == 1) != (tt.want == nil) || tt.want == nil && told != d.Size {
				t.Errorf("%+v, %d bytes told, %v", stats, told, err)
			}
		})
	}
}

// Small files are hashed where they come in, or by the caller.
func TestHashBundle(t *testing.T) {
	var b cas.Bundle
	var want []cas.Digest
	for _, text := range []string{"one", "", "two", "one"} {
		copy(b.Append(len(text)), text)
		want = append(want, cas.Sum([]byte(text)))
	}
	answer := func(lines ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, b.Wire()) || r.ContentLength != int64(len(got)) {
				t.Errorf("%x, %v", got, err)
			}
			for _, l := range lines {
				fmt.Fprintln(w, l)
			}
		}
	}
	for _, tt := range []struct {
		name      string
		serve     http.HandlerFunc
		want      error
		cold, hot int // each blob once
	}{
		{"new ones", answer(want[0], want[1], want[2], want[3]), nil, 2, 0},
		{"some were there", answer(want[0].String()+" had", want[1], want[2], want[3].String()+" had"), nil, 1, 1},
		{"refused", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTooManyRequests) }, ErrNotTaken, 0, 0},
		{"one too few", answer(want[0], want[1], want[2]), ErrNotTaken, 0, 0},
		{"another order", answer(want[1], want[0], want[2], want[3]), ErrNotTaken, 0, 0},
		{"no digest", answer("what?", want[1], want[2], want[3]), ErrNotTaken, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStorage()
			c := client(t, s.startPlain(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPost || r.URL.Path != "/cas/bundles" {
					t.Errorf("%s %s", r.Method, r.URL.Path)
				}
				tt.serve(w, r)
			}))
			var told int64
			u := c.Uploader(t.Context(), func(n int64) { told += n })
			if !u.TakesBundles() {
				t.Error("it takes none")
			}
			got, err := u.HashBundle(&b)
			if !errors.Is(err, tt.want) || tt.want == nil && !slices.Equal(got, want) {
				t.Errorf("%v, %v", got, err)
			}
			stats, err := u.Wait()
			if err != nil || len(stats.Cold) != tt.cold || len(stats.Hot) != tt.hot || told != int64(9*min(1, tt.cold+tt.hot)) {
				t.Errorf("%+v, %d bytes told, %v", stats, told, err)
			}
		})
	}
}

// Bundles are for who offers them.
func TestTakesBundles(t *testing.T) {
	s := newStorage()
	if u := client(t, s.start(t, nil)).Uploader(t.Context(), nil); u.TakesBundles() {
		t.Error("a storage of others takes bundles")
	}
}

// Small blobs come by HTTP/1.1, and what is lost of them by gRPC.
func TestReadBundle(t *testing.T) {
	texts := []string{"first", "", "second", "third"}
	whole := "\x00\x00\x00\x05first\x00\x00\x00\x06second\x00\x00\x00\x05third"
	for _, tt := range []struct {
		name, answer string
		code         int
		absent       []string // not in the storage
		goesOn       bool     // by gRPC
	}{
		{"whole", whole, 200, nil, false},
		{"one is not there", whole[:9] + "\xff\xff\xff\xff" + whole[19:], 200, []string{"second"}, false},
		{"refused", "", 403, nil, true},
		{"cut off", whole[:15], 200, nil, true},
		{"damaged", whole[:13] + "S" + whole[14:], 200, nil, true},
		{"another length", whole[:12] + "\x07!" + whole[13:], 200, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStorage()
			var list []cas.Digest
			for _, text := range texts {
				d := cas.Sum([]byte(text))
				if list = append(list, d); !slices.Contains(tt.absent, text) {
					s.put([]byte(text))
				}
			}
			c := client(t, s.startPlain(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if want := fmt.Sprintf("%s\n%s\n%s\n", list[0], list[2], list[3]); r.URL.Path != "/cas/blobs" || string(body) != want {
					t.Errorf("%s %s", r.URL.Path, body)
				}
				w.WriteHeader(tt.code)
				_, _ = io.WriteString(w, tt.answer)
			}))
			var mu sync.Mutex
			got := map[string]int{}
			err := c.ReadBatch(t.Context(), list, func(_ cas.Digest, b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				got[string(b)]++
				return nil
			})
			var missing *cas.MissingError
			if n := len(tt.absent); (n > 0) != errors.As(err, &missing) || n == 0 && err != nil || n > 0 && len(missing.Digests) != n {
				t.Error(err)
			}
			for _, text := range texts {
				if slices.Contains(tt.absent, text) == (got[text] == 1) {
					t.Errorf("%q came %d times", text, got[text])
				}
			}
			if n := s.called("BatchReadBlobs"); (n > 0) != tt.goesOn {
				t.Errorf("%d calls by gRPC", n)
			}
		})
	}
	// Who cannot keep them is not asked again.
	s := newStorage()
	d := s.put([]byte("first"))
	full, calls := errors.New("full"), 0
	c := client(t, s.startPlain(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, whole[:9]) }))
	err := c.ReadBatch(t.Context(), []cas.Digest{d}, func(cas.Digest, []byte) error { calls++; return full })
	if !errors.Is(err, full) || calls != 1 || s.called("BatchReadBlobs") != 0 {
		t.Errorf("%v, %d times", err, calls)
	}
}
