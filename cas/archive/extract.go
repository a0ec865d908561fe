package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// Target says how a tree is written.
type Target struct {
	Force    bool          // the directory may hold files; those in the way are replaced, the others stay
	Fetched  func(n int64) // told of bytes as they are written; nil = nobody; many may call it at a time
	Total    func(n int64) // told once how many there will be
	Parallel int           // files of large blobs written at once; 0 = 4
}

// Extracted is a tree that was written.
type Extracted struct {
	Files    []string // paths of files and symlinks with slashes, in the order of the tree
	Bytes    int64
	Fetched  []int64 // sizes of the blobs that were read, each once
	Dirs     int
	Symlinks int
}

// Extract writes the tree of root below the directory dst, which it makes, and
// nothing anywhere else. Unless told otherwise, dst is new or empty. A symlink
// that leaves the tree is an Invalid error, an absent blob a *cas.MissingError.
// After an error dst holds a part of the tree.
func Extract(ctx context.Context, from *remote.Client, root cas.Digest, dst string, opt Target) (*Extracted, error) {
	if err := CheckTarget(dst, opt.Force); err != nil {
		return nil, err
	}
	dirs, err := from.Tree(ctx, root)
	if err != nil {
		return nil, err
	}
	x := &extraction{opt: opt, from: from, places: map[cas.Digest][]place{}}
	if err := x.plan(dirs, root); err != nil {
		return nil, err
	}
	if opt.Total != nil {
		opt.Total(x.out.Bytes)
	}
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return nil, err
	}
	if x.root, err = os.OpenRoot(dst); err != nil {
		return nil, err
	}
	defer x.root.Close()
	if err := x.write(ctx); err != nil {
		return nil, err
	}
	return &x.out, nil
}

// CheckTarget says whether a tree may be written to dst: it is new, or an empty
// directory, or force is set.
func CheckTarget(dst string, force bool) error {
	f, err := os.Open(dst)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	switch names, err := f.Readdirnames(1); {
	case len(names) > 0 && !force:
		return skep.Errorf(skep.Conflict, "%s is not empty", dst)
	case len(names) == 0 && err != nil && !errors.Is(err, io.EOF):
		return err
	}
	return nil
}

// extraction is one tree on its way to the disk.
type extraction struct {
	opt    Target
	from   *remote.Client
	root   *os.Root
	out    Extracted
	dirs   []string // parents first
	links  []link
	order  []cas.Digest // blobs, as the tree has them
	places map[cas.Digest][]place

	mu   sync.Mutex
	open []opened // directories that were written to last
}

type link struct{ path, target string }

// place is where a blob goes.
type place struct {
	dir, name string
	exec      bool
}

// plan lists what is to be made, and refuses what must not be.
func (x *extraction) plan(dirs map[cas.Hash]*cas.Directory, root cas.Digest) error {
	var walk func(at string, d *cas.Directory) error
	walk = func(at string, d *cas.Directory) error {
		for _, f := range d.Files {
			if _, seen := x.places[f.Digest]; !seen {
				x.order = append(x.order, f.Digest)
				x.out.Fetched = append(x.out.Fetched, f.Digest.Size)
			}
			x.places[f.Digest] = append(x.places[f.Digest], place{at, f.Name, f.Executable})
			x.out.Bytes += f.Digest.Size
			x.out.Files = append(x.out.Files, path.Join(at, f.Name))
		}
		for _, l := range d.Symlinks {
			full := path.Join(at, l.Name)
			if cas.Escapes(at, l.Target) {
				return skep.Errorf(skep.Invalid, "symlink %s leaves the tree: it points at %s", full, l.Target)
			}
			x.links = append(x.links, link{full, l.Target})
			x.out.Files = append(x.out.Files, full)
		}
		for _, s := range d.Dirs {
			sub := path.Join(at, s.Name)
			x.dirs = append(x.dirs, sub)
			if err := walk(sub, dirs[s.Digest.Hash]); err != nil {
				return err
			}
		}
		return nil
	}
	err := walk("", dirs[root.Hash])
	x.out.Dirs, x.out.Symlinks = len(x.dirs)+1, len(x.links)
	if err != nil {
		return err
	}
	links := make(map[string]string, len(x.links))
	for _, l := range x.links {
		links[l.path] = l.target
	}
	if out := cas.LeavingLink(links); out != "" {
		return skep.Errorf(skep.Invalid, "symlink %s leaves the tree by way of another", out)
	}
	return nil
}

// streamFrom is the size of blobs that are written as they come.
const streamFrom = 2 << 20

func (x *extraction) write(ctx context.Context) error {
	for _, d := range x.dirs {
		if err := x.mkdir(d); err != nil {
			return err
		}
	}
	defer x.closeAll()
	var small []cas.Digest
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(1 + cmp.Or(max(x.opt.Parallel, 0), 4))
	var large []cas.Digest
	for _, d := range x.order {
		if d.Size >= streamFrom {
			large = append(large, d)
		} else {
			small = append(small, d)
		}
	}
	var missing firstMissing
	g.Go(func() error {
		return missing.keep(x.from.ReadBatch(ctx, small, func(d cas.Digest, b []byte) error {
			for _, p := range x.places[d] {
				if err := x.file(p, b); err != nil {
					return err
				}
				x.fetched(d.Size)
			}
			return nil
		}))
	})
	for _, d := range large {
		g.Go(func() error { return missing.keep(x.stream(ctx, d)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := missing.err(); err != nil {
		return err
	}
	for _, l := range x.links {
		x.clear(l.path)
		if err := x.root.Symlink(filepath.FromSlash(l.target), l.path); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) fetched(n int64) {
	if x.opt.Fetched != nil {
		x.opt.Fetched(n)
	}
}

// firstMissing gathers absent blobs, so that all are told at once.
type firstMissing struct {
	mu   sync.Mutex
	list []cas.Digest
}

func (m *firstMissing) keep(err error) error {
	e := (*cas.MissingError)(nil)
	if !errors.As(err, &e) {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, e.Digests...)
	return nil
}

func (m *firstMissing) err() error {
	if len(m.list) == 0 {
		return nil
	}
	return &cas.MissingError{Digests: m.list}
}

// mkdir makes one directory. What is in the way goes, if it may.
func (x *extraction) mkdir(p string) error {
	err := x.root.Mkdir(p, 0o755)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := x.root.Lstat(p); err == nil && info.IsDir() {
		return nil
	}
	x.clear(p)
	return x.root.Mkdir(p, 0o755)
}

// clear removes what is in the way, when that is allowed.
func (x *extraction) clear(p string) {
	if x.opt.Force {
		_ = x.root.RemoveAll(p)
	}
}

// create makes a new file: never through a symlink, never over another.
func (x *extraction) create(p place) (*os.File, error) {
	dir, done, err := x.dir(p.dir)
	if err != nil {
		return nil, err
	}
	defer done()
	mode := fs.FileMode(0o644)
	if p.exec {
		mode = 0o755
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := dir.OpenFile(p.name, flags, mode)
	if errors.Is(err, fs.ErrExist) && x.opt.Force {
		if err := dir.RemoveAll(p.name); err != nil {
			return nil, err
		}
		f, err = dir.OpenFile(p.name, flags, mode)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(p.dir, p.name), err)
	}
	return f, nil
}

func (x *extraction) file(p place, b []byte) error {
	f, err := x.create(p)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// stream writes one large blob to all its places.
func (x *extraction) stream(ctx context.Context, d cas.Digest) (err error) {
	var files multi
	defer func() {
		for _, f := range files.list {
			err = errors.Join(err, f.Close())
		}
	}()
	for _, p := range x.places[d] {
		f, err := x.create(p)
		if err != nil {
			return err
		}
		files.list = append(files.list, f)
	}
	files.told = x.fetched
	return x.from.Read(ctx, d, &files)
}

type multi struct {
	list []*os.File
	told func(int64)
}

func (m *multi) Write(p []byte) (int, error) {
	for _, f := range m.list {
		if n, err := f.Write(p); err != nil {
			return n, err
		}
		m.told(int64(len(p)))
	}
	return len(p), nil
}

// opened is a directory kept open: files come directory by directory, and
// finding one by its path from the root costs a step for each of its parents.
type opened struct {
	path string
	root *os.Root
	uses *atomic.Int32
}

const keepOpen = 16

// dir opens a directory of the tree; done ends its use.
func (x *extraction) dir(p string) (r *os.Root, done func(), err error) {
	if p == "" {
		return x.root, func() {}, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, o := range x.open {
		if o.path == p {
			o.uses.Add(1)
			copy(x.open[1:i+1], x.open[:i])
			x.open[0] = o
			return o.root, o.release, nil
		}
	}
	if r, err = x.root.OpenRoot(p); err != nil {
		return nil, nil, err
	}
	o := opened{p, r, new(atomic.Int32)}
	o.uses.Store(2) // the list's and the caller's
	if len(x.open) >= keepOpen {
		x.open[len(x.open)-1].release()
		x.open = x.open[:len(x.open)-1]
	}
	x.open = append([]opened{o}, x.open...)
	return r, o.release, nil
}

func (o opened) release() {
	if o.uses.Add(-1) == 0 {
		o.root.Close()
	}
}

func (x *extraction) closeAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, o := range x.open {
		o.release()
	}
	x.open = nil
}
