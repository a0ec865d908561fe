package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// walker archives one directory.
type walker struct {
	opt              Options
	include, exclude globs
	stats            *statCache
	start            time.Time
	emit             func(remote.Source) error
	to               hashing // nil = files are only hashed
	bundles          bool    // to takes small ones

	sends   *errgroup.Group // of bundles
	dirs    chan *directory // for whoever reads directories; more are read where they are found
	unread  atomic.Int64    // directories that were in dirs and are not read
	jobs    chan job
	entries atomic.Int64
	root    cas.Digest

	mu   sync.Mutex
	tree Tree
}

const dirsOpen = 64 // waiting to be read

// hashing is a *remote.Uploader.
type hashing interface {
	Hash(file *os.File, size int64, unchanged func() error) (cas.Digest, error)
	TakesBundles() bool
	HashBundle(b *cas.Bundle) ([]cas.Digest, error)
}

// directory is one on its way to a blob. It is done when all below it are.
type directory struct {
	w      *walker
	parent *directory
	name   string
	path   string   // in the tree, with slashes; "" is the root
	base   string   // path of the directory that symlinks must not leave
	disk   string   // for errors, and to open files again
	open   *os.Root // closed with the last file read
	info   fs.FileInfo
	wanted bool // stays although it is empty

	readers atomic.Int32
	left    atomic.Int32

	mu      sync.Mutex
	content cas.Directory
}

// job is a file to hash.
type job struct {
	dir  *directory
	name string
	at   string // in the tree
	info fs.FileInfo
}

func walk(ctx context.Context, dir string, w *walker) (_ *Tree, err error) {
	opt := w.opt.filled()
	w.opt, w.start, w.jobs, w.dirs = opt, opt.Now(), make(chan job, 64), make(chan *directory, dirsOpen)
	if w.include, err = parseGlobs("include", opt.Include); err != nil {
		return nil, err
	}
	if w.exclude, err = parseGlobs("exclude", opt.Exclude); err != nil {
		return nil, err
	}
	disk, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(disk)
	if err != nil {
		return nil, err
	}
	info, err := root.Stat(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	w.stats = loadStats(opt.StatCache, disk, w.start)
	w.bundles = w.to != nil && w.to.TakesBundles()
	sends, ctx := errgroup.WithContext(ctx)
	sends.SetLimit(sendsAtOnce)
	w.sends = sends
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(w.jobs)
		return w.walk(ctx, &directory{w: w, disk: disk, open: root, info: info, wanted: true})
	})
	for range opt.Parallel {
		g.Go(func() error {
			err := w.files(ctx)
			for j := range w.jobs { // the walk must not wait for us
				j.dir.unread()
			}
			return err
		})
	}
	err = g.Wait()
	if sendErr := sends.Wait(); err == nil || sendErr != nil { // the walk failed only because of it
		err = sendErr
	}
	if err != nil {
		return nil, err
	}
	w.stats.save(opt.StatCache, disk)
	w.tree.Root = w.root
	return &w.tree, nil
}

// walk reads top and all directories below. Goroutines take them from a queue that
// is hardly ever empty: to wake one for each would take longer than to read it.
func (w *walker) walk(ctx context.Context, top *directory) error {
	w.unread.Store(1)
	w.dirs <- top
	g, ctx := errgroup.WithContext(ctx)
	for range w.opt.Parallel {
		g.Go(func() error {
			for {
				select {
				case d, more := <-w.dirs:
					if !more {
						return nil
					}
					if err := w.directory(ctx, d); err != nil {
						return err
					}
					if w.unread.Add(-1) == 0 {
						close(w.dirs)
					}
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		})
	}
	err := g.Wait()
	for err != nil {
		select {
		case d, more := <-w.dirs:
			if !more {
				return err
			}
			d.open.Close()
		default:
			return err
		}
	}
	return nil
}

// directory reads one directory: its files become jobs, those below are walked.
func (w *walker) directory(ctx context.Context, d *directory) error {
	d.left.Store(1) // this reading
	d.readers.Store(1)
	defer d.unread()
	if depth(d) > cas.MaxDepth {
		return skep.Errorf(skep.Invalid, "%s: more than %d directories deep", d.disk, cas.MaxDepth)
	}
	f, err := d.open.Open(".")
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1) // ReadDir may look at each, and so do we
	f.Close()
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.content.Files = make([]cas.File, 0, len(names)) // most are
	d.mu.Unlock()
	if n := w.entries.Add(int64(len(names))); n > cas.MaxTreeEntries {
		return skep.Errorf(skep.Invalid, "%s: more than %d files", d.disk, cas.MaxTreeEntries)
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := w.entry(ctx, d, name); err != nil {
			return err
		}
	}
	return d.done(ctx)
}

func depth(d *directory) (n int) {
	for ; d != nil; d = d.parent {
		n++
	}
	return n
}

// entry looks at one name of a directory.
func (w *walker) entry(ctx context.Context, d *directory, name string) error {
	at := name
	if d.path != "" {
		at = d.path + "/" + name
	}
	info, err := d.open.Lstat(name)
	if err != nil {
		return d.named(name, err)
	}
	isDir := info.IsDir()
	if w.exclude.match(at, isDir) {
		return nil
	}
	covered := len(w.include) == 0 || w.include.covers(at, isDir)
	if !covered && !isDir {
		return nil
	}
	if err := cas.CheckName(name); err != nil {
		return skep.Errorf(skep.Invalid, "%s: %w", d.disk, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		d.readers.Add(1)
		d.left.Add(1)
		j := job{d, name, at, info}
		if hash, known := w.stats.known(at, info); known { // quicker done than told
			f, err := w.unchanged(&j, hash)
			return w.entered(ctx, j, f, err)
		}
		select {
		case w.jobs <- j:
		case <-ctx.Done():
			d.unread()
			return context.Cause(ctx)
		}
		return nil
	case isDir:
		open, err := d.open.OpenRoot(name)
		if err != nil {
			return d.named(name, err)
		}
		return w.below(ctx, d, name, at, d.base, filepath.Join(d.disk, name), open, info, covered)
	case mode&fs.ModeSymlink != 0:
		return w.symlink(ctx, d, name, covered)
	default:
		return skep.Errorf(skep.Invalid, "%s is a %s: only files, directories and symlinks can be archived", filepath.Join(d.disk, name), kindOf(mode))
	}
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

func (w *walker) below(ctx context.Context, d *directory, name, at, base, disk string, open *os.Root, info fs.FileInfo, wanted bool) error {
	d.left.Add(1)
	next := &directory{
		w: w, parent: d, name: name, path: at, base: base, disk: disk, open: open, info: info, wanted: wanted,
	}
	w.unread.Add(1)
	select {
	case w.dirs <- next:
		return nil
	default: // what waits there is open
		w.unread.Add(-1)
		return w.directory(ctx, next)
	}
}

// symlink keeps a link that stays inside, and treats others as the options say.
func (w *walker) symlink(ctx context.Context, d *directory, name string, covered bool) error {
	target, err := d.open.Readlink(name)
	if err != nil {
		return d.named(name, err)
	}
	inside, _ := filepath.Rel(filepath.FromSlash("/"+d.base), filepath.FromSlash("/"+d.path))
	if slashed := filepath.ToSlash(target); !cas.Escapes(filepath.ToSlash(inside), slashed) {
		d.mu.Lock()
		d.content.Symlinks = append(d.content.Symlinks, cas.Symlink{Name: name, Target: slashed})
		d.mu.Unlock()
		w.mu.Lock()
		w.tree.Symlinks++
		w.mu.Unlock()
		return nil
	}
	full := filepath.Join(d.disk, name)
	if w.opt.Links != Materialise {
		return skep.Errorf(skep.Invalid, "symlink %s leaves the directory: it points at %s", full, target)
	}
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return fmt.Errorf("symlink %s: %w", full, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("symlink %s: %w", full, err)
	}
	switch {
	case info.IsDir():
		for up := d; up != nil; up = up.parent {
			if os.SameFile(up.info, info) {
				return skep.Errorf(skep.Invalid, "symlink %s points at %s, which holds it", full, real)
			}
		}
		open, err := os.OpenRoot(real)
		if err != nil {
			return err
		}
		return w.below(ctx, d, name, path.Join(d.path, name), path.Join(d.path, name), real, open, info, covered)
	case info.Mode().IsRegular():
		open, err := os.OpenRoot(filepath.Dir(real))
		if err != nil {
			return err
		}
		// A directory of its own for reading, whose only file goes into d.
		d.left.Add(1)
		alias := &directory{w: w, parent: d, path: path.Join(d.path, name), disk: filepath.Dir(real), open: open, info: info, name: name}
		alias.readers.Store(1)
		h := newHasher()
		file, err := w.hash(ctx, h, job{alias, filepath.Base(real), path.Join(alias.path, filepath.Base(real)), info})
		alias.unread()
		if err != nil {
			return err
		}
		file.Name = name
		d.add(file)
		return d.done(ctx)
	}
	return skep.Errorf(skep.Invalid, "symlink %s points at %s, a %s", full, real, kindOf(info.Mode()))
}

// named gives an error of os.Root, which knows only the last name, the path.
func (d *directory) named(name string, err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("%s: %w", filepath.Join(d.disk, name), err)
}

// unread closes the directory after its last reader.
func (d *directory) unread() {
	if d.readers.Add(-1) == 0 {
		d.open.Close()
	}
}

func (d *directory) add(f cas.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.content.Files = append(d.content.Files, f)
}

// done is called once for everything in the directory, and its reading. The
// last makes it a blob and an entry of its parent.
func (d *directory) done(ctx context.Context) error {
	for ; d.left.Add(-1) == 0; d = d.parent {
		content := &d.content
		gone := !d.wanted && len(content.Files)+len(content.Dirs)+len(content.Symlinks) == 0
		if !gone {
			b := content.Encode()
			if len(b) > cas.MaxDirectory {
				return skep.Errorf(skep.Invalid, "%s has too many entries: %d bytes of %d", d.disk, len(b), cas.MaxDirectory)
			}
			digest := cas.Sum(b)
			if err := d.w.emit(remote.Source{Digest: digest, Data: b}); err != nil {
				return err
			}
			d.w.mu.Lock()
			d.w.tree.Dirs++
			d.w.mu.Unlock()
			if d.parent == nil {
				d.w.root = digest
				return nil
			}
			d.parent.mu.Lock()
			d.parent.content.Dirs = append(d.parent.content.Dirs, cas.Dir{Name: d.name, Digest: digest})
			d.parent.mu.Unlock()
		}
		*content = cas.Directory{}
	}
	return nil
}

// files hashes what the walk finds.
func (w *walker) files(ctx context.Context) error {
	h, next := newHasher(), lots.Get().(*lot) //nolint:errcheck // only lots are in it
	for j := range w.jobs {
		small := false
		if w.bundles && j.info.Size() < keepBelow {
			var err error
			if small, err = w.gather(ctx, next, j); err != nil {
				return err
			}
		}
		if !small {
			if err := w.file(ctx, h, j); err != nil {
				return err
			}
		} else if full := next; len(full.bundle.Wire()) >= lotBytes || !full.bundle.Fits(0) {
			w.sends.Go(func() error { return w.send(ctx, full) })
			next = lots.Get().(*lot) //nolint:errcheck // only lots are in it
		}
	}
	return w.send(ctx, next)
}

// file hashes one and makes it an entry of its directory.
func (w *walker) file(ctx context.Context, h *hasher, j job) error {
	f, err := w.hash(ctx, h, j)
	return w.entered(ctx, j, f, err)
}

// entered makes a file that is read an entry of its directory.
func (w *walker) entered(ctx context.Context, j job, f cas.File, err error) error {
	j.dir.unread()
	if err != nil {
		return err
	}
	j.dir.add(f)
	return j.dir.done(ctx)
}

// executable is REAPI's is_executable: the owner may run it.
func executable(info fs.FileInfo) bool {
	return runtime.GOOS != "windows" && info.Mode()&0o100 != 0
}
