package disk

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// TestStoreAgreesWithMap does anything in any order, with restarts, and holds
// the store against a map. Blobs may go when there is no room, but not those
// of the last hour; nothing comes out that was not put in.
func TestStoreAgreesWithMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newClock()
		o := options(t, t.TempDir())
		o.Log, o.Now, o.MaxBytes, o.packMax = nil, c.Now, 600<<10, 90<<10
		s, err := Open(t.Context(), o)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		type known struct {
			data     []byte
			promised int64 // until then it must be there; 0 = never written
		}
		model := map[cas.Digest]*known{}
		draw := func(rt *rapid.T) Blob {
			n := rapid.SampledFrom([]int{0, 1, 300, 5000, 20_000, 20_001, smallMax, smallMax + 1, 150_000}).Draw(rt, "size")
			return blob(rapid.Uint64Range(0, 9).Draw(rt, "seed"), n)
		}
		promise := func(b Blob) {
			model[b.Digest] = &known{b.Data, c.at.Load() + int64(Keep.Seconds())}
		}
		// fullFor reports whether a store may have no room for n more bytes: what must
		// stay takes at least half of it, the rest may be dead records and headers.
		fullFor := func(u Usage, n int64) bool {
			stays := u.Reserved + n
			for d, k := range model {
				if k.promised > c.at.Load() {
					stays += d.Size
				}
			}
			return stays > u.Limit/2
		}
		mustHave := func(d cas.Digest) bool {
			k := model[d]
			return d == cas.Empty || k != nil && k.promised > c.at.Load()
		}
		check := func(rt *rapid.T, d cas.Digest, got []byte, err error) {
			switch {
			case isMissing(err) && !mustHave(d):
			case err != nil:
				rt.Fatalf("blob %s: %v", d, err)
			case d != cas.Empty && model[d] == nil:
				rt.Fatalf("blob %s was never put", d)
			case cas.Sum(got) != d:
				rt.Fatalf("blob %s: other bytes", d)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) {
				var blobs []Blob
				for range rapid.IntRange(1, 12).Draw(rt, "blobs") {
					blobs = append(blobs, draw(rt))
				}
				for i, err := range s.PutBatch(t.Context(), blobs) {
					if err == nil {
						promise(blobs[i])
					} else if skep.KindOf(err) != skep.Exhausted {
						rt.Fatal(err)
					} else if model[blobs[i].Digest] == nil && blobs[i].Digest != cas.Empty {
						model[blobs[i].Digest] = &known{blobs[i].Data, 0} // a twin of the batch may have been written
					}
				}
			},
			"upload": func(rt *rapid.T) {
				b := draw(rt)
				up, err := s.Upload(t.Context(), b.Digest, fmt.Sprint("u", b.Digest))
				if err != nil {
					return
				}
				rest := b.Data[up.Offset():]
				k := rapid.IntRange(0, len(rest)).Draw(rt, "bytes")
				before := s.Usage()
				if _, err := up.Write(rest[:k]); skep.KindOf(err) == skep.Exhausted && fullFor(before, int64(k)) {
					return
				} else if err != nil {
					rt.Fatal(err)
				}
				if k < len(rest) {
					_ = up.Close()
					return
				}
				if err := up.Commit(t.Context()); err != nil {
					return
				}
				promise(b)
			},
			"get": func(rt *rapid.T) {
				b := draw(rt)
				got, err := s.Get(t.Context(), b.Digest, 1<<20)
				check(rt, b.Digest, got, err)
			},
			"open": func(rt *rapid.T) {
				b := draw(rt)
				off := rapid.Int64Range(0, b.Digest.Size).Draw(rt, "offset")
				got, err := readAll(s, b.Digest, off)
				if err == nil && !bytes.Equal(got, b.Data[off:]) {
					rt.Fatal("other bytes")
				}
				check(rt, b.Digest, b.Data, err)
			},
			"missing": func(rt *rapid.T) {
				a, b := draw(rt), draw(rt)
				m, err := s.Missing(t.Context(), []cas.Digest{a.Digest, b.Digest})
				if err != nil {
					rt.Fatal(err)
				}
				for _, x := range []Blob{a, b} {
					if slices.Contains(m, x.Digest) {
						if mustHave(x.Digest) {
							rt.Fatalf("blob %s is missing", x.Digest)
						}
					} else if x.Digest != cas.Empty {
						if model[x.Digest] == nil {
							rt.Fatalf("blob %s was never put", x.Digest)
						}
						promise(x)
					}
				}
			},
			"time": func(rt *rapid.T) {
				c.at.Add(rapid.Int64Range(1, 5000).Draw(rt, "seconds"))
				s.saveUse()
			},
			"compact": func(*rapid.T) {
				if err := s.compactWorst(t.Context()); err != nil {
					rt.Fatal(err)
				}
			},
			"restart": func(rt *rapid.T) {
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				if s, err = Open(t.Context(), o); err != nil {
					rt.Fatal(err)
				}
			},
			"": func(rt *rapid.T) {
				u := s.Usage()
				if u.Bytes > u.Limit || u.Corrupt != 0 || u.OpenedUploads == 0 && u.Reserved != 0 || u.Dead < 0 || u.Dead > u.Bytes {
					rt.Fatalf("usage %+v", u)
				}
				if err := miscounted(s); err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
}

// miscounted holds counters and index against what they count.
func miscounted(s *Store) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dead, live int64
	for _, p := range s.packs {
		var d int64
		for i := range p.offs {
			off, end := p.extent(uint32(i))
			if p.used[i] == 0 {
				d += int64(end - off)
			} else {
				live++
			}
		}
		if d != p.dead {
			return fmt.Errorf("pack %d counts %d dead bytes and has %d", p.id, p.dead, d)
		}
		dead += d
	}
	for _, e := range s.files {
		if e.size >= 0 {
			live++
		}
	}
	if dead != s.dead || live != int64(len(s.index)) {
		return fmt.Errorf("%d dead bytes and %d blobs are counted, %d and %d there", s.dead, len(s.index), dead, live)
	}
	return nil
}

// A crash after a compaction's copies are durable, and before its pack is
// removed, leaves records twice.
func TestCompactionCutShort(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	o.packMax = 100 << 10
	s := open(t, o)
	var blobs []Blob
	for i := range 60 {
		blobs = append(blobs, blob(uint64(i), 5000))
	}
	put(t, s, blobs...)
	s.saveUse()
	before := map[string][]byte{}
	paths, err := filepath.Glob(filepath.Join(dir, packsDir, "000001.*"))
	if err != nil || len(paths) != 3 {
		t.Fatal(paths, err)
	}
	for _, p := range paths {
		if before[p], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	s.kill(blobs[0].Digest.Hash, s.index[blobs[0].Digest.Hash])
	s.mu.Unlock()
	if _, err := s.compact(t.Context(), s.packs[1]); err != nil {
		t.Fatal(err)
	}
	if s.packs[1] != nil {
		t.Fatal("the pack is still there")
	}
	for range 2 {
		for _, b := range blobs[1:] {
			wantHas(t, s, b, true)
		}
		if err := miscounted(s); err != nil {
			t.Error(err)
		}
		wantDisk(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for p, b := range before {
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = open(t, o)
	}
	if p := s.packs[1]; p == nil || p.live() != 5000+recordLen { // a dead one lives again, which harms nobody
		t.Errorf("of the pack that came back %+v lives", p)
	}
}
