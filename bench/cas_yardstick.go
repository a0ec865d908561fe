package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"github.com/skepdev/skep/internal/proc"
)

// yardsticks measures what the machine itself takes for the same bytes: cp -r,
// SHA-256 on one core and on all, one file written and synced.
func (b *casBench) yardsticks(ctx context.Context, t *casTree) error {
	to := filepath.Join(b.dir, fmt.Sprintf("cp-%s-%d", t.name, len(t.took["cp"])))
	err := b.time(t, "cp", func() error {
		_, err := proc.Output(ctx, plainEnviron(), "cp", "-r", t.dir, to)
		return err
	})
	if err := errors.Join(err, t.remove(to)); err != nil {
		return err
	}
	if err := b.time(t, "sha256", func() error { return hashTree(t.dir, 1) }); err != nil {
		return err
	}
	if err := b.time(t, "sha256_all", func() error { return hashTree(t.dir, runtime.NumCPU()) }); err != nil {
		return err
	}
	file := filepath.Join(b.dir, "written")
	err = b.time(t, "write_fsync", func() error { return writeSynced(file, t.bytes) })
	return errors.Join(err, os.Remove(file))
}

// hashTree reads and hashes every file below dir, width at a time.
func hashTree(dir string, width int) error {
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	return parallel(len(paths), width, func(i int) error {
		f, err := os.Open(paths[i])
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{sha256.New()}, struct{ io.Reader }{f}, make([]byte, 64<<10))
		return err
	})
}

// writeSynced writes a file of n bytes in one go and makes it durable.
func writeSynced(path string, n int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	piece := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(piece)
	for n > 0 {
		m, err := f.Write(piece[:min(n, int64(len(piece)))])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return f.Sync()
}
