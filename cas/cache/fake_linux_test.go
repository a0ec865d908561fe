package cache

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/skepdev/skep/cas"
)

// fake is content-addressed storage in memory.
type fake struct {
	mu    sync.Mutex
	blobs map[cas.Hash][]byte
	reads atomic.Int64 // blobs handed out
	trees atomic.Int64
	each  func(cas.Digest) error // before a blob is handed out
	stall func(context.Context)  // before the first of a batch is
}

func newFake() *fake { return &fake{blobs: map[cas.Hash][]byte{}} }

func (f *fake) put(b []byte) cas.Digest {
	d := cas.Sum(b)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[d.Hash] = b
	return d
}

func (f *fake) get(d cas.Digest) ([]byte, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[d.Hash]
	return b, ok || d == cas.Empty
}

func (f *fake) Tree(_ context.Context, root cas.Digest) (map[cas.Hash]*cas.Directory, error) {
	f.trees.Add(1)
	out := map[cas.Hash]*cas.Directory{}
	var missing []cas.Digest
	var walk func(d cas.Digest, depth int) error
	walk = func(d cas.Digest, depth int) error {
		if out[d.Hash] != nil || depth > 20_000 {
			return nil
		}
		b, ok := f.get(d)
		if !ok {
			missing = append(missing, d)
			return nil
		}
		dir, err := cas.DecodeDirectory(b)
		if err != nil {
			return err
		}
		out[d.Hash] = dir
		for _, s := range dir.Dirs {
			if err := walk(s.Digest, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(root, 0); err != nil {
		return nil, err
	}
	if missing != nil {
		return nil, &cas.MissingError{Digests: missing}
	}
	return out, nil
}

func (f *fake) ReadBatch(ctx context.Context, list []cas.Digest, each func(cas.Digest, []byte) error) error {
	var (
		g    errgroup.Group
		mu   sync.Mutex
		gone []cas.Digest
	)
	if f.stall != nil {
		f.stall(ctx)
	}
	for part := range slices.Chunk(list, len(list)/4+1) {
		g.Go(func() error {
			for _, d := range part {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				b, ok := f.get(d)
				if !ok {
					mu.Lock()
					gone = append(gone, d)
					mu.Unlock()
					continue
				}
				if f.each != nil {
					if err := f.each(d); err != nil {
						return err
					}
				}
				f.reads.Add(1)
				if err := each(d, b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if gone != nil {
		return &cas.MissingError{Digests: gone}
	}
	return nil
}

func (f *fake) Read(_ context.Context, d cas.Digest, w io.Writer) error {
	b, ok := f.get(d)
	if !ok {
		return &cas.MissingError{Digests: []cas.Digest{d}}
	}
	if f.each != nil {
		if err := f.each(d); err != nil {
			return err
		}
	}
	f.reads.Add(1)
	for part := range slices.Chunk(b, 32<<10) {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// archive puts a directory into f.
func (f *fake) archive(t testing.TB, dir string) cas.Digest {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var d cas.Directory
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			d.Dirs = append(d.Dirs, cas.Dir{Name: e.Name(), Digest: f.archive(t, path)})
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				t.Fatal(err)
			}
			d.Symlinks = append(d.Symlinks, cas.Symlink{Name: e.Name(), Target: to})
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fi, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			d.Files = append(d.Files, cas.File{Name: e.Name(), Digest: f.put(b), Executable: fi.Mode()&0o100 != 0})
		}
	}
	return f.put(d.Encode())
}

// content describes a directory: path → what is there.
func content(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch {
		case e.IsDir():
			out[rel] = "directory"
		case e.Type() == fs.ModeSymlink:
			to, err := os.Readlink(path)
			out[rel] = "-> " + to
			return err
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fi, err := e.Info()
			if err != nil {
				return err
			}
			out[rel] = fmt.Sprintf("%v exec %v", cas.Sum(b), fi.Mode()&0o100 != 0)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// contentOf is content for a tree that is in f.
func (f *fake) contentOf(t testing.TB, root cas.Digest) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(at string, d cas.Digest)
	walk = func(at string, d cas.Digest) {
		out[filepath.Clean("./"+at)] = "directory"
		b, _ := f.get(d)
		dir, err := cas.DecodeDirectory(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range dir.Files {
			out[filepath.Join(at, x.Name)] = fmt.Sprintf("%v exec %v", x.Digest, x.Executable)
		}
		for _, x := range dir.Symlinks {
			out[filepath.Join(at, x.Name)] = "-> " + x.Target
		}
		for _, x := range dir.Dirs {
			walk(filepath.Join(at, x.Name), x.Digest)
		}
	}
	walk("", root)
	return out
}

// trees draws a tree and puts it into f.
func trees(t *rapid.T, f *fake) cas.Digest {
	blob := func() []byte { // sizes are drawn, not bytes: a failure is printed
		n := rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(0, 300)).Draw(t, "size")
		if rapid.IntRange(0, 29).Draw(t, "large") == 0 {
			n += largeBlob - 100
		}
		return bytesOf(int64(n), 'a')
	}
	var draw func(depth int) cas.Digest
	draw = func(depth int) cas.Digest {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-zA-Z][a-z0-9é .:,%\\]{0,4}[a-z]`), 0, 6, rapid.ID[string]).Draw(t, "names")
		var d cas.Directory
		for _, n := range names {
			kind := rapid.IntRange(0, 6).Draw(t, "kind")
			switch {
			case kind == 0:
				d.Symlinks = append(d.Symlinks, cas.Symlink{Name: n, Target: rapid.StringMatching(`[a-z]{1,3}(/[a-z]{1,2})?`).Draw(t, "target")})
			case kind <= 2 && depth < 4:
				d.Dirs = append(d.Dirs, cas.Dir{Name: n, Digest: draw(depth + 1)})
			default:
				d.Files = append(d.Files, cas.File{Name: n, Digest: f.put(blob()), Executable: rapid.Bool().Draw(t, "x")})
			}
		}
		return f.put(d.Encode())
	}
	return draw(0)
}
