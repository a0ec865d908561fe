package cache

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
	"github.com/skepdev/skep/internal/need"
)

type testing2 interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func openAt(t testing2, dir string, change ...func(*Options)) *Cache {
	t.Helper()
	opt := Options{Dir: filepath.Join(dir, "cas_cache"), MinFree: 1, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opt)
	}
	c, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// run is one task's inputs.
type run struct {
	dst, scratch string
	*Result
}

func materialise(t testing2, c *Cache, from Source, root cas.Digest, dir string, how How) run {
	t.Helper()
	r, err := tryMaterialise(t, c, from, root, dir, how)
	if err != nil {
		t.Fatalf("materialise by %q: %v", how.Method, err)
	}
	return r
}

func tryMaterialise(t testing2, c *Cache, from Source, root cas.Digest, dir string, how How) (run, error) {
	t.Helper()
	w, err := os.MkdirTemp(dir, "w")
	if err != nil {
		t.Fatal(err)
	}
	r := run{dst: filepath.Join(w, "ir"), scratch: filepath.Join(w, "io")}
	for _, d := range []string{r.dst, r.scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if how.Scratch == "" {
		how.Scratch = r.scratch
	}
	if r.Result, err = c.Materialise(context.Background(), from, root, r.dst, how); err != nil {
		return r, err
	}
	return r, nil
}

func (r run) end(t testing2) {
	t.Helper()
	if r.Result != nil {
		if err := r.Undo(); err != nil {
			t.Fatal(err)
		}
	}
	if err := debris.Remove(filepath.Dir(r.dst)); err != nil {
		t.Fatal(err)
	}
}

// foreign is a user that is not ours.
const foreign = 54321

// methods are those that work here without a file system of their own.
func methods(t testing.TB) map[Method]How {
	m := map[Method]How{Copy: {Method: Copy, UID: -1}}
	if os.Geteuid() != 0 {
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "root") {
			t.Fatal("links and overlays need root")
		}
		t.Log("SKIPPED: links and overlays need root")
		return m
	}
	m[Link] = How{Method: Link, UID: foreign, GID: foreign}
	m[Overlay] = How{Method: Overlay, UID: -1}
	return m
}

// tempDir is t.TempDir, which another user may pass through.
func tempDir(t *testing.T) string {
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	t.Cleanup(func() {
		if err := releaseBelow(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Whatever the method and whatever is here already, the directory is the tree.
func TestIdentity(t *testing.T) {
	for m, how := range methods(t) {
		t.Run(string(m), func(t *testing.T) {
			dir := tempDir(t)
			rapid.Check(t, func(rt *rapid.T) {
				f := newFake()
				sub, err := os.MkdirTemp(dir, "c") //nolint:usetesting // one for each tree
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = debris.Remove(sub) }()
				roots := []cas.Digest{trees(rt, f), trees(rt, f)}
				for range rapid.IntRange(1, 4).Draw(rt, "tasks") {
					c := openAt(rt, sub)
					root := rapid.SampledFrom(roots).Draw(rt, "root")
					damage(rt, c.opt.Dir, m != Link)
					r := materialise(rt, c, f, root, sub, how)
					if r.Method != m {
						rt.Fatalf("came by %q", r.Method)
					}
					if d := cmp.Diff(f.contentOf(t, root), content(t, r.dst)); d != "" {
						rt.Fatalf("tree (-want +got):\n%s", d)
					}
					checkOwners(rt, r.dst, how)
					r.end(rt)
					_ = c.Close()
				}
			})
		})
	}
}

func checkOwners(t testing2, dst string, how How) {
	t.Helper()
	if how.UID < 0 {
		return
	}
	_ = filepath.WalkDir(dst, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		uid := fi.Sys().(*syscall.Stat_t).Uid
		switch {
		case path == dst:
		case e.IsDir() && uid != uint32(how.UID):
			t.Fatalf("directory %s belongs to %d", path, uid)
		case e.Type().IsRegular() && how.Method == Link && uid != uint32(os.Geteuid()):
			t.Fatalf("file %s belongs to %d", path, uid)
		case e.Type().IsRegular() && fi.Mode().Perm()&0o222 != 0:
			t.Fatalf("file %s has mode %v", path, fi.Mode())
		}
		return nil
	})
}

// damage does something to a cache that a task, a crash or an operator may do.
//
// A rewrite that restores the time can go unseen while entries have links
// outside; who gets links can do neither.
func damage(t *rapid.T, dir string, restore bool) {
	var entries []string
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(path, ".lock") {
			entries = append(entries, path)
		}
		return nil
	})
	if len(entries) == 0 {
		return
	}
	slices.Sort(entries)
	for range rapid.IntRange(0, 3).Draw(t, "damages") {
		path := rapid.SampledFrom(entries).Draw(t, "victim")
		fi, err := os.Lstat(path)
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		switch rapid.SampledFrom([]string{"remove", "cut", "rewrite", "rewrite, same times", "mode", "empty", "grow", "link", "touch"}).Draw(t, "damage") {
		case "remove":
			_ = os.Remove(path)
		case "cut":
			_ = os.Truncate(path, fi.Size()/2)
		case "rewrite":
			_ = os.WriteFile(path, bytesOf(fi.Size(), 'z'), 0)
		case "rewrite, same times":
			_ = os.WriteFile(path, bytesOf(fi.Size(), 'y'), 0)
			if restore {
				_ = os.Chtimes(path, fi.ModTime(), fi.ModTime())
			}
		case "mode":
			_ = os.Chmod(path, 0o666)
		case "empty":
			_ = os.Truncate(path, 0)
		case "grow":
			_ = os.WriteFile(path, bytesOf(fi.Size()+1, 'q'), 0)
		case "link":
			_ = os.Remove(path)
			_ = os.Symlink("/etc/passwd", path)
		case "touch":
			_ = os.Chtimes(path, time.Now(), time.Unix(1, 0))
		}
	}
}

func bytesOf(n int64, c byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return b
}

func TestWarmAsksNobody(t *testing.T) {
	for m, how := range methods(t) {
		t.Run(string(m), func(t *testing.T) {
			dir, f := tempDir(t), newFake()
			root := f.put((&cas.Directory{Files: []cas.File{{Name: "a", Digest: f.put([]byte("a"))}, {Name: "b", Digest: f.put([]byte("b")), Executable: true}}}).Encode())
			c := openAt(t, dir)
			first := materialise(t, c, f, root, dir, how)
			first.end(t)
			_ = c.Close()
			reads, asked := f.reads.Load(), f.trees.Load()
			c = openAt(t, dir)
			second := materialise(t, c, f, root, dir, how)
			defer second.end(t)
			if f.reads.Load() != reads || f.trees.Load() != asked {
				t.Errorf("%d blobs, %d trees fetched again", f.reads.Load()-reads, f.trees.Load()-asked)
			}
			got := [][]int64{first.Cold, first.Hot, second.Cold, second.Hot}
			if d := cmp.Diff([][]int64{{1, 1}, nil, nil, {1, 1}}, got); d != "" {
				t.Errorf("cold, hot, cold, hot (-want +got):\n%s", d)
			}
			if second.Items != 2 || second.Bytes != 2 {
				t.Errorf("%d items of %d bytes", second.Items, second.Bytes)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	f := newFake()
	x := f.put([]byte("x"))
	file := cas.File{Name: "f", Digest: x}
	deep := f.put((&cas.Directory{Files: []cas.File{file}}).Encode())
	for range 10_000 {
		deep = f.put((&cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: deep}}}).Encode())
	}
	wide := f.put((&cas.Directory{Files: []cas.File{file}}).Encode())
	for range 40 {
		wide = f.put((&cas.Directory{Dirs: []cas.Dir{{Name: "a", Digest: wide}, {Name: "b", Digest: wide}}}).Encode())
	}
	in := func(d cas.Directory) cas.Digest { return f.put(d.Encode()) }
	sub := in(cas.Directory{Symlinks: []cas.Symlink{{Name: "s", Target: "../../../top"}, {Name: "m", Target: "s/../../x"}}})
	for _, tc := range []struct {
		name string
		root cas.Digest
		want string
	}{
		{"name goes up", in(cas.Directory{Files: []cas.File{{Name: "..", Digest: x}}}), `".." is no name`},
		{"absolute name", in(cas.Directory{Files: []cas.File{{Name: "/etc/x", Digest: x}}}), "holds a slash"},
		{"path as a name", in(cas.Directory{Dirs: []cas.Dir{{Name: "a/../..", Digest: cas.Empty}}}), "holds a slash"},
		{"name stands twice", in(cas.Directory{Files: []cas.File{file}, Symlinks: []cas.Symlink{{Name: "f", Target: "x"}}}), "stands twice"},
		{"10,000 directories deep", deep, "more than 256 directories deep"},
		{"2^40 files out of 41 messages", wide, "more than 4000000 entries"},
		{"absolute link", in(cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "/etc/passwd"}}}), "outside of the tree"},
		{"link up and out", in(cas.Directory{Dirs: []cas.Dir{{Name: "d", Digest: in(cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "../../x"}}})}}}), "outside of the tree"},
		{"link out by way of another", in(cas.Directory{
			Dirs: []cas.Dir{{Name: "a", Digest: in(cas.Directory{Dirs: []cas.Dir{{Name: "b", Digest: in(cas.Directory{Dirs: []cas.Dir{{Name: "c", Digest: sub}}})}}})}, {Name: "top", Digest: cas.Empty}},
		}), "by way of another"},
		{"one hash, two sizes", in(cas.Directory{Files: []cas.File{file, {Name: "g", Digest: cas.Digest{Hash: x.Hash, Size: 7}}}}), "has 1 and 7 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := tempDir(t)
			c := openAt(t, dir)
			before := content(t, c.opt.Dir)
			r, err := tryMaterialise(t, c, f, tc.root, dir, How{Method: Copy, UID: -1})
			if err == nil || !strings.Contains(err.Error(), tc.want) || skep.KindOf(err) != skep.Invalid {
				t.Errorf("got %v, want an Invalid error with %q", err, tc.want)
			}
			if d := cmp.Diff(map[string]string{".": "directory"}, content(t, r.dst)); d != "" {
				t.Errorf("directory (-want +got):\n%s", d)
			}
			after := content(t, c.opt.Dir)
			delete(after, useLock)
			delete(after, turnLock)
			if d := cmp.Diff(before, after); d != "" {
				t.Errorf("cache (-want +got):\n%s", d)
			}
		})
	}
}

func TestMissingBlobs(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	gone, big := cas.Sum([]byte("gone")), cas.Sum(make([]byte, 2*largeBlob))
	root := f.put((&cas.Directory{Files: []cas.File{{Name: "a", Digest: f.put([]byte("a"))}, {Name: "b", Digest: big}, {Name: "g", Digest: gone}}}).Encode())
	c := openAt(t, dir)
	_, err := tryMaterialise(t, c, f, root, dir, How{UID: -1})
	m, ok := errors.AsType[*cas.MissingError](err)
	if !ok || len(m.Digests) != 2 || !slices.Contains(m.Digests, gone) || !slices.Contains(m.Digests, big) {
		t.Fatalf("got %v", err)
	}
	// The tree itself may be what is missing.
	_, err = tryMaterialise(t, c, f, gone, dir, How{UID: -1})
	if m, ok = errors.AsType[*cas.MissingError](err); !ok || !slices.Contains(m.Digests, gone) {
		t.Fatalf("got %v", err)
	}
	// What was read before stays.
	f.put([]byte("gone"))
	f.put(make([]byte, 2*largeBlob))
	before := f.reads.Load()
	materialise(t, c, f, root, dir, How{UID: -1}).end(t)
	if n := f.reads.Load() - before; n != 2 {
		t.Errorf("%d blobs fetched, want 2", n)
	}
}

// A transfer that breaks leaves nothing of a blob that was not whole, and goes
// on where it was.
func TestBrokenTransfer(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	var files []cas.File
	for i := range 300 {
		files = append(files, cas.File{Name: strconv.Itoa(i), Digest: f.put([]byte(strings.Repeat(strconv.Itoa(i), 100)))})
	}
	files = append(files, cas.File{Name: "big", Digest: f.put(make([]byte, 3*largeBlob))})
	root := f.put((&cas.Directory{Files: files}).Encode())
	broken := errors.New("the line is cut")
	f.each = func(cas.Digest) error {
		if f.reads.Load() >= 100 {
			return broken
		}
		return nil
	}
	c := openAt(t, dir)
	if _, err := tryMaterialise(t, c, f, root, dir, How{UID: -1}); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	_ = c.Close()
	f.each = nil
	before := f.reads.Load()
	c = openAt(t, dir)
	r := materialise(t, c, f, root, dir, How{UID: -1})
	if n := f.reads.Load() - before; n > 201+4 {
		t.Errorf("%d blobs were fetched again", n)
	}
	if d := cmp.Diff(f.contentOf(t, root), content(t, r.dst)); d != "" {
		t.Errorf("tree (-want +got):\n%s", d)
	}
	for name := range content(t, c.opt.Dir) {
		if strings.Contains(name, tempPrefix) {
			t.Errorf("%s is left", name)
		}
	}
	r.end(t)
}

// decisions.md 26.
func TestARootTaskHarmsNoOther(t *testing.T) {
	need.Root(t, "a task of root")
	for _, how := range []How{{UID: -1}, {Method: Copy, UID: -1}, {UID: 0, GID: 0}} {
		f, dir := newFake(), tempDir(t)
		root := f.put((&cas.Directory{Files: []cas.File{{Name: "in", Digest: f.put([]byte("good"))}}}).Encode())
		c := openAt(t, dir)
		other := materialise(t, c, f, root, dir, how)
		evil := materialise(t, c, f, root, dir, how)
		path := filepath.Join(evil.dst, "in")
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("evil"), 0o444); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
		if b, _ := os.ReadFile(path); string(b) != "evil" {
			t.Fatalf("the task reads %q: the test tests nothing", b)
		}
		next := materialise(t, c, f, root, dir, how)
		for name, r := range map[string]run{"task beside it": other, "next task": next} {
			if b, err := os.ReadFile(filepath.Join(r.dst, "in")); string(b) != "good" {
				t.Errorf("%s: %s by %s reads %q, %v", how.Method, name, r.Method, b, err)
			}
		}
		for _, r := range []run{other, evil, next} {
			r.end(t)
		}
	}
}

func TestLinksAreRefusedToWhoCouldWrite(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	root := f.put((&cas.Directory{Files: []cas.File{{Name: "in", Digest: f.put([]byte("good"))}}}).Encode())
	for _, uid := range []int{-1, os.Geteuid(), 0} {
		if _, err := tryMaterialise(t, openAt(t, dir), f, root, dir, How{Method: Link, UID: uid}); skep.KindOf(err) != skep.Precondition {
			t.Errorf("uid %d: %v", uid, err)
		}
	}
	r := materialise(t, openAt(t, dir, func(o *Options) { o.Trusted = true }), f, root, dir, How{UID: -1})
	if r.Method != Link && r.Method != Reflink {
		t.Errorf("a trusted pool gets %s", r.Method)
	}
	r.end(t)
}

// After a boot nothing is believed that was not hashed since.
func TestBootMakesDoubtful(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	root := f.put((&cas.Directory{Files: []cas.File{{Name: "in", Digest: f.put([]byte("good"))}}}).Encode())
	c := openAt(t, dir)
	materialise(t, c, f, root, dir, How{UID: -1}).end(t)
	name := filepath.Join(c.opt.Dir, cas.Sum([]byte("good")).Hash.String())
	// As if the power had gone before the bytes were on the disk: nothing but
	// the content differs.
	i, err := c.dir.lstat(filepath.Base(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte{0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(name, 0o444), os.Chtimes(name, time.Unix(0, i.mtime), time.Unix(0, i.mtime))); err != nil {
		t.Fatal(err)
	}
	c = openAt(t, dir)
	c.items[key{hash: cas.Sum([]byte("good")).Hash}].ctime = 0
	c.seen.ino, c.boot = 0, "another boot"
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	r := materialise(t, c, f, root, dir, How{Method: Copy, UID: -1})
	defer r.end(t)
	if b, _ := os.ReadFile(filepath.Join(r.dst, "in")); string(b) != "good" {
		t.Errorf("the task reads %q", b)
	}
}

func TestFullDisk(t *testing.T) {
	f, dir := newFake(), tempDir(t)
	root := f.put((&cas.Directory{Files: []cas.File{{Name: "in", Digest: f.put(make([]byte, 2*largeBlob))}}}).Encode())
	c := openAt(t, dir, func(o *Options) { o.Free = func(string) (int64, error) { return largeBlob, nil } })
	_, err := tryMaterialise(t, c, f, root, dir, How{UID: -1})
	if err == nil || !strings.Contains(err.Error(), "inputs need 2097152 bytes, 1048576 are free") {
		t.Errorf("got %v", err)
	}
}
