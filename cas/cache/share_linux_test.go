package cache

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/need"

	"github.com/gofrs/flock"
)

// TestMain lets the test binary be another process of a shared cache:
// "materialise DIR METHOD SEED" makes trees in DIR until it is killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 5 && os.Args[1] == "materialise" {
		os.Exit(child(os.Args[2], Method(os.Args[3]), os.Args[4]))
	}
	os.Exit(m.Run())
}

// corpus is the same storage in every process.
func corpus() (*fake, []cas.Digest) {
	f := newFake()
	var roots []cas.Digest
	for n := range 4 {
		var d, sub cas.Directory
		for i := range 150 {
			text := []byte(strings.Repeat(fmt.Sprintf("%d-%d ", n%3, i), 1+i*7))
			sub.Files = append(sub.Files, cas.File{Name: strconv.Itoa(i), Digest: f.put(text), Executable: i%5 == 0})
		}
		d.Dirs = []cas.Dir{{Name: "sub", Digest: f.put(sub.Encode())}}
		d.Files = []cas.File{{Name: "big", Digest: f.put(bytesOf(3*largeBlob, byte('a'+n)))}}
		roots = append(roots, f.put(d.Encode()))
	}
	return f, roots
}

func howBy(m Method) How {
	if m == Link {
		return How{Method: m, UID: foreign, GID: foreign}
	}
	return How{Method: m, UID: -1}
}

type childT struct{}

func (childT) Helper()                   {}
func (childT) Fatal(a ...any)            { fmt.Println(a...); os.Exit(3) }
func (childT) Fatalf(s string, a ...any) { fmt.Printf(s+"\n", a...); os.Exit(3) }

func child(dir string, m Method, seed string) int {
	n, _ := strconv.Atoi(seed)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	f, roots := corpus()
	for range 1000 {
		c := openAt(childT{}, dir)
		one := materialise(childT{}, c, f, roots[r.IntN(len(roots))], dir, howBy(m))
		one.end(childT{})
		if r.IntN(4) == 0 {
			trimSome(c, r.IntN(200))
		}
		_ = c.Close()
	}
	return 0
}

func trimSome(c *Cache, n int) {
	t, err := c.Trim(context.Background())
	if err != nil {
		childT{}.Fatal(err)
	}
	for range n {
		if _, ok := t.Oldest(); !ok {
			break
		}
		if _, err := t.Evict(); err != nil {
			childT{}.Fatal(err)
		}
	}
	if err := t.Close(); err != nil {
		childT{}.Fatal(err)
	}
}

// Several processes share one cache, and any of them is killed at any moment:
// every tree that comes out is right, and nothing is left that Clean does not
// remove.
func TestSharedAndKilled(t *testing.T) {
	kills := 12
	if testing.Short() {
		kills = 3
	}
	for m := range methods(t) {
		t.Run(string(m), func(t *testing.T) {
			dir := tempDir(t)
			f, roots := corpus()
			var wg sync.WaitGroup
			for k := range 2 {
				wg.Go(func() {
					for n := range kills {
						cmd := exec.Command(os.Args[0], "materialise", dir, string(m), strconv.Itoa(100*k+n))
						var out strings.Builder
						cmd.Stdout, cmd.Stderr = &out, &out
						if err := cmd.Start(); err != nil {
							t.Error(err)
							return
						}
						after := time.AfterFunc(time.Duration(rand.IntN(150))*time.Millisecond+20*time.Millisecond, func() { _ = cmd.Process.Kill() })
						err := cmd.Wait()
						after.Stop()
						if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.ExitCode() != -1 {
							t.Errorf("a process failed: %v\n%s", err, out.String())
						}
					}
				})
			}
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			n := 0
			for over := false; !over; n++ {
				select {
				case <-done:
					over = true
				default:
				}
				c := openAt(t, dir)
				root := roots[n%len(roots)]
				r := materialise(t, c, f, root, dir, howBy(m))
				if d := cmp.Diff(f.contentOf(t, root), content(t, r.dst)); d != "" {
					t.Fatalf("tree %d (-want +got):\n%s", n, d)
				}
				r.end(t)
				_ = c.Close()
			}
			t.Logf("%d trees while %d processes were killed", n, 2*kills)
			if err := releaseBelow(dir); err != nil { // killed ones cannot
				t.Fatal(err)
			}
			c := openAt(t, dir)
			if err := c.Clean(t.Context()); err != nil {
				t.Fatal(err)
			}
			for name := range content(t, c.opt.Dir) {
				if strings.Contains(name, tempPrefix) {
					t.Errorf("%s is left", name)
				}
				k, ok := parseKey(name)
				if _, there := c.items[k]; ok && !there {
					t.Errorf("entry %s is in no state", name)
				}
			}
			for k := range c.items {
				if _, ok := c.verify(k, c.items[k].size); !ok {
					t.Errorf("entry %s is damaged", k)
				}
			}
		})
	}
}

// TestTrimGetsItsTurn: makers of trees whose uses overlap all the time do not
// keep one who trims out, nor does one who waits for long keep them out.
func TestTrimGetsItsTurn(t *testing.T) {
	dir := t.TempDir()
	open := func() *Cache {
		c, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	users, over := context.WithCancel(ctx)
	var all sync.WaitGroup
	for range 4 {
		c := open()
		all.Go(func() {
			for users.Err() == nil {
				unlock, err := c.use(users, true)
				if err != nil {
					return
				}
				<-time.After(30 * time.Millisecond) // what making a tree takes
				unlock()
			}
		})
	}
	for range 5 {
		trim, err := open().Trim(ctx)
		if err != nil {
			t.Fatal("among users that never pause:", err)
		}
		if err := trim.Close(); err != nil {
			t.Fatal(err)
		}
	}
	over()
	all.Wait()

	fetching, err := open().use(ctx, true) // for as long as the test takes
	if err != nil {
		t.Fatal(err)
	}
	defer fetching()
	waits, giveUp := context.WithCancel(ctx)
	c := open()
	all.Go(func() {
		if trim, err := c.Trim(waits); err == nil {
			t.Error("trimmed while somebody fetches")
			_ = trim.Close()
		}
	})
	for { // until it has the turn
		l := flock.New(filepath.Join(dir, turnLock))
		free, err := l.TryLock()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		if !free {
			break
		}
		runtime.Gosched() // what another holds has no event
	}
	for range 3 {
		unlock, err := open().use(ctx, true)
		if err != nil {
			t.Fatal("behind one who waits for a fetch:", err)
		}
		unlock()
	}
	giveUp()
	all.Wait()
}

// Reflinks need a file system that shares blocks; one is made in a file.
func TestReflink(t *testing.T) {
	for _, kind := range []struct {
		name string
		mkfs []string
	}{{"xfs", []string{"mkfs.xfs", "-q"}}, {"btrfs", []string{"mkfs.btrfs", "-q"}}} {
		t.Run(kind.name, func(t *testing.T) {
			dir := mountLoop(t, kind.name, kind.mkfs)
			f, roots := corpus()
			c := openAt(t, dir)
			t.Cleanup(func() { _ = c.Close() })                                  // before it is unmounted
			for _, how := range []How{{UID: -1}, {UID: foreign, GID: foreign}} { // the first choice for everybody
				for range 2 {
					r := materialise(t, c, f, roots[0], dir, how)
					if r.Method != Reflink {
						t.Fatalf("came by %q", r.Method)
					}
					if d := cmp.Diff(f.contentOf(t, roots[0]), content(t, r.dst)); d != "" {
						t.Fatalf("tree (-want +got):\n%s", d)
					}
					checkOwners(t, r.dst, how)
					// What the task does to its copy stays its own.
					if err := os.WriteFile(filepath.Join(r.dst, "big"), []byte("mine"), 0o600); err != nil {
						t.Fatal(err)
					}
					r.end(t)
				}
			}
			if n := f.reads.Load(); n != 151 {
				t.Errorf("%d blobs were fetched", n)
			}
			// Blocks are shared: ten copies of 3 MiB take no room.
			before, err := Free(dir)
			if err != nil {
				t.Fatal(err)
			}
			for range 10 {
				materialise(t, c, f, roots[0], dir, How{UID: -1})
			}
			if after, _ := Free(dir); before-after > 10<<20 {
				t.Errorf("ten trees take %d bytes", before-after)
			}
		})
	}
}

// mountLoop mounts a new file system of a file, or skips.
func mountLoop(t *testing.T, kind string, mkfs []string) string {
	t.Helper()
	skip := func(why string) {
		need.Skip(t, kind, why)
	}
	known, _ := os.ReadFile("/proc/filesystems")
	if os.Geteuid() != 0 || !strings.Contains(string(known), "\t"+kind+"\n") {
		skip("needs root and a kernel with " + kind)
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		skip(err.Error())
	}
	dir := t.TempDir()
	img, at := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 512<<20), os.Mkdir(at, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{append(mkfs, img), {"mount", "-o", "loop", img, at}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			skip(fmt.Sprintf("%v: %v: %s", cmd, err, out))
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return at
}

func TestTrim(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	now := time.Unix(1_700_000_000, 0)
	limits := func(o *Options) { o.Now = func() time.Time { return now } }
	tree := func(text string) cas.Digest {
		return f.put((&cas.Directory{Files: []cas.File{{Name: "f", Digest: f.put([]byte(text))}}}).Encode())
	}
	roots := []cas.Digest{tree("one"), tree("two!"), tree("three")}
	for _, r := range roots {
		materialise(t, openAt(t, dir, limits), f, r, dir, How{Method: Copy, UID: -1}).end(t)
		now = now.Add(time.Hour)
	}
	materialise(t, openAt(t, dir, limits), f, roots[0], dir, How{Method: Copy, UID: -1}).end(t) // used again
	left := func(change func(*Options)) string {
		c := openAt(t, dir, limits, change)
		tr, err := c.Trim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tr.Enforce(), tr.Close()); err != nil {
			t.Fatal(err)
		}
		var out []string
		for n, text := range []string{"one", "two!", "three"} {
			_, err := os.Stat(filepath.Join(c.opt.Dir, cas.Sum([]byte(text)).Hash.String()))
			_, terr := os.Stat(c.treePath(roots[n], ""))
			if err == nil && terr == nil {
				out = append(out, text)
			}
		}
		items, bytes := c.Usage()
		return fmt.Sprintf("%v %d %d", out, items, bytes)
	}
	for _, tc := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"all fits", func(o *Options) { o.MaxBytes = 12 }, "[one two! three] 3 12"},
		{"one byte too many", func(o *Options) { o.MaxBytes = 11 }, "[one three] 2 8"},
		{"one item", func(o *Options) { o.MaxItems = 1 }, "[one] 1 3"},
		{"too old", func(o *Options) { now = now.Add(22 * 24 * time.Hour) }, "[] 0 0"},
	} {
		if got := left(tc.change); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// A tree that a task has mounted stays, whatever is trimmed.
func TestTrimSparesMountedTrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("overlays need root")
	}
	f, roots := corpus()
	dir := tempDir(t)
	r := materialise(t, openAt(t, dir), f, roots[0], dir, howBy(Overlay))
	defer r.end(t)
	c := openAt(t, dir)
	trimSome(c, 1000)
	if n, _ := c.Usage(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	if d := cmp.Diff(f.contentOf(t, roots[0]), content(t, r.dst)); d != "" {
		t.Errorf("the task's tree (-want +got):\n%s", d)
	}
	again := materialise(t, openAt(t, dir), f, roots[0], dir, howBy(Overlay))
	defer again.end(t)
	if d := cmp.Diff(f.contentOf(t, roots[0]), content(t, again.dst)); d != "" {
		t.Errorf("the next task's tree (-want +got):\n%s", d)
	}
}

// Room is made for what is missing before it is fetched.
func TestMakeRoom(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	now := time.Unix(1_700_000_000, 0)
	size := int64(10_000)
	tree := func(c byte) cas.Digest {
		return f.put((&cas.Directory{Files: []cas.File{{Name: "f", Digest: f.put(bytesOf(size, c))}}}).Encode())
	}
	open := func() *Cache {
		var c *Cache
		c = openAt(t, dir, func(o *Options) {
			o.Now, o.MinFree = func() time.Time { return now }, size/2
			o.Free = func(string) (int64, error) { // a disk with room for three
				_, used := c.Usage()
				return 3*size + size/2 - used, nil
			}
		})
		return c
	}
	for i := range 6 {
		c := open()
		materialise(t, c, f, tree(byte('a'+i)), dir, How{Method: Copy, UID: -1}).end(t)
		now = now.Add(time.Hour)
		if n, _ := c.Usage(); n != min(i+1, 3) {
			t.Errorf("%d entries after %d", n, i+1)
		}
	}
}

func FuzzState(f *testing.F) {
	one := key{hash: cas.Sum([]byte("x")).Hash, exec: true}
	s := state{Boot: "b", Items: []stateItem{{one, 1, 2}, {key{hash: one.hash}, 3, 4}}, Files: []fileState{{5, 6, 7}, {1 << 62, -1, 0}}}
	f.Add(s.encode())
	f.Add([]byte(`{"items":[["` + one.hash.String() + `",[3,1700000000.5]]],"version":3}`))
	f.Add([]byte(`{"items":[],"version":3}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		if s.Files == nil {
			s.Files = make([]fileState, len(s.Items))
		}
		again, err := decodeState(s.encode())
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		opt := cmp.AllowUnexported(state{}, stateItem{}, fileState{}, key{})
		if len(s.Items) > 0 {
			if d := cmp.Diff(s, again, opt); d != "" {
				t.Fatal(d)
			}
		}
	})
}

func FuzzLook(f *testing.F) {
	l := look{boot: "b", dirs: []info{{ino: 1, ctime: -2, perm: 0o755}}, files: []uint64{3, 4}}
	f.Add(l.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLook(b); err == nil {
			if _, err := decodeLook(l.encode()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
