package named

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
	"github.com/skepdev/skep/internal/debris"
)

// Options of the caches of a bot.
type Options struct {
	Dir      string        // made when the first cache is kept
	MaxBytes int64         // 0 = 1 TiB
	MaxItems int           // 0 = 50
	MaxAge   time.Duration // 0 = 21 days
	Now      func() time.Time
	Log      *slog.Logger
}

// Caches are the named caches of a bot.
type Caches struct {
	opt   Options
	items map[string]item
	saved bool // there is a state.json
}

// Open reads the state. A broken one is dropped with all caches, as other
// programs do that share the format: nobody can say which directory was whose.
func Open(opt Options) (*Caches, error) {
	if opt.MaxBytes == 0 {
		opt.MaxBytes = 1 << 40
	}
	if opt.MaxItems == 0 {
		opt.MaxItems = 50
	}
	if opt.MaxAge == 0 {
		opt.MaxAge = 21 * 24 * time.Hour
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	c := &Caches{opt: opt, items: map[string]item{}}
	b, err := os.ReadFile(c.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("named caches: %w", err)
	}
	list, err := decode(b)
	if err != nil {
		opt.Log.Warn("state of the named caches is broken; starting anew", "dir", opt.Dir, "err", err)
		return c, debris.Remove(opt.Dir)
	}
	for _, it := range list {
		c.items[it.Name] = it
	}
	c.saved = true
	return c, nil
}

const (
	stateFile = "state.json"
	linksDir  = "named"
)

func (c *Caches) path(parts ...string) string {
	return filepath.Join(append([]string{c.opt.Dir}, parts...)...)
}

// Has reports whether there is a cache of that name.
func (c *Caches) Has(name string) bool { _, ok := c.items[name]; return ok }

// Len is the number of caches that are not with a task.
func (c *Caches) Len() int { return len(c.items) }

// Touch marks caches as used now.
func (c *Caches) Touch(names ...string) error {
	changed := false
	for _, n := range names {
		if it, ok := c.items[n]; ok {
			it.Used = c.opt.Now().Unix()
			c.items[n], changed = it, true
		}
	}
	if !changed {
		return nil
	}
	return c.save()
}

// Install moves a cache to dst, which must not exist. Without one dst becomes
// an empty directory.
func (c *Caches) Install(name, dst string) error {
	if !Valid(name) {
		return fmt.Errorf("%.300q is no name of a cache", name)
	}
	if _, err := os.Lstat(dst); err == nil {
		return fmt.Errorf("cache %s: %s exists", name, dst)
	}
	it, ok := c.items[name]
	if !ok {
		return os.Mkdir(dst, 0o700)
	}
	// The state first: a kill in between loses the cache, but never leaves a
	// state that names what a task has.
	delete(c.items, name)
	if err := c.save(); err != nil {
		return err
	}
	_ = os.Remove(c.path(linksDir, name))
	err := os.Rename(c.path(it.Dir), dst)
	if errors.Is(err, fs.ErrNotExist) {
		c.opt.Log.Warn("named cache is gone; starting with an empty one", "cache", name)
		err = os.Mkdir(dst, 0o700)
	}
	return err
}

// Uninstall takes back what a task left at src. What is empty, or cannot be
// read, is not kept. An error means that the cache is lost.
func (c *Caches) Uninstall(name, src string) error {
	if !Valid(name) {
		return fmt.Errorf("%.300q is no name of a cache", name)
	}
	fi, err := os.Lstat(src)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("cache %s: %s is no directory any more", name, src)
	}
	entries, err := os.ReadDir(src)
	if err != nil || len(entries) == 0 {
		return err
	}
	size, err := sizeOf(src)
	if err != nil {
		return fmt.Errorf("cache %s: %w", name, err)
	}
	if old, ok := c.items[name]; ok { // it cannot be: one task had it
		if err := debris.Remove(c.path(old.Dir)); err != nil {
			return err
		}
		delete(c.items, name)
	}
	if err := os.MkdirAll(c.path(linksDir), 0o755); err != nil {
		return err
	}
	// Tasks get theirs one by one, and see nobody else's.
	if err := os.Chmod(c.opt.Dir, 0o700); err != nil {
		return err
	}
	dir, err := c.freeDir()
	if err != nil {
		return err
	}
	if err := os.Rename(src, c.path(dir)); err != nil {
		return err
	}
	c.items[name] = item{name, dir, size, c.opt.Now().Unix()}
	return errors.Join(c.link(name, dir), c.save())
}

// freeDir returns a name that nothing has.
func (c *Caches) freeDir() (string, error) {
	for range 1000 {
		dir := string([]byte{letters[rand.IntN(len(letters))], letters[rand.IntN(len(letters))]})
		if _, err := os.Lstat(c.path(dir)); errors.Is(err, fs.ErrNotExist) {
			return dir, nil
		}
	}
	return "", errors.New("no name for the directory of a cache is free")
}

// link makes the link for people.
func (c *Caches) link(name, dir string) error {
	at, to := c.path(linksDir, name), filepath.Join("..", dir)
	if got, err := os.Readlink(at); err == nil && got == to {
		return nil
	}
	if err := debris.Remove(at); err != nil {
		return err
	}
	if err := os.Symlink(to, at); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		c.opt.Log.Warn("link to a named cache not made", "cache", name, "err", err) // Windows may not
	}
	return nil
}

func (c *Caches) save() error {
	if !c.saved && len(c.items) == 0 {
		return nil
	}
	list := make([]item, 0, len(c.items))
	for _, it := range c.items {
		list = append(list, it)
	}
	// Synced before it is renamed: after a power cut an empty or half file would
	// cost every cache of the bot.
	if err := atomicfile.Write(c.path(stateFile), encode(list), 0o600); err != nil {
		return err
	}
	c.saved = true
	return nil
}

// sizeOf sums the files of a tree.
func sizeOf(dir string) (total int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type().IsRegular() {
			fi, err := e.Info()
			if err != nil {
				return err
			}
			total += fi.Size()
		}
		return nil
	})
	return total, err
}

// Trimmer removes caches, the longest unused first.
type Trimmer struct {
	c     *Caches
	list  []item
	keep  int   // caches that stay
	bytes int64 // of all
}

// Trim begins to remove caches, sparing those named.
func (c *Caches) Trim(spare ...string) *Trimmer {
	t := &Trimmer{c: c}
	for name, it := range c.items {
		t.bytes += it.Size
		if slices.Contains(spare, name) {
			t.keep++
			continue
		}
		t.list = append(t.list, it)
	}
	slices.SortFunc(t.list, func(a, b item) int { return int(min(1, max(-1, a.Used-b.Used))) })
	return t
}

// Oldest returns when the cache that goes next was used last; false when none
// is left.
func (t *Trimmer) Oldest() (time.Time, bool) {
	if len(t.list) == 0 {
		return time.Time{}, false
	}
	return time.Unix(t.list[0].Used, 0), true
}

// Evict removes what Oldest speaks of and returns how many bytes that frees,
// about.
func (t *Trimmer) Evict() (int64, error) {
	it := t.list[0]
	t.list = t.list[1:]
	t.bytes -= it.Size
	delete(t.c.items, it.Name)
	t.c.opt.Log.Info("named cache removed", "cache", it.Name, "bytes", it.Size)
	_ = os.Remove(t.c.path(linksDir, it.Name))
	return it.Size, errors.Join(t.c.save(), debris.Remove(t.c.path(it.Dir)))
}

// Enforce removes what is beyond the limits of the caches themselves.
func (t *Trimmer) Enforce() error {
	o := &t.c.opt
	tooOld := o.Now().Add(-o.MaxAge)
	for len(t.list) > 0 {
		used, _ := t.Oldest()
		if t.bytes <= o.MaxBytes && len(t.list)+t.keep <= o.MaxItems && !used.Before(tooOld) {
			return nil
		}
		if _, err := t.Evict(); err != nil {
			return err
		}
	}
	return nil
}

// Clean brings the caches in order while no task runs: unknown files are
// removed, caches without a directory forgotten, links repaired, limits
// enforced. spec bot.md §5.8.
func (c *Caches) Clean() error {
	entries, err := os.ReadDir(c.opt.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	dirs := map[string]string{}
	for _, it := range c.items {
		dirs[it.Dir] = it.Name
	}
	here := map[string]bool{}
	for _, e := range entries {
		name, ok := dirs[e.Name()]
		switch {
		case e.Name() == stateFile, e.Name() == linksDir && e.IsDir():
		case ok && e.IsDir():
			here[name] = true
		default:
			errs = append(errs, debris.Remove(c.path(e.Name())))
		}
	}
	for name := range c.items {
		if !here[name] {
			delete(c.items, name)
		}
	}
	links, _ := os.ReadDir(c.path(linksDir))
	for _, e := range links {
		if !here[e.Name()] {
			errs = append(errs, debris.Remove(c.path(linksDir, e.Name())))
		}
	}
	if len(c.items) > 0 {
		errs = append(errs, os.MkdirAll(c.path(linksDir), 0o755))
	}
	for name, it := range c.items {
		errs = append(errs, c.link(name, it.Dir))
	}
	errs = append(errs, os.Chmod(c.opt.Dir, 0o700), c.save())
	return errors.Join(append(errs, c.Trim().Enforce())...)
}
