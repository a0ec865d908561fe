package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Unix())
	return c
}
func (c *clock) Now() time.Time      { return time.Unix(c.at.Load(), 0) }
func (c *clock) add(d time.Duration) { c.at.Add(int64(d / time.Second)) }

func options(t testing.TB, dir string) Options {
	return Options{Dir: dir, MinFree: 1, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// content makes n bytes that a seed names.
func content(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func blob(seed uint64, n int) Blob {
	b := content(seed, n)
	return Blob{cas.Sum(b), b}
}

func put(t testing.TB, s *Store, blobs ...Blob) {
	t.Helper()
	for i, err := range s.PutBatch(context.Background(), blobs) {
		if err != nil {
			t.Fatalf("put %s: %v", blobs[i].Digest, err)
		}
	}
}

func readAll(s *Store, d cas.Digest, offset int64) ([]byte, error) {
	r, err := s.Open(context.Background(), d, offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func isMissing(err error) bool {
	_, ok := errors.AsType[*cas.MissingError](err)
	return ok
}

// wantHas checks that a blob can be read in each way, or in none.
func wantHas(t testing.TB, s *Store, b Blob, want bool) {
	t.Helper()
	got, err := s.Get(context.Background(), b.Digest, 1<<40)
	stream, err2 := readAll(s, b.Digest, 0)
	if !want {
		if !isMissing(err) || !isMissing(err2) {
			t.Errorf("blob %s: got %v and %v, want it missing", b.Digest, err, err2)
		}
		return
	}
	if err != nil || err2 != nil || !bytes.Equal(got, b.Data) || !bytes.Equal(stream, b.Data) {
		t.Errorf("blob %s: %d and %d bytes, %v, %v; want it whole", b.Digest, len(got), len(stream), err, err2)
	}
}

var sizes = []int{0, 1, 51, 1000, smallMax - 1, smallMax, smallMax + 1, pieceLen - 1, pieceLen, pieceLen + 1, 3*pieceLen + 17}

func TestPutAndGet(t *testing.T) {
	dir := t.TempDir()
	s := open(t, options(t, dir))
	var blobs []Blob
	var digests []cas.Digest
	for i, n := range sizes {
		b := blob(uint64(i), n)
		blobs, digests = append(blobs, b), append(digests, b.Digest)
	}
	missing, err := s.Missing(t.Context(), digests)
	if diff := cmp.Diff(digests[1:], missing); err != nil || diff != "" {
		t.Fatalf("Missing: %v %s", err, diff)
	}
	put(t, s, blobs...)
	put(t, s, blobs...) // again
	check := func() {
		t.Helper()
		if missing, err := s.Missing(t.Context(), digests); err != nil || len(missing) > 0 {
			t.Fatalf("Missing: %v, %v", missing, err)
		}
		for _, b := range blobs {
			wantHas(t, s, b, true)
			for _, off := range []int64{1, 1000, pieceLen - 1, pieceLen, pieceLen + 1, b.Digest.Size - 1, b.Digest.Size} {
				if off < 0 || off > b.Digest.Size {
					continue
				}
				if got, err := readAll(s, b.Digest, off); err != nil || !bytes.Equal(got, b.Data[off:]) {
					t.Errorf("blob %s from %d: %d bytes, %v", b.Digest, off, len(got), err)
				}
			}
		}
	}
	check()
	before := s.Usage()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, options(t, dir))
	check()
	after := s.Usage()
	if before.Blobs != after.Blobs || after.Bytes < before.Bytes {
		t.Errorf("usage was %+v, is %+v", before, after)
	}
	wantDisk(t, s)
}

// wantDisk checks that the bytes counted are those of the files.
func wantDisk(t testing.TB, s *Store) {
	t.Helper()
	var sum int64
	for _, dir := range []string{blobsDir, packsDir} {
		_ = filepath.WalkDir(filepath.Join(s.o.Dir, dir), func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				st, err := e.Info()
				if err != nil {
					t.Error(err)
					return nil
				}
				sum += st.Size()
			}
			return nil
		})
	}
	if got := s.Usage().Bytes; got != sum {
		t.Errorf("usage says %d bytes, the files have %d", got, sum)
	}
	if names, _ := os.ReadDir(filepath.Join(s.o.Dir, tempDir)); len(names) > s.Usage().OpenedUploads {
		t.Errorf("%d temporary files are left", len(names))
	}
}

func TestPutRefuses(t *testing.T) {
	s := open(t, options(t, t.TempDir()))
	b := blob(1, 100)
	for _, tc := range []struct {
		name string
		d    cas.Digest
		data []byte
	}{
		{"other content", b.Digest, content(2, 100)},
		{"too short", b.Digest, b.Data[:99]},
		{"wrong size", cas.Digest{Hash: b.Digest.Hash, Size: 101}, b.Data},
		{"bytes for the empty blob", cas.Empty, []byte("x")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := s.Put(t.Context(), tc.d, tc.data); skep.KindOf(err) != skep.Invalid || err == nil {
				t.Errorf("got %v, want an Invalid error", err)
			}
		})
	}
	put(t, s, b)
	other := cas.Digest{Hash: b.Digest.Hash, Size: 101}
	if m, _ := s.Missing(t.Context(), []cas.Digest{other}); len(m) != 1 {
		t.Error("a digest with another size is present")
	}
	if _, err := s.Get(t.Context(), b.Digest, 99); skep.KindOf(err) != skep.Invalid {
		t.Errorf("Get beyond the limit: %v", err)
	}
	if _, err := s.Open(t.Context(), b.Digest, 101); skep.KindOf(err) != skep.Invalid {
		t.Errorf("Open beyond the end: %v", err)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	open(t, options(t, dir))
	if _, err := Open(t.Context(), options(t, dir)); skep.KindOf(err) != skep.Conflict {
		t.Errorf("second Open: %v, want a Conflict", err)
	}
}

func TestForeignDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letters"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), options(t, dir)); skep.KindOf(err) != skep.Precondition || !strings.Contains(err.Error(), "letters") {
		t.Errorf("got %v, want it refused", err)
	}
}

func TestUpload(t *testing.T) {
	for _, n := range []int{1, smallMax, smallMax + 1, 2*pieceLen + 5} {
		s := open(t, options(t, t.TempDir()))
		b := blob(uint64(n), n)
		up, err := s.Upload(t.Context(), b.Digest, "one")
		if err != nil {
			t.Fatal(err)
		}
		half := n / 2
		if _, err := up.Write(b.Data[:half]); err != nil {
			t.Fatal(err)
		}
		if off, complete, known := s.UploadOffset(b.Digest, "one"); off != int64(half) || complete || !known {
			t.Errorf("offset %d %v %v", off, complete, known)
		}
		second, err := s.Upload(t.Context(), b.Digest, "one")
		if err != nil || second.Offset() != int64(half) {
			t.Fatalf("second caller at %v, %v", second, err)
		}
		if _, err := up.Write(b.Data[half:]); skep.KindOf(err) != skep.Conflict {
			t.Errorf("the first goes on writing: %v", err)
		}
		_ = up.Close()
		if _, err := second.Write(b.Data[half:]); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Write([]byte("x")); skep.KindOf(err) != skep.Invalid {
			t.Errorf("more bytes: %v", err)
		}
		if err := second.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantHas(t, s, b, true)
		third, err := s.Upload(t.Context(), b.Digest, "two")
		if err != nil || third.Offset() != int64(n) || third.Commit(t.Context()) != nil {
			t.Errorf("an upload of what is there: %v", err)
		}
		if u := s.Usage(); u.Reserved != 0 || u.OpenedUploads != 0 {
			t.Errorf("left over: %+v", u)
		}
		wantDisk(t, s)
	}
}

func TestUploadRefuses(t *testing.T) {
	for _, n := range []int{1000, smallMax + 1} {
		s := open(t, options(t, t.TempDir()))
		b := blob(uint64(n), n)
		for _, data := range [][]byte{b.Data[:n-1], content(99, n)} {
			up, err := s.Upload(t.Context(), b.Digest, "u")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := up.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := up.Commit(t.Context()); skep.KindOf(err) != skep.Invalid || err == nil {
				t.Errorf("Commit: %v, want an Invalid error", err)
			}
			wantHas(t, s, b, false)
		}
		if u := s.Usage(); u.Reserved != 0 || u.OpenedUploads != 0 || u.Blobs != 0 {
			t.Errorf("left over: %+v", u)
		}
		wantDisk(t, s)
	}
}

func TestUploadExpires(t *testing.T) {
	c := newClock()
	o := options(t, t.TempDir())
	o.Now = c.Now
	s := open(t, o)
	b := blob(1, 100_000)
	if up, err := s.Upload(t.Context(), b.Digest, "u"); err != nil {
		t.Fatal(err)
	} else if _, err := up.Write(b.Data[:7]); err != nil {
		t.Fatal(err)
	}
	c.add(UploadKeep + time.Second)
	s.expireUploads()
	if u := s.Usage(); u.OpenedUploads != 0 || u.Reserved != 0 {
		t.Errorf("left over: %+v", u)
	}
	wantDisk(t, s)
}
