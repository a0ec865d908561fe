package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
)

// Method is how the files of a tree come into a directory.
type Method string

const (
	Auto    Method = ""        // the first of the following that works and is safe
	Reflink Method = "reflink" // copies that share their blocks
	Link    Method = "link"    // more names of the entries: for tasks that cannot write to them
	Overlay Method = "overlay" // one mount over a tree that is kept ready
	Copy    Method = "copy"
)

// How says for whom a directory is made.
type How struct {
	Method   Method
	UID, GID int    // whom the directory is for and belongs to; −1 = our own user
	Trusted  bool   // as Options.Trusted, for this one
	Scratch  string // where an overlay's own directories are made, on a file system that takes them; "" = no overlay

	// Place puts further things into the directory before it is handed over:
	// below top, where they can be renamed to and back again. has says whether
	// the tree has something at a slash-separated path, and whether that is a
	// directory. nil = nothing.
	Place func(top string, has func(path string) (there, dir bool)) error
}

// Result is a directory that was made.
type Result struct {
	Method    Method
	Cold, Hot []int64 // sizes of the blobs that were fetched, and of those that were here
	Items     int     // entries before
	Bytes     int64   // their bytes
	Files     int     // of the tree
	Duration  time.Duration
	Top       string       // where what How.Place placed is; after Undo of an overlay only there
	Undo      func() error // ends what is mounted; may be called again. The directory stays
}

// Materialise fills the empty directory dst with the tree of root. Files have
// mode 0444 or 0555 and belong to us or, if copied, to UID; directories belong
// to UID. A How that cannot be followed here is a Precondition error. What is
// not here comes from from; the limits of the cache hold meanwhile, but for
// what one tree needs beyond them, and the bytes of trees that tasks have
// mounted. A tree that must not be written is an Invalid error, absent blobs
// are a *cas.MissingError. On an error dst is empty again.
func (c *Cache) Materialise(ctx context.Context, from Source, root cas.Digest, dst string, how How) (res *Result, err error) {
	began := time.Now()
	if how.UID < 0 {
		how.UID, how.GID = os.Geteuid(), os.Getegid()
	}
	method, err := c.choose(how, dst)
	if err != nil {
		return nil, err
	}
	unlock, err := c.use(ctx, true)
	if err != nil {
		return nil, err
	}
	defer func() { unlock() }()
	p, err := c.plan(ctx, from, root)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if err := c.load(); err != nil {
		c.opt.Log.Warn("cache state is broken; every entry is hashed", "dir", c.opt.Dir, "err", err)
	}
	c.mu.Unlock()
	res = &Result{Files: len(p.files), Top: dst, Undo: func() error { return nil }}
	res.Items, res.Bytes = c.Usage()
	fetched, err := c.gather(ctx, from, p, &unlock)
	if err != nil {
		c.saveLogged()
		return nil, err
	}
	res.Cold, res.Hot = blobSizes(p.entries, fetched)
	defer func() {
		if err != nil {
			err = errors.Join(err, empty(dst))
		}
	}()
	if err := c.fill(ctx, p, dst, how, method, res); err != nil {
		c.saveLogged()
		return nil, c.full(err, "inputs", p.bytes)
	}
	c.saveLogged()
	if used, err := c.treeUsed(root); err == nil && c.opt.Now().Sub(used) >= usedGrain*time.Second {
		now := c.opt.Now()
		_ = os.Chtimes(c.treePath(root, ""), now, now)
	}
	res.Duration = time.Since(began)
	return res, nil
}

// blobSizes returns the sizes of the blobs that are to be fetched, and of the
// others; one that is wanted with both modes counts once.
func blobSizes(entries, missing []entry) (cold, hot []int64) {
	fetched := make(map[cas.Hash]bool, len(missing))
	for _, e := range missing {
		fetched[e.key.hash] = true
	}
	for _, e := range entries {
		switch {
		case e.twin:
		case len(fetched) > 0 && fetched[e.key.hash]:
			cold = append(cold, e.size)
		default:
			hot = append(hot, e.size)
		}
	}
	return cold, hot
}

func (c *Cache) saveLogged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.save(); err != nil {
		c.opt.Log.Warn("cache state not saved", "dir", c.opt.Dir, "err", err)
	}
}

// choose finds the methods to try. Links and overlays are for tasks that
// cannot reach the entries through them. decisions.md 26.
func (c *Cache) choose(how How, dst string) ([]Method, error) {
	own, trusted := how.UID == os.Geteuid() || how.UID == 0, c.opt.Trusted || how.Trusted
	switch how.Method {
	case Auto:
		var list []Method
		if c.clones(dst) {
			list = append(list, Reflink)
		}
		switch {
		case !own || trusted:
			list = append(list, Link)
		case how.Scratch != "":
			list = append(list, Overlay)
		}
		return append(list, Copy), nil
	case Link:
		if own && !trusted {
			return nil, skep.Errorf(skep.Precondition, "inputs by links: uid %d could write to them", how.UID)
		}
	case Overlay:
		if !own {
			return nil, skep.Errorf(skep.Precondition, "inputs by overlay: directories of the tree would not be uid %d's", how.UID)
		}
		if how.Scratch == "" {
			return nil, skep.Errorf(skep.Precondition, "inputs by overlay: no directory for what the task writes")
		}
	case Reflink:
		if !c.clones(dst) {
			return nil, skep.Errorf(skep.Precondition, "inputs by reflink: the file systems of %s and %s do not share blocks; let the bot choose another way", c.opt.Dir, dst)
		}
	case Copy:
	default:
		return nil, skep.Errorf(skep.Precondition, "inputs by %q: want reflink, link, overlay or copy", how.Method)
	}
	return []Method{how.Method}, nil
}

// Check reports whether directories can be made as how says below dst: a
// Precondition error means that the machine, or how it is set up, does not
// allow it.
func (c *Cache) Check(how How, dst string) error {
	if how.UID < 0 {
		how.UID, how.GID = os.Geteuid(), os.Getegid()
	}
	_, err := c.choose(how, dst)
	return err
}

// clones reports whether files of the cache can share their blocks with files
// in dst.
func (c *Cache) clones(dst string) bool {
	to, err := openDir(dst)
	if err != nil {
		return false
	}
	defer to.close()
	temp := c.tempName()
	if _, err := c.dir.writeFile(temp, 0o600, []byte("x")); err != nil {
		return false
	}
	defer func() { _ = c.dir.remove(temp) }()
	if _, err := c.dir.copyTo(temp, to, temp, 0o600, true, -1, -1); err != nil {
		return false
	}
	return to.remove(temp) == nil
}

// fill makes the directory by the first method that works.
func (c *Cache) fill(ctx context.Context, p *plan, dst string, how How, methods []Method, res *Result) error {
	for n, m := range methods {
		var err error
		if m == Overlay {
			err = c.overlay(ctx, p, dst, how, res)
		} else {
			err = c.fillBy(ctx, p, dst, how, m)
		}
		if err == nil {
			res.Method = m
			if m == Overlay || how.Place == nil {
				return nil
			}
			return how.Place(dst, p.has())
		}
		if n == len(methods)-1 || ctx.Err() != nil || isFull(err) || errors.As(err, new(*placeError)) {
			return err
		}
		c.opt.Log.Warn("inputs: method does not work here; trying the next", "method", string(m), "next", string(methods[n+1]), "err", err)
		if err := empty(dst); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) fillBy(ctx context.Context, p *plan, dst string, how How, m Method) error {
	top, err := openDir(dst)
	if err != nil {
		return err
	}
	defer top.close()
	uid := how.UID
	if uid == os.Geteuid() {
		uid = -1
	}
	put := func(at *dir, f planFile) error {
		_, err := c.dir.copyTo(f.key.String(), at, f.name, f.key.perm(), m == Reflink, uid, how.GID)
		return err
	}
	if m == Link {
		c.linked(p)
		put = func(at *dir, f planFile) error {
			err := c.link(f.key, at, f.name)
			if isLinkLimit(err) {
				_, err = c.dir.copyTo(f.key.String(), at, f.name, f.key.perm(), false, -1, -1)
			}
			return err
		}
	}
	// From here on the entries stay as they are: what came is saved meanwhile.
	var saving sync.WaitGroup
	saving.Go(c.saveLogged)
	defer saving.Wait()
	return p.lay(ctx, top, uid, how.GID, put)
}

// linked remembers that the entries of a plan have links outside.
func (c *Cache) linked(p *plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range p.entries {
		if r := c.items[e.key]; r != nil && r.ctime != 0 {
			r.ctime, r.dirty, c.dirty = 0, true, true
		}
	}
}

// lay makes the directories and links of a plan in top and calls put for each
// file, several at a time.
func (p *plan) lay(ctx context.Context, top *dir, uid, gid int, put func(at *dir, f planFile) error) error {
	links := make([][]planLink, len(p.dirs))
	for _, l := range p.links {
		links[l.dir] = append(links[l.dir], l)
	}
	type job struct {
		at    *shared
		files []planFile
	}
	jobs := make(chan job, 8)
	g, ctx := errgroup.WithContext(ctx)
	for range max(2, runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			var err error
			for j := range jobs {
				for _, f := range j.files {
					if err == nil && ctx.Err() == nil {
						if err = put(j.at.dir, f); err != nil {
							err = fmt.Errorf("input file %s: %w", f.name, err)
						}
					}
				}
				j.at.release()
			}
			return err
		})
	}
	g.Go(func() error {
		defer close(jobs)
		open := []*shared{} // from the root to where we are
		at := []int{}
		defer func() {
			for _, s := range open {
				s.release()
			}
		}()
		for n, pd := range p.dirs {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			for len(at) > 0 && at[len(at)-1] != pd.parent {
				open[len(open)-1].release()
				open, at = open[:len(open)-1], at[:len(at)-1]
			}
			here := &shared{dir: top, keep: true}
			if pd.parent >= 0 {
				parent := open[len(open)-1].dir
				d, err := makeDir(parent, pd.name, uid, gid)
				if err != nil {
					return fmt.Errorf("input directory %s: %w", pd.name, err)
				}
				here = &shared{dir: d}
			}
			here.users.Store(1)
			open, at = append(open, here), append(at, n)
			for _, l := range links[n] {
				err := here.dir.symlink(l.target, l.name)
				if err == nil && uid >= 0 {
					err = here.dir.chown(l.name, uid, gid)
				}
				if err != nil {
					return fmt.Errorf("input link %s: %w", l.name, err)
				}
			}
			for first := pd.first; first < pd.last; first += jobFiles {
				here.users.Add(1)
				jobs <- job{here, p.files[first:min(first+jobFiles, pd.last)]}
			}
		}
		return nil
	})
	return g.Wait()
}

const jobFiles = 128

func makeDir(parent *dir, name string, uid, gid int) (*dir, error) {
	if err := parent.mkdir(name, 0o755); err != nil {
		return nil, err
	}
	if uid >= 0 {
		if err := parent.chown(name, uid, gid); err != nil {
			return nil, err
		}
	}
	return parent.open(name)
}

// shared is a directory that closes when the last user lets go.
type shared struct {
	dir   *dir
	keep  bool // somebody else closes it
	users atomic.Int32
}

func (s *shared) release() {
	if s.users.Add(-1) == 0 && !s.keep {
		s.dir.close()
	}
}

// has returns what How.Place is told of a plan.
func (p *plan) has() func(string) (there, dir bool) {
	names := sync.OnceValue(func() map[string]bool {
		paths := p.paths()
		m := map[string]bool{}
		for _, f := range p.files {
			m[join(paths[f.dir], f.name)] = false
		}
		for _, l := range p.links {
			m[join(paths[l.dir], l.name)] = false
		}
		for _, at := range paths {
			m[at] = true
		}
		return m
	})
	return func(path string) (there, dir bool) {
		dir, there = names()[path]
		return there, dir
	}
}

// paths are those of the directories, "" for the root.
func (p *plan) paths() []string {
	out := make([]string, len(p.dirs))
	for n, d := range p.dirs {
		if d.parent >= 0 {
			out[n] = join(out[d.parent], d.name)
		}
	}
	return out
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// placeError is one of How.Place: no other method helps.
type placeError struct{ err error }

func (e *placeError) Error() string { return e.err.Error() }
func (e *placeError) Unwrap() error { return e.err }

// empty removes what is in a directory.
func empty(path string) error {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		err = errors.Join(err, debris.Remove(filepath.Join(path, e.Name())))
	}
	return err
}
