package cache

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/cas"
)

const fileSize = 10_000

// files puts a tree of files of one size into f.
func (f *fake) files(first, n int) cas.Digest {
	var d cas.Directory
	for i := range n {
		b := append([]byte(fmt.Sprint(first+i)), bytesOf(fileSize, 'x')...)[:fileSize]
		d.Files = append(d.Files, cas.File{Name: fmt.Sprintf("f%03d", i), Digest: f.put(b)})
	}
	return f.put(d.Encode())
}

// stored is what the directory of a cache holds, whoever wrote it.
func stored(dir string) (bytes int64, items int) {
	names, _ := os.ReadDir(filepath.Join(dir, "cas_cache"))
	for _, e := range names {
		if _, ok := parseKey(e.Name()); ok {
			if fi, err := e.Info(); err == nil {
				bytes, items = bytes+fi.Size(), items+1
			}
		}
	}
	return bytes, items
}

// The limits hold at every moment of a transfer, whoever shares the cache.
func TestLimitsHoldDuringTransfers(t *testing.T) {
	const most = 7
	for name, limit := range map[string]func(*Options){
		"size":  func(o *Options) { o.MaxBytes = most * fileSize },
		"items": func(o *Options) { o.MaxItems = most },
		"free disk": func(o *Options) {
			o.Free = func(dir string) (int64, error) {
				n, _ := stored(filepath.Dir(dir))
				return most*fileSize + o.MinFree - n, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, dir := newFake(), tempDir(t)
			var high atomic.Int64
			f.each = func(cas.Digest) error {
				_, n := stored(dir)
				for was := high.Load(); int64(n) > was && !high.CompareAndSwap(was, int64(n)); was = high.Load() {
				}
				return nil
			}
			var roots []cas.Digest
			for i := range 8 {
				roots = append(roots, f.files(10*i, 3))
			}
			var bots sync.WaitGroup
			for b := range 4 {
				work := filepath.Join(dir, fmt.Sprint("bot", b))
				if err := os.Mkdir(work, 0o700); err != nil {
					t.Fatal(err)
				}
				bots.Go(func() {
					for i := range 12 {
						c := openAt(childT{}, dir, limit)
						root := roots[(i*3+b)%len(roots)]
						r := materialise(childT{}, c, f, root, work, How{Method: Copy, UID: -1})
						if d := cmp.Diff(f.contentOf(t, root), content(t, r.dst)); d != "" {
							t.Error(d)
						}
						r.end(childT{})
						c.Close()
					}
				})
			}
			bots.Wait()
			if n := high.Load(); n > most {
				t.Errorf("%d entries at a time, want at most %d", n, most)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "cas_cache", roomDir, "*")); len(left) > 0 {
				t.Errorf("room is still set aside: %v", left)
			}
		})
	}
}

// A tree larger than the limit is made; the cache is trimmed afterwards.
func TestTreeBeyondTheLimit(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	c := openAt(t, dir, func(o *Options) { o.MaxBytes = 3 * fileSize })
	materialise(t, c, f, f.files(0, 3), dir, How{Method: Copy, UID: -1}).end(t)
	root := f.files(50, 5)
	materialise(t, c, f, root, dir, How{Method: Copy, UID: -1}).end(t)
	if n, _ := c.Usage(); n != 5 {
		t.Errorf("%d entries, want the 5 of the tree only", n)
	}
	if c.Within(1) {
		t.Error("a cache beyond its limit says that it is within")
	}
	tr, err := c.Trim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Enforce(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if _, n := c.Usage(); n != 3*fileSize || !c.Within(1) {
		t.Errorf("%d bytes after trimming, within: %v", n, c.Within(1))
	}
	if c.Within(math.MaxInt64) {
		t.Error("there is never so much free")
	}
}

// While room is made, everybody else may remove what was here: it is looked at
// again. Room that a killed process had set aside counts for nothing.
func TestMakeRoomLooksAgain(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	hot := f.files(0, 1)
	materialise(t, openAt(t, dir), f, hot, dir, How{Method: Copy, UID: -1}).end(t)
	old := f.files(100, 1)
	now := time.Now().Add(-time.Hour)
	materialise(t, openAt(t, dir, func(o *Options) { o.Now = func() time.Time { return now } }), f, old, dir, How{Method: Copy, UID: -1}).end(t)
	if err := os.WriteFile(filepath.Join(dir, "cas_cache", roomDir, "999999999-3-dead"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	other := openAt(t, dir)
	unlock, err := other.lock(t.Context(), useLock, true)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	var once sync.Once
	c := openAt(t, dir, func(o *Options) {
		o.MaxBytes = 2 * fileSize
		o.Free = func(string) (int64, error) {
			once.Do(func() { close(asked) }) // what is missing is known by now
			return 1 << 40, nil
		}
	})
	go func() {
		<-asked
		key := key{hash: f.hashOf(t, hot, "f000")}
		other.mu.Lock()
		if err := other.load(); err != nil {
			t.Error(err)
		}
		other.drop(key)
		if err := other.dir.remove(key.String()); err != nil {
			t.Error(err)
		}
		if err := other.save(); err != nil {
			t.Error(err)
		}
		other.mu.Unlock()
		unlock()
	}()
	both := f.put((&cas.Directory{Files: []cas.File{
		{Name: "hot", Digest: cas.Digest{Hash: f.hashOf(t, hot, "f000"), Size: fileSize}},
		{Name: "new", Digest: f.put(bytesOf(fileSize, 'n'))},
	}}).Encode())
	r := materialise(t, c, f, both, dir, How{Method: Copy, UID: -1})
	if d := cmp.Diff(f.contentOf(t, both), content(t, r.dst)); d != "" {
		t.Errorf("the tree (-want +got):\n%s", d)
	}
	if len(r.Cold) != 2 {
		t.Errorf("%d fetched, want both", len(r.Cold))
	}
	if _, n := c.Usage(); n > 2*fileSize {
		t.Errorf("%d bytes in the cache, want at most %d", n, 2*fileSize)
	}
}

func (f *fake) hashOf(t testing.TB, root cas.Digest, name string) cas.Hash {
	t.Helper()
	b, _ := f.get(root)
	dir, err := cas.DecodeDirectory(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range dir.Files {
		if x.Name == name {
			return x.Digest.Hash
		}
	}
	t.Fatalf("%s is not in the tree", name)
	return cas.Hash{}
}

// A disk that others fill during a transfer makes the cache give way.
func TestDiskFillsDuringTransfer(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	hour := time.Now().Add(-time.Hour)
	materialise(t, openAt(t, dir, func(o *Options) { o.Now = func() time.Time { return hour } }), f, f.files(0, 4), dir, How{Method: Copy, UID: -1}).end(t)
	const disk = 20 * fileSize
	var others atomic.Int64
	c := openAt(t, dir, func(o *Options) {
		o.MinFree, o.watchEvery = 5*fileSize, time.Millisecond
		o.Free = func(dir string) (int64, error) {
			n, _ := stored(filepath.Dir(dir))
			return disk - n - others.Load(), nil
		}
	})
	stalled := false
	f.stall = func(ctx context.Context) {
		if stalled {
			return
		}
		stalled = true
		others.Store(12 * fileSize) // 4 + 12 of 20: less than 5 stay free
		<-ctx.Done()                // until the watch has seen it
	}
	root := f.files(50, 3)
	r := materialise(t, c, f, root, dir, How{Method: Copy, UID: -1})
	if d := cmp.Diff(f.contentOf(t, root), content(t, r.dst)); d != "" {
		t.Errorf("the tree (-want +got):\n%s", d)
	}
	if free, _ := c.opt.Free(c.opt.Dir); free < c.opt.MinFree {
		t.Errorf("%d bytes are free, want %d", free, c.opt.MinFree)
	}
}
