package cache

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/debris"
)

// Options of a cache.
type Options struct {
	Dir      string        // made if missing; its parent exists
	MaxBytes int64         // 0 = 50 GiB
	MinFree  int64         // bytes of the file system that a transfer leaves free while there is something to evict; 0 = 2 GiB
	MaxItems int           // 0 = as many as there are
	MaxAge   time.Duration // 0 = 21 days
	Trusted  bool          // tasks that could write to linked files do not: link for all
	Now      func() time.Time
	Free     func(dir string) (int64, error) // bytes free on dir's file system; nil = asks it
	Log      *slog.Logger
}

// Cache is a directory of blobs. Its methods may be called by several
// goroutines and several processes at once:
//
//	use.lock    shared while a tree is made, exclusive while entries are removed
//	state.lock  exclusive while state.json is replaced
//	tree.lock   exclusive while a lower directory is built
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
	// Nobody but us: a task reaches an entry through its own link only.
	for _, d := range []string{opt.Dir, filepath.Join(opt.Dir, treesDir)} {
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

// Close releases the directory. What is not saved is lost, and hashed again
// the next time.
func (c *Cache) Close() error { c.dir.close(); return nil }

// Usage returns the number of entries and their bytes.
func (c *Cache) Usage() (items int, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.items {
		bytes += r.size
	}
	return len(c.items), bytes
}

// lock takes a lock of the cache's directory.
func (c *Cache) lock(ctx context.Context, name string, shared bool) (unlock func(), err error) {
	return lockFile(ctx, filepath.Join(c.opt.Dir, name), shared)
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
		if strings.HasSuffix(e.Name(), ".lock") {
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
	stateLock = "state.lock"
	treeLock  = "tree.lock"
)

// Free returns the bytes that are free for us on dir's file system.
func Free(dir string) (int64, error) { return freeSpace(dir) }
