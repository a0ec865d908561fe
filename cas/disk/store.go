package disk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gofrs/flock"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Defaults and fixed times of a store.
const (
	DefaultMaxBytes = 50 << 30
	DefaultMinFree  = 2 << 30

	// Keep is how long a blob that was written, or answered as present, stays
	// at least. decisions.md 25 promises an hour; stamps are up to stampEvery
	// old.
	Keep       = time.Hour
	stampEvery = 10 * time.Minute
)

// Options of a store.
type Options struct {
	Dir      string // made if missing; one process at a time
	MaxBytes int64  // of all files together; 0 = DefaultMaxBytes
	MinFree  int64  // bytes of the file system that stay free; 0 = DefaultMinFree

	// Roots returns the trees that must stay: inputs of pending and running
	// tasks. It is asked when something must go, and again while it goes; nil =
	// none. See Pin for tasks that come meanwhile.
	Roots func(context.Context) ([]cas.Digest, error)

	Now func() time.Time // nil = time.Now
	Log *slog.Logger     // nil = nothing is logged

	packMax int64 // tests have smaller packs
}

// Blob is a digest with its content.
type Blob struct {
	Digest cas.Digest
	Data   []byte
}

// Store is a directory of blobs. Its methods may be called at once by many.
type Store struct {
	o    Options
	root *os.Root
	lock *flock.Flock
	quit chan struct{} // closed by Close
	wake chan struct{} // hint to Run: there is too much

	hook func(step string) error // tests fail steps with it; nil in production

	names [256]sync.Mutex // over the files of blobs/XX, taken before mu

	mu       sync.Mutex
	closed   bool
	index    map[cas.Hash]ref
	packs    map[uint32]*pack
	files    []fileEntry
	spare    []uint32 // free places of files
	gen      uint8    // marks of the last look at the pinned trees
	bytes    int64    // of all files
	owed     int64    // that indexes of packs will still need
	reserved int64    // promised to writes under way
	dead     int64    // bytes of packs that no live record uses
	stats    struct{ evicted, evictedBytes, corrupt, pinned, fresh int64 }

	room   chan struct{} // holds one token: who has it evicts
	pins   pins
	failed struct { // the last eviction that could not do enough; of who has the token
		need int64
		at   time.Time
	}
	writer  writer
	handles handles
	free    freeSpace
	uploads uploads
	jail    quarantine
}

// Open opens the store in o.Dir, or makes it. It removes temporary files, cuts
// what a crash left at the end of a pack, and rebuilds what is damaged and can
// be. A directory that another process has open is a Conflict error; one that
// holds something else, a Precondition error.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MinFree == 0 {
		o.MinFree = DefaultMinFree
	}
	if o.packMax == 0 {
		o.packMax = packMax
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		o: o, quit: make(chan struct{}), wake: make(chan struct{}, 1), room: make(chan struct{}, 1),
		index: map[cas.Hash]ref{}, packs: map[uint32]*pack{},
	}
	if err := s.claim(); err != nil {
		return nil, fmt.Errorf("open the content-addressed storage: %w", err)
	}
	defer func() {
		if err != nil {
			_ = errors.Join(s.root.Close(), s.lock.Close())
		}
	}()
	start := time.Now()
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("open the content-addressed storage %s: %w", o.Dir, err)
	}
	s.writer.start(s)
	o.Log.InfoContext(ctx, "content-addressed storage opened", "dir", o.Dir, "blobs", len(s.index), "bytes", s.bytes, "limit", o.MaxBytes, "took", time.Since(start))
	return s, nil
}

// claim makes the directory this process's alone.
func (s *Store) claim() error {
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(s.o.Dir)
	if err != nil {
		return err
	}
	if err := checkForeign(root, s.o.Dir); err != nil {
		return errors.Join(err, root.Close())
	}
	lock := flock.New(filepath.Join(s.o.Dir, lockName), flock.SetPermissions(0o600))
	ok, err := lock.TryLock()
	if err == nil && !ok {
		err = skep.Errorf(skep.Conflict, "another process uses %s; stop it, or give this one another directory", s.o.Dir)
	}
	if err == nil {
		err = writeMarker(root)
	}
	if err != nil {
		return errors.Join(err, lock.Close(), root.Close())
	}
	s.root, s.lock = root, lock
	return nil
}

// Close ends the store after the writes under way. Unfinished uploads are lost.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.quit)
	s.writer.stop()
	s.room <- struct{}{} // after the last eviction; never given back
	s.uploads.dropAll(s)
	s.saveUse()
	s.handles.closeAll()
	return errors.Join(s.root.Close(), s.lock.Close())
}

var errClosed = skep.Errorf(skep.Unavailable, "the content-addressed storage is closing")

// step lets a test fail what comes next.
func (s *Store) step(name string) error {
	if s.hook == nil {
		return nil
	}
	return s.hook(name)
}

// now is the present in seconds since 1970.
func (s *Store) now() uint32 {
	return uint32(min(max(s.o.Now().Unix(), 1), math.MaxUint32))
}

// Usage says how much a store holds. Bytes are those of files, so dead records
// and checksums count.
type Usage struct {
	Blobs         int64
	Bytes         int64 // on disk
	Dead          int64 // of them, records that nobody needs and that were not compacted yet
	Reserved      int64 // bytes of writes under way
	Limit         int64
	Free          int64 // of the file system, -1 when unknown
	MinFree       int64
	Pinned        int64 // bytes that pending and running tasks need, when something had to go last
	Fresh         int64 // others younger than Keep, at that moment
	Evicted       int64 // blobs, since Open
	EvictedBytes  int64
	Corrupt       int64 // blobs found corrupt since Open
	Quarantine    int64 // bytes in the quarantine
	OpenedUploads int
}

// Usage returns how much the store holds now.
func (s *Store) Usage() Usage {
	free := s.free.get(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{
		Blobs: int64(len(s.index)), Bytes: s.bytes, Dead: s.dead, Reserved: s.reserved, Limit: s.o.MaxBytes,
		Free: free, MinFree: s.o.MinFree, Pinned: s.stats.pinned, Fresh: s.stats.fresh,
		Evicted: s.stats.evicted, EvictedBytes: s.stats.evictedBytes, Corrupt: s.stats.corrupt,
		Quarantine: s.jail.bytes.Load(), OpenedUploads: s.uploads.count(),
	}
}
