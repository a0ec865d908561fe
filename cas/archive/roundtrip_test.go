//go:build unix

package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/disk"
	"github.com/skepdev/skep/cas/plain"
	"github.com/skepdev/skep/cas/reapi"
	"github.com/skepdev/skep/cas/remote"
	"github.com/skepdev/skep/internal/oneport"
)

// storage serves a real one on loopback.
func storage(t testing.TB) *remote.Client {
	t.Helper()
	store, err := disk.Open(t.Context(), disk.Options{Dir: filepath.Join(t.TempDir(), "cas"), MinFree: 1})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transfers := plain.New(store)
	posts := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			http.Error(w, "by gRPC, please", http.StatusNotFound)
		} else if err := transfers.Post(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
	g, web, port := reapi.New(reapi.Options{Store: reapi.OnDisk(store)}).GRPC(), &http.Server{Handler: http.HandlerFunc(posts)}, oneport.New(l, nil) //nolint:gosec // of a test
	go func() { _ = port.Serve() }()
	go func() { _ = g.Serve(port.HTTP2) }()
	go func() { _ = web.Serve(port.HTTP1) }()
	c, err := remote.New(remote.Options{URL: "grpc://" + l.Addr().String(), Patience: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		g.Stop()
		_ = web.Close()
		_ = port.Close()
		_ = store.Close()
	})
	return c
}

// files describes all below dir: mode, content or target by path.
func files(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			out[rel] = "directory"
		case info.Mode()&fs.ModeSymlink != 0:
			out[rel], err = os.Readlink(p)
			out[rel] = "-> " + out[rel]
		default:
			var b []byte
			b, err = os.ReadFile(p)
			out[rel] = fmt.Sprintf("%v %d %s", info.Mode()&0o100 != 0, len(b), cas.Sum(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is archived and extracted is what was there.
func TestRoundTrip(t *testing.T) {
	c := storage(t)
	base := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		src, dst := filepath.Join(base, fmt.Sprint(n), "src"), filepath.Join(base, fmt.Sprint(n), "dst")
		if err := os.MkdirAll(src, 0o755); err != nil {
			t.Fatal(err)
		}
		name := rapid.OneOf(rapid.StringMatching(`[a-c]{1,2}`), rapid.SampledFrom([]string{" ", "-x", "ü", "*", "a\nb", `a\b`, ".h", "...", strings.Repeat("n", 255)}))
		dirs := []string{"."}
		for i := range rapid.IntRange(0, 25).Draw(rt, "entries") {
			p := filepath.Join(rapid.SampledFrom(dirs).Draw(rt, "in"), name.Draw(rt, "name"))
			full := filepath.Join(src, p)
			if _, err := os.Lstat(full); err == nil || len(full) > 3000 {
				continue
			}
			switch rapid.IntRange(0, 4).Draw(rt, "kind") {
			case 0, 1:
				mode := fs.FileMode(0o644)
				if rapid.Bool().Draw(rt, "x") {
					mode = 0o755
				}
				size := rapid.SampledFrom([]int{0, 1, 10, 3000, 3000, 70_000, 1 << 20, 5 << 20}).Draw(rt, "size")
				if err := os.WriteFile(full, bytes.Repeat([]byte{byte(i % 3)}, size), mode); err != nil {
					t.Fatal(err)
				}
			case 2, 3:
				if err := os.Mkdir(full, 0o755); err != nil {
					t.Fatal(err)
				}
				dirs = append(dirs, p)
			case 4:
				if err := os.Symlink(rapid.SampledFrom([]string{"a", "b/c", "none", "./a"}).Draw(rt, "target"), full); err != nil {
					t.Fatal(err)
				}
			}
		}
		up, err := Upload(t.Context(), c, src, Options{})
		if err != nil {
			t.Fatal(err)
		}
		down, err := Extract(t.Context(), c, up.Root, dst, Target{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(files(t, src), files(t, dst)); diff != "" {
			rt.Fatalf("(-want +got):\n%s", diff)
		}
		if down.Bytes != up.Bytes || len(down.Files) != up.Files+up.Symlinks || down.Dirs != up.Dirs {
			rt.Fatalf("up %+v, down %+v", up, down)
		}
		again, err := Scan(t.Context(), dst, Options{})
		if err != nil || again.Root != up.Root {
			rt.Fatalf("root %s, want %s, %v", again.Root, up.Root, err)
		}
		_ = os.RemoveAll(filepath.Join(base, fmt.Sprint(n)))
	})
}

// put stores directories that no archive of ours would make.
func put(t *testing.T, c *remote.Client, blobs ...[]byte) (last cas.Digest) {
	t.Helper()
	var list []remote.Source
	for _, b := range blobs {
		last = cas.Sum(b)
		list = append(list, remote.Source{Digest: last, Data: b})
	}
	if _, err := c.Upload(t.Context(), list, nil); err != nil {
		t.Fatal(err)
	}
	return last
}

func TestExtractRefuses(t *testing.T) {
	c := storage(t)
	x := cas.Sum([]byte("x"))
	put(t, c, []byte("x"))
	absent := cas.Sum([]byte("absent"))
	below := put(t, c, (&cas.Directory{Symlinks: []cas.Symlink{{Name: "m", Target: "../l/../x"}}}).Encode())
	for _, tc := range []struct {
		name string
		dir  cas.Directory
		kind skep.Kind
	}{
		{"a link out", cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "../x"}}}, skep.Invalid},
		{"an absolute link", cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "/etc"}}}, skep.Invalid},
		{"a link out by way of another", cas.Directory{Symlinks: []cas.Symlink{{Name: "l", Target: "."}}, Dirs: []cas.Dir{{Name: "q", Digest: below}}}, skep.Invalid},
		{"a name with a slash", cas.Directory{Files: []cas.File{{Name: "a/b", Digest: x}}}, skep.Invalid},
		{"a parent", cas.Directory{Files: []cas.File{{Name: "..", Digest: x}}}, skep.Invalid},
		{"a name twice", cas.Directory{Files: []cas.File{{Name: "a", Digest: x}}, Symlinks: []cas.Symlink{{Name: "a", Target: "b"}}}, skep.Invalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dst := filepath.Join(t.TempDir(), "dst")
			_, err := Extract(t.Context(), c, put(t, c, tc.dir.Encode()), dst, Target{})
			if skep.KindOf(err) != tc.kind {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(dst); err == nil {
				t.Error("something was written")
			}
		})
	}
	root := put(t, c, (&cas.Directory{Files: []cas.File{{Name: "a", Digest: absent}, {Name: "b", Digest: x}}}).Encode())
	e := (*cas.MissingError)(nil)
	if _, err := Extract(t.Context(), c, root, filepath.Join(t.TempDir(), "d"), Target{}); !errors.As(err, &e) || e.Digests[0] != absent {
		t.Errorf("got %v", err)
	}
	full := tree(t, "there")
	ok := put(t, c, (&cas.Directory{Files: []cas.File{{Name: "a", Digest: x}}}).Encode())
	if _, err := Extract(t.Context(), c, ok, full, Target{}); skep.KindOf(err) != skep.Conflict {
		t.Errorf("got %v", err)
	}
}

// With Force, links that lie in the way lead nowhere else.
func TestExtractStaysInside(t *testing.T) {
	c := storage(t)
	src := tree(t, "d/f", "e", "l->d")
	up, err := Upload(t.Context(), c, src, Options{})
	if err != nil {
		t.Fatal(err)
	}
	outside := tree(t, "f", "keep")
	dst := tree(t, "d->"+outside, "e->"+outside+"/keep", "l/x", "other")
	if _, err := Extract(t.Context(), c, up.Root, dst, Target{Force: true}); err != nil {
		t.Fatal(err)
	}
	want := files(t, src)
	want["other"] = files(t, dst)["other"]
	if diff := cmp.Diff(want, files(t, dst)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(files(t, tree(t, "f", "keep")), files(t, outside)); diff != "" {
		t.Errorf("outside (-want +got):\n%s", diff)
	}
}

func BenchmarkUploadGoroot(b *testing.B) {
	dir := goroot(b)
	for b.Loop() {
		b.StopTimer()
		c := storage(b)
		b.StartTimer()
		if _, err := Upload(b.Context(), c, dir, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUploadGorootUnchanged(b *testing.B) {
	dir := goroot(b)
	c := storage(b)
	opt := Options{StatCache: filepath.Join(b.TempDir(), "stats")}
	for range 2 {
		if _, err := Upload(b.Context(), c, dir, opt); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if t, err := Upload(b.Context(), c, dir, opt); err != nil || len(t.Stats.Cold) > 0 {
			b.Fatal(err, t)
		}
	}
}

func BenchmarkExtractGoroot(b *testing.B) {
	c := storage(b)
	up, err := Upload(b.Context(), c, goroot(b), Options{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		dst := filepath.Join(b.TempDir(), "dst")
		if _, err := Extract(b.Context(), c, up.Root, dst, Target{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = os.RemoveAll(dst)
		b.StartTimer()
	}
}

func BenchmarkUpload1GiB(b *testing.B) {
	dir := b.TempDir()
	data := make([]byte, 1<<20)
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1024 {
		data[0], data[1] = byte(i), byte(i>>8)
		if _, err := f.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	f.Close()
	for b.Loop() {
		b.StopTimer()
		c := storage(b)
		b.StartTimer()
		if _, err := Upload(b.Context(), c, dir, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
