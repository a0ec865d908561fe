package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/skepdev/skep/internal/debris"
)

// BenchmarkSmallFiles makes the tree of $(go env GOROOT)/src by each method,
// without a network: what is measured is the cache and the file system. The
// metric ×cp is the time in units of a cp -r of the same minute.
func BenchmarkSmallFiles(b *testing.B) {
	src := filepath.Join(runtime.GOROOT(), "src") //nolint:staticcheck // the tests run where they were built
	f := newFake()
	root := f.archive(b, src)
	dir := b.TempDir()
	defer func() { _ = releaseBelow(dir) }()
	cp := time.Hour
	for range 3 {
		to := filepath.Join(dir, "cp")
		began := time.Now()
		if err := exec.Command("cp", "-r", src, to).Run(); err != nil {
			b.Fatal(err)
		}
		cp = min(cp, time.Since(began))
		if err := os.RemoveAll(to); err != nil {
			b.Fatal(err)
		}
	}
	for _, m := range []How{{Method: Link, UID: foreign, GID: foreign}, {Method: Overlay, UID: -1}, {Method: Copy, UID: -1}} {
		b.Run("cold/"+string(m.Method), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				sub, err := os.MkdirTemp(dir, "c") //nolint:usetesting // removed within the loop
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				r := materialise(b, openAt(b, sub), f, root, sub, m)
				b.StopTimer()
				r.end(b)
				if err := debris.Remove(sub); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/cp.Seconds(), "×cp")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms")
		})
		b.Run("warm/"+string(m.Method), func(b *testing.B) {
			sub := b.TempDir()
			materialise(b, openAt(b, sub), f, root, sub, m).end(b)
			for b.Loop() {
				r := materialise(b, openAt(b, sub), f, root, sub, m)
				b.StopTimer()
				r.end(b)
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/cp.Seconds(), "×cp")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms")
		})
	}
}
