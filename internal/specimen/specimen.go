// Package specimen makes directories to measure and to try storage with: a
// real tree of small files where there is one, else one of the same shape,
// and files of any size. What it makes follows from a seed, so that two runs
// speak of the same bytes.
package specimen

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/proc"
)

// old is the time of change of what is made: a hash remembered for a file that
// changed a moment ago would not be believed.
var old = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)

// GoSource returns the source of Go's standard library on this machine; ok is
// false when Go is not installed.
func GoSource(ctx context.Context) (dir string, ok bool) {
	out, err := proc.Output(ctx, os.Environ(), "go", "env", "GOROOT")
	if err != nil {
		return "", false
	}
	dir = filepath.Join(strings.TrimSpace(string(out)), "src")
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", false
	}
	_, err = os.Stat(filepath.Join(dir, "fmt", "print.go"))
	return dir, err == nil
}

// Shape of a tree of small files; the zero value is that of Go's source.
type Shape struct {
	Files int   // 0 = 11,478
	Bytes int64 // of all files, about; 0 = 127 MB
	Seed  uint64
}

// Small makes a tree of small files at dir, which must not exist: directories
// of eight files, half of them below others, a few files executable, a few
// symlinks.
func Small(dir string, s Shape) error {
	if s.Files == 0 {
		s.Files = 11478
	}
	if s.Bytes == 0 {
		s.Bytes = 127 << 20
	}
	rng := rand.New(rand.NewPCG(s.Seed, 1))
	// Sizes as source files have them: most are small, a few hold the bytes.
	sizes, sum := make([]float64, s.Files), 0.0
	for i := range sizes {
		sizes[i] = math.Exp(1.6 * rng.NormFloat64())
		sum += sizes[i]
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	dirs := []string{dir}
	noise := rand.NewChaCha8([32]byte{byte(s.Seed), byte(s.Seed >> 8), 1})
	for i, size := range sizes {
		if i%8 == 0 {
			parent := dir
			if rng.IntN(2) == 0 {
				parent = dirs[rng.IntN(len(dirs))]
			}
			d := filepath.Join(parent, fmt.Sprintf("d%d", i/8))
			if strings.Count(d[len(dir):], string(filepath.Separator)) < 9 {
				if err := os.Mkdir(d, 0o755); err != nil {
					return err
				}
				dirs = append(dirs, d)
			}
		}
		at := dirs[len(dirs)-1]
		perm := os.FileMode(0o644)
		if i%50 == 7 {
			perm = 0o755
		}
		name := filepath.Join(at, fmt.Sprintf("f%d", i))
		if err := write(name, perm, io.LimitReader(noise, int64(size/sum*float64(s.Bytes)))); err != nil {
			return err
		}
		if i%200 == 9 {
			if err := os.Symlink(fmt.Sprintf("f%d", i), filepath.Join(at, fmt.Sprintf("l%d", i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// Large makes a file of n bytes that do not compress.
func Large(path string, n int64, seed uint64) error {
	noise := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 2})
	return write(path, 0o644, io.LimitReader(noise, n))
}

func write(path string, perm os.FileMode, from io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	_, err = io.Copy(w, from)
	if err = errors.Join(err, w.Flush(), f.Close()); err != nil {
		return err
	}
	return os.Chtimes(path, old, old)
}

// Size counts the regular files below dir, and their bytes.
func Size(dir string) (files int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			files++
			bytes += fi.Size()
		}
		return err
	})
	return files, bytes, err
}
