package archive

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// Links says what becomes of a symlink that points out of the directory. One
// that stays inside is always kept as it is.
type Links uint8

const (
	Refuse      Links = iota // the archive fails and names it
	Materialise              // what it points at stands in its place
)

// Options are the choices of an archive.
type Options struct {
	Include   []string // patterns of what to take; none = everything
	Exclude   []string // patterns of what to leave out; "!" in front takes it in again
	StatCache string   // file of hashes of the last time; "" = none. It is made if missing, and ignored if damaged
	Links     Links
	Parallel  int              // files hashed at once; 0 = one for each processor
	Now       func() time.Time // nil = time.Now
	Hashed    func(n int64)    // told of bytes as they are hashed or found unchanged; nil = nobody; many may call it at a time
	Sent      func(n int64)    // told of bytes as they are uploaded or found there; as Hashed
}

// Tree is an archived directory.
type Tree struct {
	Root     cas.Digest
	Blobs    []remote.Source // of Scan: every blob once, the directories' too
	Files    int             // without those of directories; each counts
	Dirs     int             // with the root
	Symlinks int
	Bytes    int64        // of all files
	Cached   int          // files whose hash was known
	Stats    remote.Stats // of Upload
}

// Scan hashes the directory dir. An Invalid error names a file that has no
// place in a tree: a device, socket or pipe, a name that is not UTF-8, a
// symlink that leaves, or a file that would not stand still.
func Scan(ctx context.Context, dir string, opt Options) (*Tree, error) {
	var mu sync.Mutex
	var blobs []remote.Source
	seen := map[cas.Digest]bool{}
	t, err := walk(ctx, dir, &walker{opt: opt, emit: func(s remote.Source) error {
		mu.Lock()
		defer mu.Unlock()
		if !seen[s.Digest] {
			seen[s.Digest] = true
			blobs = append(blobs, s)
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	t.Blobs = blobs
	return t, nil
}

// Upload hashes the directory dir and sends to what is missing there, both at
// the same time. A large file whose hash is not known is hashed where
// it comes in, if the storage can take it so (remote.Uploader.Hash). When it
// returns the storage has the whole tree.
func Upload(ctx context.Context, to *remote.Client, dir string, opt Options) (*Tree, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	u := to.Uploader(ctx, opt.Sent)
	t, err := walk(ctx, dir, &walker{opt: opt, emit: u.Add, to: u})
	if err != nil {
		stop()
	}
	stats, sendErr := u.Wait()
	switch {
	case err != nil && (sendErr == nil || errors.Is(sendErr, context.Canceled)):
		return nil, err
	case sendErr != nil: // the walk failed only because of it
		return nil, fmt.Errorf("upload %s: %w", dir, sendErr)
	}
	t.Stats = stats
	return t, nil
}

// filled returns the options with their defaults.
func (o Options) filled() Options {
	if o.Parallel <= 0 {
		o.Parallel = runtime.GOMAXPROCS(0)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Hashed == nil {
		o.Hashed = func(int64) {}
	}
	return o
}
