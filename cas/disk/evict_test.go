package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

func limited(t testing.TB, c *clock, max int64) Options {
	o := options(t, t.TempDir())
	o.MaxBytes, o.Now = max, c.Now
	return o
}

func TestLeastRecentlyUsedGoesFirst(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int
	}{{"files", 100_000}, {"packs", 10_000}} {
		t.Run(tc.name, func(t *testing.T) {
			c := newClock()
			o := limited(t, c, int64(40*tc.size))
			s := open(t, o)
			var blobs []Blob
			for i := range 30 {
				blobs = append(blobs, blob(uint64(i), tc.size))
				put(t, s, blobs[i])
				c.add(stampEvery)
			}
			c.add(2 * Keep)
			for _, i := range []int{3, 7} { // used again
				wantHas(t, s, blobs[i], true)
			}
			c.add(time.Second)
			if err := s.Close(); err != nil { // the order survives
				t.Fatal(err)
			}
			c.add(2 * Keep)
			s = open(t, o)
			for i := range 20 {
				put(t, s, blob(uint64(100+i), tc.size))
			}
			u := s.Usage()
			if u.Bytes > u.Limit || u.Evicted == 0 || u.Reserved != 0 {
				t.Errorf("usage %+v", u)
			}
			for i, b := range blobs {
				_, err := s.Get(t.Context(), b.Digest, 1<<30)
				switch gone := isMissing(err); {
				case (i == 3 || i == 7 || i >= 20) && gone:
					t.Errorf("blob %d is gone", i)
				case i < 5 && i != 3 && !gone:
					t.Errorf("blob %d is still there: %v", i, err)
				}
			}
			for i := range 20 {
				wantHas(t, s, blob(uint64(100+i), tc.size), true)
			}
			wantDisk(t, s)
		})
	}
}

func TestFreshBlobsStay(t *testing.T) {
	c := newClock()
	s := open(t, limited(t, c, 1_000_000))
	old, asked := blob(1, 300_000), blob(2, 300_000)
	put(t, s, old, asked)
	c.add(2 * Keep)
	if m, err := s.Missing(t.Context(), []cas.Digest{asked.Digest}); len(m) > 0 || err != nil {
		t.Fatal(m, err)
	}
	put(t, s, blob(3, 300_000))
	wantHas(t, s, old, true)
	c.add(time.Minute)
	put(t, s, blob(4, 300_000)) // takes old's place; that it was read was no promise
	wantHas(t, s, old, false)
	err := s.Put(t.Context(), blob(5, 300_000).Digest, blob(5, 300_000).Data)
	if skep.KindOf(err) != skep.Exhausted || !strings.Contains(err.Error(), "of at most 1000000") {
		t.Errorf("a store of fresh blobs: %v, want an Exhausted error with sizes", err)
	}
	up, err := s.Upload(t.Context(), blob(5, 300_000).Digest, "u")
	if skep.KindOf(err) != skep.Exhausted {
		t.Errorf("Upload to it: %v %v", up, err)
	}
	wantHas(t, s, asked, true)
	c.add(2 * Keep)
	put(t, s, blob(5, 300_000))
	if err := s.Put(t.Context(), blob(6, 2_000_000).Digest, blob(6, 2_000_000).Data); skep.KindOf(err) != skep.Exhausted {
		t.Errorf("a blob larger than the limit: %v", err)
	}
	if s.Usage().Blobs == 0 {
		t.Error("everything went for a blob that can never fit")
	}
	wantDisk(t, s)
}

// Whoever announces much and sends little takes nobody's place; room is made for
// what comes.
func TestAnnouncedBytesEvictNothing(t *testing.T) {
	c := newClock()
	s := open(t, limited(t, c, 10_000_000))
	old := blob(1, 4_000_000)
	put(t, s, old)
	c.add(2 * Keep)
	big := blob(2, 8_000_000)
	for i := range 50 {
		up, err := s.Upload(t.Context(), big.Digest, fmt.Sprint("u", i))
		if err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			if _, err := up.Write(big.Data[:1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if u := s.Usage(); u.Evicted != 0 || u.Reserved == 0 || u.Reserved > 1_000_000 {
		t.Errorf("after 50 announcements and 2 bytes: %+v", u)
	}
	c.add(2 * UploadKeep)
	unnamed, err := s.UploadUnnamed(t.Context(), 8_000_000)
	if err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Reserved != 0 {
		t.Errorf("%d bytes are reserved for writes that did not begin", u.Reserved)
	}
	if m, err := s.Missing(t.Context(), []cas.Digest{old.Digest}); len(m) > 0 || err != nil { // what was asked for stays
		t.Fatal(m, err)
	}
	err = unnamed.Take(bytes.NewReader(big.Data), func() {})
	if skep.KindOf(err) != skep.Exhausted || !strings.Contains(err.Error(), "of at most 10000000") {
		t.Errorf("no room half way: %v, want an Exhausted error with sizes", err)
	}
	if err := unnamed.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Upload(t.Context(), big.Digest, "more"); skep.KindOf(err) != skep.Exhausted {
		t.Errorf("what cannot fit is announced: %v", err)
	}
	c.add(2 * Keep)
	put(t, s, big)
	wantHas(t, s, old, false)
	if u := s.Usage(); u.Reserved != 0 || u.OpenedUploads != 0 || u.Bytes > u.Limit {
		t.Errorf("usage %+v", u)
	}
	wantDisk(t, s)
}

func TestPinnedTreesStay(t *testing.T) {
	c := newClock()
	o := limited(t, c, 2_000_000)
	deep, large, twice := blob(1, 5000), blob(2, 200_000), blob(3, 7000)
	sub := cas.Directory{Files: []cas.File{{Name: "deep", Digest: deep.Digest}}, Dirs: []cas.Dir{{Name: "gone", Digest: cas.Sum([]byte("gone"))}}}
	subData := sub.Encode()
	top := cas.Directory{
		// A file whose content is a directory must not hide that directory.
		Files: []cas.File{{Name: "as-file", Digest: cas.Sum(subData)}, {Name: "large", Digest: large.Digest}, {Name: "twice", Digest: twice.Digest}},
		Dirs:  []cas.Dir{{Name: "a", Digest: cas.Sum(subData)}, {Name: "b", Digest: cas.Sum(subData)}, {Name: "empty", Digest: cas.Empty}},
	}
	topData := top.Encode()
	pinned := []Blob{deep, large, twice, {cas.Sum(subData), subData}, {cas.Sum(topData), topData}}
	var failure error
	o.Roots = func(context.Context) ([]cas.Digest, error) {
		return []cas.Digest{cas.Sum(topData), cas.Sum([]byte("unknown root")), twice.Digest}, failure
	}
	s := open(t, o)
	put(t, s, pinned...)
	c.add(3 * Keep)
	for i := range 100 {
		put(t, s, blob(uint64(100+i), 30_000), blob(uint64(1000+i), 70_000))
		c.add(Keep)
	}
	if s.Usage().Evicted == 0 {
		t.Fatal("nothing was evicted")
	}
	for _, b := range pinned {
		wantHas(t, s, b, true)
	}
	if u := s.Usage(); u.Pinned < 212_000 || u.Pinned > 240_000 {
		t.Errorf("pinned %d bytes", u.Pinned)
	}
	wantDisk(t, s)
	failure = errors.New("the database is away")
	evicted := s.Usage().Evicted
	for i := range 50 {
		b := blob(uint64(5000+i), 70_000)
		if err := s.Put(t.Context(), b.Digest, b.Data); err != nil {
			if skep.KindOf(err) != skep.Unavailable {
				t.Errorf("got %v, want Unavailable", err)
			}
			break
		}
	}
	if s.Usage().Evicted != evicted {
		t.Error("something was evicted without knowing what must stay")
	}
}

// Small blobs that stay here and there hold their packs; these are rewritten.
func TestCompaction(t *testing.T) {
	c := newClock()
	o := limited(t, c, 30<<20)
	o.packMax = 4 << 20
	s := open(t, o)
	var keep []cas.Digest
	for i := range 5 {
		var blobs []Blob
		for j := range 1500 {
			blobs = append(blobs, blob(uint64(10_000*i+j), 6_000))
			if j%10 == 0 {
				keep = append(keep, blobs[j].Digest)
			}
		}
		put(t, s, blobs...)
		c.add(2 * Keep)
		if m, err := s.Missing(t.Context(), keep); err != nil || len(m) > 0 {
			t.Fatalf("%d blobs that were asked for are gone, %v", len(m), err)
		}
		if u := s.Usage(); u.Bytes > u.Limit {
			t.Fatalf("usage %+v", u)
		}
	}
	wantDisk(t, s)
	check := func() {
		for i, d := range keep {
			if b, err := s.Get(t.Context(), d, 1<<20); err != nil || cas.Sum(b) != d {
				t.Fatalf("blob %d: %v", i, err)
			}
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, o)
	check()
	wantDisk(t, s)
}

func TestMinFree(t *testing.T) {
	c := newClock()
	o := limited(t, c, 1<<40)
	o.MinFree = 1 << 20
	s := open(t, o)
	const disk = 3 << 20
	s.free.fake = func() int64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return disk - s.bytes
	}
	for i := range 50 {
		put(t, s, blob(uint64(i), 100_000))
		c.add(2 * Keep)
	}
	if u := s.Usage(); u.Free < u.MinFree || u.Evicted < 25 || u.Evicted > 45 {
		t.Errorf("usage %+v", u)
	}
}

// A write that fails leaves nothing behind, and the store goes on working.
func TestFaults(t *testing.T) {
	small, large := blob(1, 1000), blob(2, 200_000)
	for _, tc := range []struct {
		step string
		b    Blob
	}{
		{"begin pack", small},
		{"write pack", small},
		{"sync pack", small},
		{"write file", large},
		{"sync file", large},
		{"rename file", large},
		{"sync directory", large},
		{"write upload", large},
	} {
		for _, fault := range []error{syscall.ENOSPC, syscall.EIO} {
			for _, cut := range []bool{false, true} {
				t.Run(tc.step+", "+fault.Error(), func(t *testing.T) {
					dir := t.TempDir()
					s := open(t, options(t, dir))
					first := blob(9, 500)
					if tc.step != "begin pack" {
						put(t, s, first)
					}
					failing := true
					s.hook = func(step string) error {
						if failing && (step == tc.step || cut && step == "cut pack") {
							return fault
						}
						return nil
					}
					var err error
					if tc.step == "write upload" {
						up, e := s.Upload(t.Context(), tc.b.Digest, "u")
						if e != nil {
							t.Fatal(e)
						}
						_, err = up.Write(tc.b.Data)
					} else {
						err = s.Put(t.Context(), tc.b.Digest, tc.b.Data)
					}
					want := skep.Internal
					if errors.Is(fault, syscall.ENOSPC) {
						want = skep.Exhausted
					}
					if err == nil || skep.KindOf(err) != want {
						t.Errorf("got %v, want kind %v", err, want)
					}
					wantHas(t, s, tc.b, false)
					wantDisk(t, s)
					failing = false
					second := blob(3, 2000)
					put(t, s, tc.b, second)
					for range 2 {
						wantHas(t, s, tc.b, true)
						wantHas(t, s, second, true)
						if tc.step != "begin pack" {
							wantHas(t, s, first, true)
						}
						if u := s.Usage(); u.Reserved != 0 || u.OpenedUploads != 0 || u.Corrupt != 0 {
							t.Errorf("left over: %+v", u)
						}
						wantDisk(t, s)
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
						s = open(t, options(t, dir))
					}
				})
			}
		}
	}
}

// Space of a real file system that is too small.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := mountSmall(dir, "4m"); err != nil {
		t.Skip("no file system of its own for this test:", err)
	}
	t.Cleanup(func() { unmount(dir) })
	o := options(t, filepath.Join(dir, "cas"))
	s := open(t, o)
	s.free.fake = func() int64 { return 1 << 40 } // the limit does not help
	var stored []Blob
	failed := 0
	for i := range 200 {
		b := blob(uint64(i), []int{50_000, 120_000}[i%2])
		switch err := s.Put(t.Context(), b.Digest, b.Data); {
		case err == nil:
			stored = append(stored, b)
		case skep.KindOf(err) == skep.Exhausted:
			failed++
		default:
			t.Fatal(err)
		}
	}
	if failed == 0 || len(stored) < 20 {
		t.Fatalf("%d writes failed, %d blobs are stored", failed, len(stored))
	}
	for range 2 {
		for _, b := range stored {
			wantHas(t, s, b, true)
		}
		wantDisk(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, o)
	}
}

// A task that is accepted while blobs are being evicted finds its inputs,
// whether this process accepts it or another one on the same tables.
func TestTaskAcceptedDuringEviction(t *testing.T) {
	for _, size := range []int{10_000, 100_000} { // in packs, in files
		for name, accept := range map[string]func(s *Store, root cas.Digest, tell func()){
			"by us":                func(s *Store, root cas.Digest, tell func()) { done := s.Pin(root); tell(); done() },
			"still being accepted": func(s *Store, root cas.Digest, _ func()) { s.Pin(root) },
			"by another process":   func(_ *Store, _ cas.Digest, tell func()) { tell() },
		} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				c := newClock()
				o := limited(t, c, int64(20*size))
				var told atomic.Bool
				var asked int
				var s *Store
				var root cas.Digest
				o.Roots = func(context.Context) ([]cas.Digest, error) {
					roots := []cas.Digest{}
					if told.Load() {
						roots = append(roots, root)
					}
					// Another process commits right after we asked.
					if asked++; asked == 1 && name == "by another process" {
						accept(s, root, func() { told.Store(true) })
					}
					return roots, nil
				}
				s = open(t, o)
				var files []Blob
				d := &cas.Directory{}
				for i := range 8 { // the oldest
					files = append(files, blob(uint64(i), size))
					d.Files = append(d.Files, cas.File{Name: fmt.Sprint("f", i), Digest: files[i].Digest})
				}
				sub := Blob{Data: d.Encode()}
				sub.Digest = cas.Sum(sub.Data)
				top := Blob{Data: (&cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: sub.Digest}}}).Encode()}
				root = cas.Sum(top.Data)
				top.Digest = root
				put(t, s, append(files, sub, top)...)
				c.add(time.Hour)
				for i := range 10 {
					put(t, s, blob(uint64(50+i), size))
				}
				c.add(2 * Keep)
				if name != "by another process" {
					var once sync.Once
					s.hook = func(step string) error {
						if step == "evict" {
							once.Do(func() { accept(s, root, func() { told.Store(true) }) })
						}
						return nil
					}
				}
				for i := range 6 {
					put(t, s, blob(uint64(100+i), size))
				}
				if s.Usage().Evicted == 0 {
					t.Fatal("nothing was evicted")
				}
				for _, b := range append(files, sub, top) {
					wantHas(t, s, b, true)
				}
				wantDisk(t, s)
			})
		}
	}
}
