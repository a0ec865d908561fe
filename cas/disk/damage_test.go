package disk

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// TestFlippedBits damages each kind of file in turn, also by cutting and
// removing it. No wrong byte comes out, and what is not damaged stays.
func TestFlippedBits(t *testing.T) {
	flip := func(from, to int) func([]byte) []byte { // one bit of a stretch; from the end if negative
		return func(b []byte) []byte {
			lo, hi := from, to
			if lo < 0 {
				lo, hi = len(b)+lo, len(b)+hi
			}
			hi = min(hi, len(b))
			b[lo+rand.IntN(hi-lo)] ^= 1 << rand.IntN(8)
			return b
		}
	}
	cut := func(b []byte) []byte { return b[:rand.IntN(len(b))] }
	gone := func([]byte) []byte { return nil }
	for _, tc := range []struct {
		name, pattern string
		damage        func([]byte) []byte
		lose          int // blobs that may be lost at most
	}{
		{"header of a pack", packsDir + "/*.pack", flip(0, packHeaderLen), 0},
		{"record's header", packsDir + "/*.pack", flip(packHeaderLen, packHeaderLen+recordLen), 1},
		{"record's data", packsDir + "/*.pack", flip(packHeaderLen+recordLen, packHeaderLen+recordLen+100), 1},
		{"anywhere in a pack", packsDir + "/*.pack", flip(0, 1<<30), 1},
		{"end of a pack", packsDir + "/*.pack", cut, 1 << 20},
		{"index", packsDir + "/*.idx", flip(0, 1<<30), 0},
		{"end of the index", packsDir + "/*.idx", cut, 0},
		{"index is gone", packsDir + "/*.idx", gone, 0},
		{"last uses", packsDir + "/*.use", flip(0, 1<<30), 0},
		{"end of last uses", packsDir + "/*.use", cut, 0},
		{"content of a file", blobsDir + "/*/*", flip(0, smallMax), 2},
		{"footer of a file", blobsDir + "/*/*", flip(-16, 0), 0},
		{"sums of a file", blobsDir + "/*/*", flip(-20, -16), 0},
		{"end of a file", blobsDir + "/*/*", cut, 2},
		{"last bytes of a file", blobsDir + "/*/*", func(b []byte) []byte { return b[:len(b)-3] }, 2},
	} {
		for _, live := range []bool{false, true} {
			t.Run(tc.name+map[bool]string{false: ", stopped", true: ", running"}[live], func(t *testing.T) {
				t.Parallel() // they wait for the disk
				for range 2 {
					dir := t.TempDir()
					o := options(t, dir)
					o.Log = nil
					o.packMax = 100 << 10
					s := open(t, o)
					var blobs []Blob
					for i := range 40 {
						blobs = append(blobs, blob(uint64(i), 1000+100*i))
					}
					blobs = append(blobs, blob(100, smallMax+1), blob(101, 2*pieceLen+5))
					put(t, s, blobs...)
					s.saveUse()
					if !live {
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
					}
					paths, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(tc.pattern)))
					if err != nil || len(paths) == 0 {
						t.Fatal(paths, err)
					}
					for _, path := range paths {
						b, err := os.ReadFile(path)
						if err != nil {
							t.Fatal(err)
						}
						if b = tc.damage(b); b == nil {
							err = os.Remove(path)
						} else {
							err = os.WriteFile(path, b, 0o600)
						}
						if err != nil {
							t.Fatal(err)
						}
					}
					if !live {
						s = open(t, o)
					}
					lost := 0
					for round := range 3 { // the second time nothing is found that was not there; the third after a start
						missing := 0
						for _, b := range blobs {
							got, err := s.Get(t.Context(), b.Digest, 1<<30)
							switch {
							case isMissing(err):
								missing++
								if m, _ := s.Missing(t.Context(), []cas.Digest{b.Digest}); len(m) != 1 {
									t.Errorf("blob %s cannot be read and is not missing", b.Digest)
								}
							case err != nil:
								t.Error(err)
							case !bytes.Equal(got, b.Data):
								t.Errorf("blob %s: wrong bytes", b.Digest)
							}
						}
						if round > 0 && missing != lost {
							t.Errorf("%d blobs are missing, then %d", lost, missing)
						}
						if lost = missing; round == 1 {
							if err := s.Close(); err != nil {
								t.Fatal(err)
							}
							s = open(t, o)
						}
					}
					if lost > tc.lose*len(paths) {
						t.Errorf("%d blobs are lost of %d damaged files", lost, len(paths))
					}
					put(t, s, blobs...)
					for _, b := range blobs {
						wantHas(t, s, b, true)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

func TestDamagedMarkerIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, options(t, dir))
	put(t, s, blob(1, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, markerName), []byte(strings.Replace(markerText, "layout 1", "layout 3", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), options(t, dir)); skep.KindOf(err) != skep.Precondition {
		t.Errorf("Open: %v, want it refused", err)
	}
}

// A reader that has handed out good pieces ends at the first bad one.
func TestDamageHalfWay(t *testing.T) {
	dir := t.TempDir()
	o := options(t, dir)
	s := open(t, o)
	b := blob(1, 3*pieceLen)
	put(t, s, b)
	rd, err := s.Open(t.Context(), b.Digest, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	_, name := blobName(b.Digest.Hash)
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 2*pieceLen+7); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	_, err = got.ReadFrom(rd)
	if !isMissing(err) || !bytes.Equal(got.Bytes(), b.Data[:2*pieceLen]) {
		t.Errorf("%d bytes, %v; want two good pieces and the blob missing", got.Len(), err)
	}
	u := s.Usage()
	if u.Corrupt != 1 || u.Blobs != 0 || u.Quarantine != fileLen(b.Digest.Size) {
		t.Errorf("usage %+v", u)
	}
	put(t, s, b)
	wantHas(t, s, b, true)
}

func TestScrub(t *testing.T) {
	dir := t.TempDir()
	s := open(t, options(t, dir))
	put(t, s, blob(1, 1000), blob(2, 100_000), blob(3, 2000))
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.Contains(path, string(filepath.Separator)+blobsDir+string(filepath.Separator)) || strings.HasSuffix(path, ".pack") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[200] ^= 4
			n++
			return os.WriteFile(path, b, 0o600)
		}
		return err
	})
	if err != nil || n != 2 {
		t.Fatal(n, err)
	}
	var c scrubber
	for range 4 {
		if err := c.round(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	if u := s.Usage(); u.Corrupt != 2 || u.Blobs != 1 {
		t.Errorf("usage %+v", u)
	}
	wantHas(t, s, blob(3, 2000), true)
}

func TestQuarantineIsBounded(t *testing.T) {
	o := options(t, t.TempDir())
	o.MaxBytes = 20 << 20
	s := open(t, o)
	for i := range 30 {
		b := blob(uint64(i), 100_000)
		put(t, s, b)
		_, name := blobName(b.Digest.Hash)
		if err := s.root.WriteFile(name, make([]byte, 100_020), 0o600); err != nil {
			t.Fatal(err)
		}
		wantHas(t, s, b, false)
	}
	if u := s.Usage(); u.Corrupt != 30 || u.Quarantine == 0 || u.Quarantine > s.quarantineMax() {
		t.Errorf("usage %+v", u)
	}
}

func packOf(blobs ...[]byte) ([]byte, scanned) {
	want := scanned{marker: marker{1, 2, 3, 4, 5, 6, 7, 8}}
	b := appendPackHeader(nil, want.marker)
	for _, x := range blobs {
		h := cas.Sum(x).Hash
		want.places = append(want.places, place{h, uint32(len(b))})
		b = appendRecord(b, want.marker, h, crc(x), x)
	}
	want.end = uint32(len(b))
	return b, want
}

func TestScanPack(t *testing.T) {
	b, want := packOf([]byte("one"), []byte("two"), content(1, 5000))
	got, err := scanPack(append(b, "torn"...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(scanned{}, place{})); diff != "" {
		t.Error(diff)
	}
}

// FuzzPack: whatever a pack holds, what a scan finds are blobs with their hash
// and without overlap, and an index of them can be read again.
func FuzzPack(f *testing.F) {
	b, _ := packOf([]byte("one"), []byte("two"), content(1, 300))
	f.Add(b, uint32(0), byte(0), uint32(0))
	f.Add(b, uint32(40), byte(1), uint32(3))
	f.Add(b, uint32(5), byte(8), uint32(100))
	inner, _ := packOf([]byte("inner")) // records within content must not count
	b, _ = packOf(inner, inner[packHeaderLen:], []byte("x"))
	f.Add(b, uint32(70), byte(1), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint32, bit byte, cut uint32) {
		b = append([]byte(nil), b...)
		if len(b) > 0 {
			b[int(at)%len(b)] ^= bit
			b = b[:len(b)-int(cut)%len(b)]
		}
		got, err := scanPack(b)
		if err != nil {
			return
		}
		last := uint32(packHeaderLen)
		for i, p := range got.places {
			end := got.end
			if i+1 < len(got.places) {
				end = got.places[i+1].off
			}
			if p.off != last || end <= p.off || int(end) > len(b) {
				t.Fatalf("place %d is at %d to %d, the one before ends at %d", i, p.off, end, last)
			}
			last = end
			if p.hash == (cas.Hash{}) {
				continue
			}
			if _, err := checkRecord(b[p.off:end], got.marker, cas.Digest{Hash: p.hash, Size: int64(end-p.off) - recordLen}); err != nil {
				t.Fatal(err)
			}
		}
		again, err := decodeIndex(encodeIndex(got.marker, got.end, got.places))
		if err != nil {
			t.Fatalf("the index cannot be read: %v", err)
		}
		got.lost = 0
		if len(got.places) > 0 {
			if diff := cmp.Diff(got, again, cmp.AllowUnexported(scanned{}, place{})); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func FuzzIndex(f *testing.F) {
	_, s := packOf([]byte("one"), []byte("two"))
	f.Add(encodeIndex(s.marker, s.end, s.places))
	f.Add(encodeUse(s.marker, s.end, []uint32{32, 87}, []uint32{5, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 { // else no input gets past the checksum
			b = le.AppendUint32(append([]byte(nil), b[:len(b)-4]...), crc(b[:len(b)-4]))
		}
		if s, err := decodeIndex(b); err == nil {
			if !bytes.Equal(b, encodeIndex(s.marker, s.end, s.places)) {
				t.Fatal("another index has the same meaning")
			}
			p := &pack{end: s.end}
			for _, at := range s.places {
				p.offs = append(p.offs, at.off)
			}
			for i := range p.offs {
				if off, end := p.extent(uint32(i)); off >= end || end > packMax {
					t.Fatalf("place %d is at %d to %d", i, off, end)
				}
			}
		}
		var m marker
		if len(b) >= 20 {
			copy(m[:], b[12:])
		}
		_ = decodeUse(b, m, func(_, _ uint32) {})
	})
}

func FuzzFooter(f *testing.F) {
	f.Add(appendFooter(nil, []uint32{1, 2}), int64(pieceLen+1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size <= 0 || size > 1<<40 {
			return
		}
		if got := contentLen(fileLen(size)); got != size {
			t.Fatalf("a file for %d bytes is said to hold %d", size, got)
		}
		if sums, err := decodeFooter(b, size); err == nil && !bytes.Equal(appendFooter(nil, sums), b) {
			t.Fatal("another footer has the same meaning")
		}
	})
}
