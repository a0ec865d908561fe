package runner

import (
	"bytes"
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/remote"
)

// upload puts a directory into the storage, quickly enough for a benchmark's
// beginning.
func upload(b *testing.B, c *remote.Client, src string) cas.Digest {
	b.Helper()
	o := outputs{dirs: map[string]*outDir{}}
	o.dir("")
	err := filepath.WalkDir(src, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == src {
			return err
		}
		rel, _ := filepath.Rel(src, path)
		if e.IsDir() {
			o.dir(rel)
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		d, err := cas.SumReader(f)
		fi, _ := e.Info()
		o.dir(parent(rel)).files[e.Name()] = cas.File{Name: e.Name(), Digest: d, Executable: fi.Mode()&0o100 != 0}
		o.srcs = append(o.srcs, remote.Source{Digest: d, Open: func() (io.ReadSeekCloser, error) { return os.Open(path) }})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	root := o.tree("")
	if _, err := c.Upload(b.Context(), o.srcs, nil); err != nil {
		b.Fatal(err)
	}
	return root
}

// BenchmarkInputs makes run directories out of a real storage on loopback:
// $(go env GOROOT)/src and one file of 256 MiB. The
// metrics are milliseconds, and ratios to cp -r, or for the large file the
// share of what SHA-256 does in the same minute.
func BenchmarkInputs(b *testing.B) {
	dir := b.TempDir()
	b.Cleanup(func() { _ = exec.Command("umount", "-R", dir).Run() })
	_, c := newStorage(b)
	src := filepath.Join(runtime.GOROOT(), "src") //nolint:staticcheck // the tests run where they were built
	small := upload(b, c, src)
	large := filepath.Join(dir, "large")
	if err := os.Mkdir(large, 0o755); err != nil {
		b.Fatal(err)
	}
	size := int64(256 << 20)
	var seed [32]byte
	blob := bytes.NewBuffer(make([]byte, 0, size))
	for h := sha256.New(); int64(blob.Len()) < size; {
		h.Write(seed[:])
		sum := h.Sum(nil)
		blob.Write(bytes.Repeat(sum, 1<<10))
	}
	if err := os.WriteFile(filepath.Join(large, "f"), blob.Bytes(), 0o644); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	sha256.Sum256(blob.Bytes())
	hashing := time.Since(began)
	blob = nil
	one := upload(b, c, large)
	cp := time.Hour
	for range 3 {
		began := time.Now()
		if err := exec.Command("cp", "-r", src, filepath.Join(dir, "cp")).Run(); err != nil {
			b.Fatal(err)
		}
		cp = min(cp, time.Since(began))
		_ = os.RemoveAll(filepath.Join(dir, "cp"))
	}
	make1 := func(b *testing.B, at string, root cas.Digest, m cache.Method) {
		w, err := os.MkdirTemp(at, "w") //nolint:usetesting // beside the cache
		if err != nil {
			b.Fatal(err)
		}
		for _, d := range []string{"ir", "iu"} {
			if err := os.Mkdir(filepath.Join(w, d), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		k, err := cache.Open(cache.Options{Dir: filepath.Join(at, "cas_cache"), MinFree: 1})
		if err != nil {
			b.Fatal(err)
		}
		how := cache.How{Method: m, UID: -1, Scratch: filepath.Join(w, "iu")}
		if m == cache.Link {
			how.UID, how.GID = 54321, 54321
		}
		r, err := k.Materialise(b.Context(), c, root, filepath.Join(w, "ir"), how)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		_ = r.Undo()
		_ = k.Close()
		_ = removeTree(w)
		b.StartTimer()
	}
	report := func(b *testing.B, root cas.Digest) {
		per := b.Elapsed() / time.Duration(b.N)
		b.ReportMetric(float64(per.Milliseconds()), "ms")
		if root == small {
			b.ReportMetric(per.Seconds()/cp.Seconds(), "×cp")
		} else {
			b.ReportMetric(hashing.Seconds()/per.Seconds(), "×sha256")
		}
	}
	for _, t := range []struct {
		name string
		root cas.Digest
	}{{"small", small}, {"large", one}} {
		for _, m := range []cache.Method{cache.Link, cache.Overlay, cache.Copy} {
			b.Run(strings.Join([]string{t.name, "cold", string(m)}, "-"), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					at, err := os.MkdirTemp(dir, "c") //nolint:usetesting // removed within the loop
					if err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					make1(b, at, t.root, m)
					b.StopTimer()
					_ = removeTree(at)
					b.StartTimer()
				}
				report(b, t.root)
			})
			b.Run(strings.Join([]string{t.name, "warm", string(m)}, "-"), func(b *testing.B) {
				at := b.TempDir()
				make1(b, at, t.root, m)
				for b.Loop() {
					make1(b, at, t.root, m)
				}
				report(b, t.root)
			})
		}
	}
}
