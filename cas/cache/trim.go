package cache

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
)

// Trimmer removes entries, the longest unused first, while nobody else uses
// the cache. A ready tree stands before its entries: it was not used later
// than they were.
type Trimmer struct {
	c      *Cache
	unlock func()
	list   []victim
	items  int
	bytes  int64
}

type victim struct {
	used int64
	tree cas.Hash // of a tree
	key  key
	size int64 // of an entry; −1: a tree
}

// Trim begins to remove entries, when no tree is being made by anybody; until
// ctx ends it waits for that. The caller must Close it.
func (c *Cache) Trim(ctx context.Context) (*Trimmer, error) {
	unlock, err := c.use(ctx, false)
	if err != nil {
		return nil, err
	}
	t := &Trimmer{c: c, unlock: unlock}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		c.opt.Log.Warn("cache state is broken; starting anew", "dir", c.opt.Dir, "err", err)
	}
	t.list = make([]victim, 0, len(c.items))
	for k, r := range c.items {
		t.list = append(t.list, victim{used: r.used, key: k, size: r.size})
		t.bytes += r.size
	}
	t.items = len(c.items)
	entries, err := os.ReadDir(filepath.Join(c.opt.Dir, treesDir))
	if err != nil {
		unlock()
		return nil, err
	}
	for _, e := range entries {
		h, err := cas.ParseHash(e.Name())
		if err != nil {
			continue
		}
		if fi, err := e.Info(); err == nil {
			t.list = append(t.list, victim{used: fi.ModTime().Unix(), tree: h, size: -1})
		}
	}
	slices.SortFunc(t.list, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.used, b.used), cmp.Compare(b2i(a.size >= 0), b2i(b.size >= 0)), slices.Compare(a.key.hash[:], b.key.hash[:]))
	})
	return t, nil
}

// Oldest returns when what goes next was used last; false when nothing is
// left.
func (t *Trimmer) Oldest() (time.Time, bool) {
	if len(t.list) == 0 {
		return time.Time{}, false
	}
	return time.Unix(t.list[0].used, 0), true
}

// Evict removes what Oldest speaks of and returns how many bytes that frees:
// none, if a task still has a link to it.
func (t *Trimmer) Evict() (int64, error) {
	v := t.list[0]
	t.list = t.list[1:]
	if v.size < 0 {
		return 0, t.c.removeTree(v.tree)
	}
	t.items--
	t.bytes -= v.size
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.c.drop(v.key)
	i, err := t.c.dir.lstat(v.key.String())
	if err != nil {
		return 0, nil // it was gone
	}
	if err := t.c.dir.remove(v.key.String()); err != nil {
		return 0, err
	}
	if i.nlink > 1 {
		return 0, nil
	}
	return v.size, nil
}

// removeTree removes a ready tree and the messages, unless a task has it
// mounted.
func (c *Cache) removeTree(h cas.Hash) error {
	path := filepath.Join(c.opt.Dir, treesDir, h.String())
	l := flock.New(path, flock.SetFlag(os.O_RDONLY))
	if ok, err := l.TryLock(); err != nil || !ok {
		return nil //nolint:nilerr // it is used, or gone
	}
	defer l.Close()
	// First what says that it is whole.
	err := os.Remove(path + ".ok")
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, debris.Remove(path+".d"), os.Remove(path))
}

// Enforce removes what is beyond the limits of the cache itself.
func (t *Trimmer) Enforce() error {
	o := &t.c.opt
	tooOld := o.Now().Add(-o.MaxAge)
	for len(t.list) > 0 {
		used, _ := t.Oldest()
		if !t.c.over(t.bytes, t.items, o.MinFree) && !used.Before(tooOld) {
			return nil
		}
		if _, err := t.Evict(); err != nil {
			return err
		}
	}
	return nil
}

// Close saves what is left and lets others go on.
func (t *Trimmer) Close() error {
	defer t.unlock()
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.save()
}

// Clean brings a cache in order that nobody uses: unknown and temporary files
// are removed, entries without a file forgotten, those that changed hashed,
// and modes repaired. While another bot uses the cache it does nothing.
// spec bot.md §5.8.
func (c *Cache) Clean(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	t, err := c.Trim(wait)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		c.opt.Log.Info("cache is in use; not cleaned", "dir", c.opt.Dir)
		return nil
	}
	if err != nil {
		return err
	}
	defer t.unlock()
	if err := os.Chmod(c.opt.Dir, 0o700); err != nil {
		return err
	}
	c.mu.Lock()
	err = errors.Join(c.cleanEntries(), c.cleanTrees())
	c.mu.Unlock()
	t.unlock()
	t.unlock = func() {}
	if err != nil {
		return err
	}
	if t, err = c.Trim(ctx); err != nil { // the list is another one now
		return err
	}
	return errors.Join(t.Enforce(), t.Close())
}

func (c *Cache) cleanEntries() error {
	names, err := os.ReadDir(c.opt.Dir)
	if err != nil {
		return err
	}
	here := make(map[key]bool, len(c.items))
	var errs []error
	for _, e := range names {
		k, ok := parseKey(e.Name())
		r := c.items[k]
		switch {
		case ok && r != nil && e.Type().IsRegular():
			if c.repair(k, r) {
				here[k] = true
				continue
			}
		case e.Name() == stateFile, e.Name() == treesDir, e.Name() == roomDir, strings.HasSuffix(e.Name(), ".lock"):
			continue
		}
		errs = append(errs, debris.Remove(filepath.Join(c.opt.Dir, e.Name())))
	}
	for k := range c.items {
		if !here[k] {
			c.drop(k)
		}
	}
	return errors.Join(errs...)
}

// repair reports whether an entry may stay.
func (c *Cache) repair(k key, r *record) bool {
	i, err := c.dir.lstat(k.String())
	if err != nil || i.size != r.size || int(i.uid) != os.Geteuid() {
		return false
	}
	if r.ino == 0 || r.matches(k, i) { // 0: hashed before it is used anyway
		return true
	}
	if r.ctime != 0 && i.perm == k.perm() && i.ino == r.ino && i.mtime == r.mtime {
		r.ino, r.dirty, c.dirty = 0, true, true // a link came or went: hash it when it is used
		return true
	}
	i, ok := c.verify(k, r.size)
	if ok {
		r.saw(i)
		c.dirty = true
	} else {
		c.opt.Log.Warn("cache entry is damaged; removed", "dir", c.opt.Dir, "entry", k.String())
	}
	return ok
}

func (c *Cache) cleanTrees() error {
	top := filepath.Join(c.opt.Dir, treesDir)
	names, err := os.ReadDir(top)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range names {
		base := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".ok"), ".d")
		if _, err := cas.ParseHash(base); err == nil {
			if base == e.Name() {
				continue
			}
			if _, err := os.Stat(filepath.Join(top, base)); err == nil {
				continue
			}
		}
		errs = append(errs, debris.Remove(filepath.Join(top, e.Name())))
	}
	return errors.Join(errs...)
}
