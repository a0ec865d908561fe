package cache

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
)

// treePath is a file about a tree: "" its messages, ".d" the ready tree, ".ok"
// how that looked.
func (c *Cache) treePath(root cas.Digest, suffix string) string {
	return filepath.Join(c.opt.Dir, treesDir, root.Hash.String()+suffix)
}

func (c *Cache) treeUsed(root cas.Digest) (time.Time, error) {
	fi, err := os.Stat(c.treePath(root, ""))
	if err != nil {
		return time.Time{}, err
	}
	return fi.ModTime(), nil
}

// plan lays out a tree whose messages are here, or are fetched and kept.
func (c *Cache) plan(ctx context.Context, from Source, root cas.Digest) (*plan, error) {
	if b, err := os.ReadFile(c.treePath(root, "")); err == nil {
		if tree, err := decodeTree(b); err == nil {
			if p, err := newPlan(root, tree); err == nil {
				return p, nil
			}
		}
	}
	tree, err := from.Tree(ctx, root)
	if err != nil {
		return nil, err
	}
	p, err := newPlan(root, tree)
	if err != nil {
		return nil, err
	}
	if root == cas.Empty {
		tree = map[cas.Hash]*cas.Directory{}
	}
	if err := c.keepTree(root, tree); err != nil {
		return nil, c.full(fmt.Errorf("keep input tree: %w", err), "the directories of the inputs", 0)
	}
	return p, nil
}

func (c *Cache) keepTree(root cas.Digest, tree map[cas.Hash]*cas.Directory) error {
	d, err := openDir(filepath.Join(c.opt.Dir, treesDir))
	if err != nil {
		return err
	}
	defer d.close()
	temp := c.tempName()
	if _, err := d.writeFile(temp, 0o600, encodeTree(tree)); err != nil {
		return err
	}
	if err := d.rename(temp, root.Hash.String()); err != nil {
		_ = d.remove(temp)
		return err
	}
	return nil
}

// look is how the directories and files of a ready tree were when it was made:
// nobody can add or take a name without changing a directory's ctime, and a
// file's inode is that of its entry, which is looked at by itself.
type look struct {
	boot  string
	dirs  []info
	files []uint64 // inodes of the entries
}

var lookMagic = []byte("skep tree 2\n")

func (l *look) encode() []byte {
	b := append([]byte(nil), lookMagic...)
	b = binary.AppendUvarint(b, uint64(len(l.boot)))
	b = append(b, l.boot...)
	b = binary.AppendUvarint(b, uint64(len(l.dirs)))
	for _, d := range l.dirs {
		b = binary.AppendUvarint(b, d.ino)
		b = binary.AppendVarint(b, d.ctime)
		b = binary.AppendUvarint(b, uint64(d.perm))
	}
	b = binary.AppendUvarint(b, uint64(len(l.files)))
	for _, f := range l.files {
		b = binary.AppendUvarint(b, f)
	}
	return b
}

var errLook = errors.New("not a record of a tree")

func decodeLook(b []byte) (*look, error) {
	b, ok := bytes.CutPrefix(b, lookMagic)
	if !ok {
		return nil, errLook
	}
	bad := false
	number := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	signed := func() int64 {
		v, n := binary.Varint(b)
		if n <= 0 {
			bad = true
			return 0
		}
		b = b[n:]
		return v
	}
	l := &look{}
	n := number()
	if bad || n > uint64(len(b)) {
		return nil, errLook
	}
	l.boot, b = string(b[:n]), b[n:]
	if n = number(); bad || n > uint64(len(b)) {
		return nil, errLook
	}
	l.dirs = make([]info, 0, n)
	for range n {
		l.dirs = append(l.dirs, info{ino: number(), ctime: signed(), perm: uint32(number())})
	}
	if n = number(); bad || n > uint64(len(b)) {
		return nil, errLook
	}
	l.files = make([]uint64, 0, n)
	for range n {
		l.files = append(l.files, number())
	}
	if bad || len(b) > 0 {
		return nil, errLook
	}
	return l, nil
}

// inodes are those of a plan's entries, as they are recorded.
func (c *Cache) inodes(p *plan) []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]uint64, len(p.entries))
	eachOf(len(out), func(n int) {
		if r := c.items[p.entries[n].key]; r != nil {
			out[n] = r.ino
		}
	})
	return out
}

// intact reports whether the ready tree of p is there, and is what it was.
func (c *Cache) intact(p *plan) bool {
	b, err := os.ReadFile(c.treePath(p.root, ".ok"))
	if err != nil {
		return false
	}
	l, err := decodeLook(b)
	if err != nil || l.boot != c.boot || len(l.dirs) != len(p.dirs) || len(l.files) != len(p.entries) {
		return false
	}
	for n, ino := range c.inodes(p) {
		if ino == 0 || l.files[n] != ino {
			return false
		}
	}
	now, err := lookAt(c.treePath(p.root, ".d"), p)
	if err != nil {
		return false
	}
	for n, d := range now {
		if d.ino != l.dirs[n].ino || d.ctime != l.dirs[n].ctime || d.perm != l.dirs[n].perm {
			return false
		}
	}
	return true
}

// lookAt looks at the directories of a ready tree.
func lookAt(path string, p *plan) ([]info, error) {
	top, err := openDir(path)
	if err != nil {
		return nil, err
	}
	defer top.close()
	out, errs := make([]info, len(p.dirs)), make([]error, len(p.dirs))
	paths := p.paths()
	eachOf(len(out), func(n int) {
		at := cmp.Or(paths[n], ".")
		if out[n], errs[n] = top.lstat(at); errs[n] == nil && !out[n].isDir {
			errs[n] = fmt.Errorf("%s is no directory", at)
		}
	})
	if n := slices.IndexFunc(errs, func(err error) bool { return err != nil }); n >= 0 {
		return nil, errs[n]
	}
	return out, nil
}

// lower has open open the directory of the ready tree of p, made if need be,
// and returns a lock that keeps what is in it there. The path may be another
// tree's as soon as lower returns: one to whom this one does not look whole
// makes it anew.
func (c *Cache) lower(ctx context.Context, p *plan, open func(path string) error) (unlock func(), err error) {
	held, err := c.lock(ctx, treeLock, false)
	if err != nil {
		return nil, err
	}
	defer held()
	unlock, err = lockFile(ctx, c.treePath(p.root, ""), true)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	path := c.treePath(p.root, ".d")
	if c.intact(p) {
		return unlock, open(path)
	}
	if err := os.Remove(c.treePath(p.root, ".ok")); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	// Another task may still look at what is there: it goes when nobody does.
	old := filepath.Join(c.opt.Dir, treesDir, c.tempName())
	if err := os.Rename(path, old); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	if err := c.build(ctx, p, path); err != nil {
		return nil, err
	}
	return unlock, open(path)
}

// link makes a link to the file of an entry. Another user of the cache may
// replace the file by the same content at this moment: the old one then cannot
// be linked any more, which says "no such file".
func (c *Cache) link(k key, at *dir, name string) (err error) {
	for range 4 {
		if err = c.dir.link(k.String(), at, name); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return err
}

// build makes a ready tree out of links to the entries.
func (c *Cache) build(ctx context.Context, p *plan, path string) (err error) {
	temp := filepath.Join(c.opt.Dir, treesDir, c.tempName())
	if err := os.Mkdir(temp, 0o755); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = debris.Remove(temp)
		}
	}()
	top, err := openDir(temp)
	if err != nil {
		return err
	}
	defer top.close()
	err = p.lay(ctx, top, -1, -1, func(at *dir, f planFile) error {
		err := c.link(f.key, at, f.name)
		for try := 0; isLinkLimit(err) && try < 3; try++ {
			if err = c.renew(f.key); err == nil {
				err = c.link(f.key, at, f.name)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	// The links have changed the entries' ctime: what they are now counts, if
	// nothing else has changed.
	c.relook(p)
	l := look{boot: c.boot, files: c.inodes(p)}
	if l.dirs, err = lookAt(path, p); err != nil {
		return err
	}
	d, err := openDir(filepath.Join(c.opt.Dir, treesDir))
	if err != nil {
		return err
	}
	defer d.close()
	name := c.tempName()
	if _, err := d.writeFile(name, 0o600, l.encode()); err != nil {
		return err
	}
	return d.rename(name, p.root.Hash.String()+".ok")
}

// relook takes over a new ctime of entries that are otherwise as recorded.
func (c *Cache) relook(p *plan) {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := make([]bool, len(p.entries))
	eachOf(len(p.entries), func(n int) {
		k := p.entries[n].key
		r := c.items[k]
		i, err := c.dir.lstat(k.String())
		if r == nil || err != nil || r.ctime == 0 || r.ctime == i.ctime {
			return
		}
		was := *r
		was.ctime = 0
		if was.matches(k, i) {
			r.ctime, r.dirty, changed[n] = i.ctime, true, true
		}
	})
	c.dirty = c.dirty || slices.Contains(changed, true)
}
