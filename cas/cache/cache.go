package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
)

// Options of a cache.
type Options struct {
	Dir      string        // made if missing; its parent exists
	MaxBytes int64         // 0 = 50 GiB. It holds during transfers too, see Materialise
	MinFree  int64         // bytes of the file system that a transfer leaves free while there is something to evict; 0 = 2 GiB
	MaxItems int           // 0 = as many as there are
	MaxAge   time.Duration // 0 = 21 days
	Trusted  bool          // tasks that could write to linked files do not: link for all
	Now      func() time.Time
	Free     func(dir string) (int64, error) // bytes free on dir's file system; nil = asks it
	Log      *slog.Logger

	watchEvery time.Duration // how often a transfer looks at the disk; tests look more often
}

// Cache is a directory of blobs. Its methods may be called by several
// goroutines and several processes at once:
//
//	use.lock    shared while a tree is made, exclusive while entries are removed
//	turn.lock   exclusive while somebody waits for use.lock
//	state.lock  exclusive while state.json is replaced
//	tree.lock   exclusive while a lower directory is built
//	room/…      one for each transfer under way: what it has set aside
//
// and a shared lock on trees/<root> for as long as a task has it mounted.
type Cache struct {
	opt  Options
	dir  *dir
	boot string

	mu      sync.Mutex
	items   map[key]*record
	dropped map[key]bool // since the last save
	dirty   bool
	seen    info // state.json as it was read
}

// key is an entry: a blob, with or without the mode bit.
type key struct {
	hash cas.Hash
	exec bool
}

func (k key) String() string {
	if k.exec {
		return k.hash.String() + execSuffix
	}
	return k.hash.String()
}

const (
	execSuffix = ".x"
	treesDir   = "trees"
	roomDir    = "room"
	stateFile  = "state.json"
	tempPrefix = "tmp-"
)

// parseKey reads the name of an entry.
func parseKey(name string) (k key, ok bool) {
	hex, exec := strings.CutSuffix(name, execSuffix)
	h, err := cas.ParseHash(hex)
	return key{h, exec}, err == nil
}

func (k key) perm() uint32 {
	if k.exec {
		return 0o555
	}
	return 0o444
}

// Open opens a cache, making its directory. A state.json that is none is
// dropped with all entries. spec bot.md §5.5.
func Open(opt Options) (*Cache, error) {
	if opt.MaxBytes == 0 {
		opt.MaxBytes = 50 << 30
	}
	if opt.MinFree == 0 {
		opt.MinFree = 2 << 30
	}
	if opt.MaxAge == 0 {
		opt.MaxAge = 21 * 24 * time.Hour
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Free == nil {
		opt.Free = freeSpace
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.watchEvery == 0 {
		opt.watchEvery = 2 * time.Second
	}
	if err := adopt(opt.Dir); err != nil {
		return nil, err
	}
	// Nobody but us: a task reaches an entry through its own link only.
	for _, d := range []string{opt.Dir, filepath.Join(opt.Dir, treesDir), filepath.Join(opt.Dir, roomDir)} {
		if err := os.Mkdir(d, 0o700); err != nil && !os.IsExist(err) {
			return nil, fmt.Errorf("cache: %w", err)
		}
	}
	c := &Cache{opt: opt, boot: bootID(), items: map[key]*record{}, dropped: map[key]bool{}}
	var err error
	if c.dir, err = openDir(opt.Dir); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := c.load(); err != nil {
		opt.Log.Warn("cache state is broken; starting anew", "dir", opt.Dir, "err", err)
		if err := c.reset(); err != nil {
			c.dir.close()
			return nil, fmt.Errorf("cache: remove what a broken state left: %w", err)
		}
	}
	return c, nil
}

// adopt makes sure that a directory may become a cache, in which unknown files
// are removed: that it holds nothing else, and belongs to us.
func adopt(dir string) error {
	fi, err := os.Lstat(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	if !fi.IsDir() || !isOurs(fi) {
		return skep.Errorf(skep.Precondition, "%s cannot be a content cache: it is no directory of this user; name another one", dir)
	}
	if _, err := os.Lstat(filepath.Join(dir, treesDir)); err == nil {
		return os.Chmod(dir, 0o700) //nolint:gosec // a directory
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("cache: %w", err)
	}
	for _, e := range entries {
		_, ok := parseKey(e.Name())
		if !ok && e.Name() != stateFile && e.Name() != treesDir && e.Name() != roomDir && !strings.HasSuffix(e.Name(), ".lock") && !strings.HasPrefix(e.Name(), tempPrefix) {
			return skep.Errorf(skep.Precondition, "%s cannot be a content cache: it holds %s, and what is unknown in a cache is removed; name an empty directory", dir, e.Name())
		}
	}
	return os.Chmod(dir, 0o700) //nolint:gosec // a directory
}

// Close releases the directory. What is not saved is lost, and hashed again
// the next time.
func (c *Cache) Close() error { c.dir.close(); return nil }

// Usage returns the number of entries and their bytes.
func (c *Cache) Usage() (items int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.items), c.bytes()
}

// lock takes a lock of the cache's directory.
func (c *Cache) lock(ctx context.Context, name string, shared bool) (unlock func(), err error) {
	return lockFile(ctx, filepath.Join(c.opt.Dir, name), shared)
}

// use takes useLock. Who waits for it takes turnLock first, so that others who
// come later wait behind: makers of trees follow each other without a gap on a
// machine with a few bots, and nobody could remove an entry. One who wants it
// for itself lets others by again after turnTime: whoever has it then is
// fetching much, and what is there already shall not wait for that.
func (c *Cache) use(ctx context.Context, shared bool) (unlock func(), err error) {
	for {
		turn, err := c.lock(ctx, turnLock, false)
		if err != nil {
			return nil, err
		}
		if shared {
			defer turn()
			return c.lock(ctx, useLock, true)
		}
		unlock, err = c.lockFor(ctx, turnTime)
		turn()
		if isLate(err) && ctx.Err() == nil {
			unlock, err = c.lockFor(ctx, turnTime)
		}
		if !isLate(err) || ctx.Err() != nil {
			return unlock, err
		}
	}
}

func isLate(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// turnTime is longer than making a tree takes that is here.
const turnTime = time.Second

func (c *Cache) lockFor(ctx context.Context, d time.Duration) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return c.lock(ctx, useLock, false)
}

const lockRetry = 10 * time.Millisecond

func lockFile(ctx context.Context, path string, shared bool) (unlock func(), err error) {
	l := flock.New(path, flock.SetPermissions(0o600))
	if shared {
		_, err = l.TryRLockContext(ctx, lockRetry)
	} else {
		_, err = l.TryLockContext(ctx, lockRetry)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("lock %s: %w", filepath.Base(path), err)
	}
	return func() { _ = l.Close() }, nil
}

// reset removes everything, if nobody uses it.
func (c *Cache) reset() error {
	c.items, c.dropped, c.dirty = map[key]*record{}, map[key]bool{}, true
	l := flock.New(filepath.Join(c.opt.Dir, useLock), flock.SetPermissions(0o600))
	if ok, err := l.TryLock(); err != nil || !ok {
		return err // files that we do not know are hashed before they are used
	}
	defer l.Close()
	entries, err := os.ReadDir(c.opt.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".lock") || e.Name() == roomDir {
			continue
		}
		if err := debris.Remove(filepath.Join(c.opt.Dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(c.opt.Dir, treesDir), 0o700); err != nil {
		return err
	}
	return c.save()
}

const (
	useLock   = "use.lock"
	turnLock  = "turn.lock"
	stateLock = "state.lock"
	treeLock  = "tree.lock"
)

// Free returns the bytes that are free for us on dir's file system.
func Free(dir string) (int64, error) { return freeSpace(dir) }
