//go:build unix

package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// tree makes files below a new directory: "a/b" is a file with its name as
// content, "a/b!" an executable one, "a/" a directory, "a->b" a symlink.
func tree(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		link, target, isLink := strings.Cut(n, "->")
		file, exec := strings.CutSuffix(link, "!")
		path := filepath.Join(dir, file)
		var err error
		switch {
		case isLink:
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(target, path))
		case strings.HasSuffix(n, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			mode := os.FileMode(0o644)
			if exec {
				mode = 0o755
			}
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(file), mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// list is what a tree holds, in the notation of tree.
func list(t testing.TB, tr *Tree) []string {
	t.Helper()
	blobs := map[cas.Digest][]byte{cas.Empty: nil}
	for _, s := range tr.Blobs {
		data := s.Data
		if s.Open != nil {
			f, err := s.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err = io.ReadAll(f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
		if cas.Sum(data) != s.Digest {
			t.Errorf("blob %s has other bytes", s.Digest)
		}
		blobs[s.Digest] = data
	}
	var out []string
	var walk func(at string, d cas.Digest)
	walk = func(at string, digest cas.Digest) {
		b, is := blobs[digest]
		d, err := cas.DecodeDirectory(b)
		if err != nil || !is {
			t.Fatalf("%s: %v", at, err)
		}
		for _, f := range d.Files {
			n := at + f.Name
			if f.Executable {
				n += "!"
			}
			out = append(out, n)
			if _, is := blobs[f.Digest]; !is {
				t.Errorf("%s has no blob", n)
			}
		}
		for _, l := range d.Symlinks {
			out = append(out, at+l.Name+"->"+l.Target)
		}
		for _, s := range d.Dirs {
			if s.Digest == cas.Empty {
				out = append(out, at+s.Name+"/")
			}
			walk(at+s.Name+"/", s.Digest)
		}
	}
	walk("", tr.Root)
	slices.Sort(out)
	return out
}

func scan(t testing.TB, dir string, opt Options) *Tree {
	t.Helper()
	tr, err := Scan(t.Context(), dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestScan(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files []string
		opt   Options
		want  []string
	}{
		{"nothing", nil, Options{}, nil},
		{"modes, links, empty directories", []string{"a", "b!", "d/e/f", "d/l->../a", "empty/x/", "l->nowhere"}, Options{}, []string{"a", "b!", "d/e/f", "d/l->../a", "empty/x/", "l->nowhere"}},
		{"odd names", []string{"a b", "-x", "ü/é", "*", "q?", "new\nline", `back\slash`}, Options{}, []string{"a b", "-x", "ü/é", "*", "q?", "new\nline", `back\slash`}},
		{"exclude a name anywhere", []string{"a.o", "d/b.o", "d/c.c"}, Options{Exclude: []string{"*.o"}}, []string{"d/c.c"}},
		{"exclude from the root", []string{"x/y", "d/x/y"}, Options{Exclude: []string{"/x"}}, []string{"d/x/y"}},
		{"exclude directories only", []string{"out", "d/out/x", "d/y"}, Options{Exclude: []string{"out/"}}, []string{"d/y", "out"}},
		{"exclude all but one", []string{"a.o", "b.o", "c"}, Options{Exclude: []string{"*.o", "!b.o"}}, []string{"b.o", "c"}},
		{"exclude what lies deep", []string{"a/b/c/d", "a/d", "x/d"}, Options{Exclude: []string{"a/**/d"}}, []string{"a/b/c/", "x/d"}},
		{"include one directory", []string{"a/b", "a/e/", "c/d", "e"}, Options{Include: []string{"/a"}}, []string{"a/b", "a/e/"}},
		{"include by ending", []string{"a/b.go", "c/d.c", "e.go"}, Options{Include: []string{"*.go"}}, []string{"a/b.go", "e.go"}},
		{"include and exclude", []string{"a/b.go", "a/b_test.go"}, Options{Include: []string{"a/**"}, Exclude: []string{"*_test.go"}}, []string{"a/b.go"}},
		{"include an odd path", []string{"a[1]/b", "a1/b"}, Options{Include: []string{Escape("a[1]")}}, []string{"a[1]/b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			slices.Sort(tc.want)
			if diff := cmp.Diff(tc.want, list(t, scan(t, tree(t, tc.files...), tc.opt))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSymlinksThatLeave(t *testing.T) {
	outside := tree(t, "f", "d/g!", "d/in->g", "d/up->../f")
	dir := tree(t, "a", "x->"+outside+"/f", "sub/y->"+outside+"/d")
	if _, err := Scan(t.Context(), dir, Options{}); skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), "leaves the directory") {
		t.Errorf("got %v", err)
	}
	want := []string{"a", "sub/y/g!", "sub/y/in->g", "sub/y/up", "x"}
	if diff := cmp.Diff(want, list(t, scan(t, dir, Options{Links: Materialise}))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, link := range []string{dir, "/nowhere/at/all"} {
		loop := tree(t, "l->"+link)
		if link == dir {
			loop = tree(t, "d/e/")
			if err := os.Symlink(loop, filepath.Join(loop, "d/e/l")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Scan(t.Context(), loop, Options{Links: Materialise}); err == nil {
			t.Errorf("a link to %s passes", link)
		}
	}
}

func TestWhatHasNoPlace(t *testing.T) {
	dir := tree(t, "a")
	fifo := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Scan(t.Context(), dir, Options{})
	if skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), fifo+" is a named pipe") {
		t.Errorf("got %v", err)
	}
	dir = t.TempDir()
	t.Chdir(dir)
	l, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Scan(t.Context(), dir, Options{}); skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), "socket") {
		t.Errorf("got %v", err)
	}
	dir = tree(t, "a\xff")
	if _, err := Scan(t.Context(), dir, Options{}); skep.KindOf(err) != skep.Invalid {
		t.Errorf("got %v", err)
	}
	if _, err := Scan(t.Context(), filepath.Join(dir, "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if os.Geteuid() != 0 {
		dir = tree(t, "secret")
		if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Scan(t.Context(), dir, Options{}); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
	for _, bad := range []string{"", "/", "[a", "!"} {
		if _, err := Scan(t.Context(), dir, Options{Exclude: []string{bad}}); skep.FieldOf(err) != "exclude" {
			t.Errorf("pattern %q: %v", bad, err)
		}
	}
	deep := strings.Repeat("d/", cas.MaxDepth+1)
	if _, err := Scan(t.Context(), tree(t, deep), Options{}); skep.KindOf(err) != skep.Invalid {
		t.Errorf("too deep: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, tree(t, "a"), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestFilesThatDoNotStandStill(t *testing.T) {
	dir := tree(t, "log")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return
		}
		defer f.Close()
		for {
			select {
			case <-stop:
				return
			default:
				fmt.Fprintln(f, "more")
			}
		}
	}()
	for range 50 {
		tr, err := Scan(t.Context(), dir, Options{})
		if err == nil {
			for _, s := range tr.Blobs { // what it gives is consistent, or says that it is not
				if s.Open == nil {
					continue
				}
				if f, err := s.Open(); err == nil {
					f.Close()
				} else if skep.KindOf(err) != skep.Invalid {
					t.Error(err)
				}
			}
		} else if skep.KindOf(err) != skep.Invalid {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}

func TestStatCache(t *testing.T) {
	dir := tree(t, "a", "d/b", "d/c")
	later := func() time.Time { return time.Now().Add(time.Hour) }
	opt := Options{StatCache: filepath.Join(t.TempDir(), "deep", "stats"), Now: later}
	first := scan(t, dir, opt)
	if again := scan(t, dir, opt); again.Cached != 3 || again.Root != first.Root || again.Bytes != first.Bytes {
		t.Errorf("unchanged: %d of 3 files known, root %s, want %s", again.Cached, again.Root, first.Root)
	}
	if err := os.WriteFile(filepath.Join(dir, "d", "b"), []byte("x/y"), 0o644); err != nil { // as long as before
		t.Fatal(err)
	}
	if got := scan(t, dir, opt); got.Cached != 2 || got.Root == first.Root {
		t.Errorf("one changed: %d of 2 files known, root %s", got.Cached, got.Root)
	}
	if got := scan(t, dir, opt); got.Cached != 3 {
		t.Errorf("after the change: %d files known", got.Cached)
	}
	b, err := os.ReadFile(opt.StatCache)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(b); i += 7 {
		c := slices.Clone(b)
		c[i] ^= 0x10
		if _, err := decodeStats(c, dir); err == nil {
			t.Fatalf("damage at byte %d is not seen", i)
		}
		if _, err := decodeStats(b[:i], dir); err == nil {
			t.Fatalf("cut at byte %d is not seen", i)
		}
	}
	if err := os.WriteFile(opt.StatCache, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if got := scan(t, dir, opt); got.Cached != 0 {
		t.Errorf("a damaged file of stats is used: %d", got.Cached)
	}
	if got := scan(t, dir, opt); got.Cached != 3 {
		t.Errorf("it is not repaired: %d", got.Cached)
	}
	other := tree(t, "a", "d/b", "d/c")
	if got := scan(t, other, opt); got.Cached != 0 {
		t.Errorf("stats of another directory are used: %d", got.Cached)
	}

	// A file as young as the scan may change and keep its stat.
	begun := time.Now()
	young := Options{StatCache: filepath.Join(t.TempDir(), "stats"), Now: func() time.Time { return begun }}
	fresh := tree(t, "a")
	scan(t, fresh, young)
	if got := scan(t, fresh, young); got.Cached != 0 {
		t.Errorf("a young file is remembered")
	}
}

func TestStatsComeBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		files := rapid.MapOf(rapid.String(), rapid.Custom(func(t *rapid.T) *known {
			return &known{
				stat: stat{rapid.Int64().Draw(t, "size"), rapid.Int64().Draw(t, "mtime"), rapid.Int64().Draw(t, "ctime"), rapid.Uint64().Draw(t, "inode")},
				hash: cas.Sum(rapid.SliceOf(rapid.Byte()).Draw(t, "content")).Hash,
			}
		})).Draw(t, "files")
		got, err := decodeStats(encodeStats(files, "/x"), "/x")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(files, got, cmp.AllowUnexported(known{}, stat{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzDecodeStats(f *testing.F) {
	f.Add(encodeStats(map[string]*known{"a": {}}, "/x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeStats(b, "/x")
		r := &reader{b: b, all: string(b)}
		for len(r.b) > 0 {
			before := len(r.b)
			_, _, _ = r.text(), r.varint(), r.bytes(3)
			if len(r.b) >= before && !r.bad {
				t.Fatal("no progress")
			}
		}
	})
}

func FuzzGlobs(f *testing.F) {
	f.Add("a/**/b", "a/x/y/b")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 60 || len(name) > 200 {
			return
		}
		if gs, err := parseGlobs("include", []string{pattern}); err == nil && name != "" && !strings.HasPrefix(name, "/") {
			gs.match(name, false)
		}
		if gs, err := parseGlobs("include", []string{Escape(name)}); err == nil && filepath.ToSlash(filepath.Clean(name)) == name && name[0] != '/' && !gs.match(name, true) {
			t.Errorf("Escape(%q) does not match it", name)
		}
	})
}

// goroot is Go's own source: many small files.
func goroot(b *testing.B) string {
	b.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skipf("go env: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "src")
}

func BenchmarkScanGoroot(b *testing.B) {
	dir := goroot(b)
	for b.Loop() {
		scan(b, dir, Options{})
	}
}

func BenchmarkScanGorootUnchanged(b *testing.B) {
	dir := goroot(b)
	opt := Options{StatCache: filepath.Join(b.TempDir(), "stats")}
	scan(b, dir, opt)
	for b.Loop() {
		if t := scan(b, dir, opt); t.Cached != t.Files {
			b.Fatal(t.Cached, t.Files)
		}
	}
}
