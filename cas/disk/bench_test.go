package disk

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/skepdev/skep/cas"
)

// tree makes blobs like the files of Go's src: 11,478 with 127 MB, most of them
// small, 300 of more than 64 KiB.
func tree() []Blob {
	r := rand.New(rand.NewPCG(1, 2))
	blobs := make([]Blob, 11_478)
	base := content(7, 1<<20)
	for i := range blobs {
		n := min(int(r.ExpFloat64()*6500)+1, 300_000)
		if i%38 == 0 {
			n = smallMax + r.IntN(200_000)
		}
		data := append([]byte(nil), base[:n]...)
		copy(data, fmt.Sprint(i, "\n"))
		blobs[i].Data = data
	}
	return blobs
}

func total(blobs []Blob) (n int64) {
	for _, b := range blobs {
		n += int64(len(b.Data))
	}
	return n
}

// writeSync is the yardstick: one file with the bytes, and a sync.
func writeSync(b *testing.B, blobs []Blob) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, 1<<20)
	for _, x := range blobs {
		if buf = append(buf, x.Data...); len(buf) >= 1<<20 {
			_, _ = f.Write(buf)
			buf = buf[:0]
		}
	}
	_, _ = f.Write(buf)
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	f.Close()
}

func quiet(b *testing.B) Options {
	return Options{Dir: b.TempDir(), MinFree: 1, Log: slog.New(slog.DiscardHandler)}
}

func BenchmarkTree(b *testing.B) {
	blobs := tree()
	sum := func() {
		for i := range blobs {
			blobs[i].Digest = cas.Sum(blobs[i].Data)
		}
	}
	sum()
	b.Run("sha256, one core", func(b *testing.B) {
		b.SetBytes(total(blobs))
		for b.Loop() {
			sum()
		}
	})
	b.Run("write and sync of one file", func(b *testing.B) {
		b.SetBytes(total(blobs))
		for b.Loop() {
			writeSync(b, blobs)
		}
	})
	for _, callers := range []int{1, 4} {
		b.Run(fmt.Sprintf("put, batches of 100, %d callers", callers), func(b *testing.B) {
			b.SetBytes(total(blobs))
			for b.Loop() {
				b.StopTimer()
				s, err := Open(b.Context(), quiet(b))
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				putAll(b, s, blobs, callers)
				b.StopTimer()
				s.Close()
				b.StartTimer()
			}
		})
	}
	b.Run("get", func(b *testing.B) {
		s, err := Open(b.Context(), quiet(b))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		putAll(b, s, blobs, 4)
		b.SetBytes(total(blobs))
		for b.Loop() {
			for _, x := range blobs {
				if _, err := s.Get(b.Context(), x.Digest, 1<<30); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("missing", func(b *testing.B) {
		s, err := Open(b.Context(), quiet(b))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		putAll(b, s, blobs, 4)
		ds := make([]cas.Digest, len(blobs))
		for i := range ds {
			ds[i] = blobs[i].Digest
		}
		for b.Loop() {
			if m, err := s.Missing(b.Context(), ds); len(m) > 0 || err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open again", func(b *testing.B) {
		o := quiet(b)
		s, err := Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		putAll(b, s, blobs, 4)
		s.Close()
		for b.Loop() {
			s, err := Open(b.Context(), o)
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			s.Close()
			b.StartTimer()
		}
	})
}

func putAll(b *testing.B, s *Store, blobs []Blob, callers int) {
	next := make(chan []Blob)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for batch := range next {
				for _, err := range s.PutBatch(b.Context(), batch) {
					if err != nil {
						b.Error(err)
					}
				}
			}
		})
	}
	for i := 0; i < len(blobs); i += 100 {
		next <- blobs[i:min(i+100, len(blobs))]
	}
	close(next)
	wg.Wait()
}

func BenchmarkLarge(b *testing.B) {
	const size = 256 << 20
	data := content(3, 1<<20)
	h := sha256.New()
	for range size >> 20 {
		h.Write(data)
	}
	d := cas.Digest{Hash: cas.Hash(h.Sum(nil)), Size: size}
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			h := sha256.New()
			for range size >> 20 {
				h.Write(data)
			}
		}
	})
	b.Run("write and sync", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			for range size >> 20 {
				_, _ = f.Write(data)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	b.Run("upload", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			b.StopTimer()
			s, err := Open(b.Context(), quiet(b))
			if err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			uploadLarge(b, s, d, data)
			b.StopTimer()
			s.Close()
			b.StartTimer()
		}
	})
	b.Run("read", func(b *testing.B) {
		s, err := Open(b.Context(), quiet(b))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		uploadLarge(b, s, d, data)
		b.SetBytes(size)
		for b.Loop() {
			r, err := s.Open(b.Context(), d, 0)
			if err != nil {
				b.Fatal(err)
			}
			if n, err := io.Copy(io.Discard, r); n != size || err != nil {
				b.Fatal(n, err)
			}
			r.Close()
		}
	})
}

func uploadLarge(b *testing.B, s *Store, d cas.Digest, piece []byte) {
	up, err := s.Upload(b.Context(), d, "u")
	if err != nil {
		b.Fatal(err)
	}
	for up.Offset() < d.Size {
		if _, err := up.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
	if err := up.Commit(b.Context()); err != nil {
		b.Fatal(err)
	}
}
