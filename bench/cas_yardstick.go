package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/internal/proc"
)

// yardsticks measures what the machine itself takes for the same bytes: cp -r,
// SHA-256 on one core, one file written and synced; and for a large file, what
// two ends at least do who do not believe each other.
func (b *casBench) yardsticks(ctx context.Context, t *casTree) error {
	to := filepath.Join(b.dir, fmt.Sprintf("cp-%s-%d", t.name, len(t.yards["cp"])))
	err := b.time(t.yards, "cp", func() error {
		_, err := proc.Output(ctx, plainEnviron(), "cp", "-r", t.dir, to)
		return err
	})
	if err := errors.Join(err, t.remove(to)); err != nil {
		return err
	}
	if err := b.time(t.yards, "sha256", func() error { return hashTree(t.dir) }); err != nil {
		return err
	}
	file := filepath.Join(b.dir, "written")
	err = b.time(t.yards, "write_fsync", func() error { return writeSynced(file, t.bytes) })
	if err := errors.Join(err, os.Remove(file)); err != nil || t.files > 1 {
		return err
	}
	return errors.Join(b.time(t.yards, "two_ends", func() error { return twoEnds(filepath.Join(t.dir, "file"), file) }), os.Remove(file))
}

// twoEnds sends a file over a TCP connection of this machine and writes and
// syncs what comes. Both ends hash what they have, a piece at a time.
func twoEnds(from, to string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	sent, came := sha256.New(), sha256.New()
	var g errgroup.Group
	g.Go(func() error {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		return hashed(struct{ io.Writer }{c}, in, sent)
	})
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	err = hashed(out, struct{ io.Reader }{c}, came)
	if err := errors.Join(err, g.Wait(), out.Sync()); err != nil {
		return err
	}
	if !bytes.Equal(sent.Sum(nil), came.Sum(nil)) {
		return errors.New("what came is not what was sent")
	}
	return nil
}

// hashed copies and hashes.
func hashed(to io.Writer, from io.Reader, sum hash.Hash) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := from.Read(buf)
		_, _ = sum.Write(buf[:n]) // never fails
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// hashTree reads and hashes every file below dir, one after the other.
func hashTree(dir string) error {
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
	buf := make([]byte, 64<<10)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{sha256.New()}, struct{ io.Reader }{f}, buf)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
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
