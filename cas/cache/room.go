package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// gather brings what a plan needs into the cache and returns what had to be
// fetched. The limits of the cache and of the disk hold meanwhile, whoever
// shares it: room is set aside before anything is fetched, and made where
// there is none. What the plan itself needs may be more than the limits: it is
// fetched when nothing else can go, and the cache is as much too large until
// it is trimmed. The caller holds useLock, shared; to make room it is given up
// and taken again, and then everything is looked at anew: others may have
// removed what was here.
func (c *Cache) gather(ctx context.Context, from Source, p *plan, unlock *func()) (fetched []entry, err error) {
	asked := map[key]bool{}
	var room *room
	defer func() { room.giveBack() }()
	for {
		missing := c.lacking(p.entries)
		for _, e := range missing {
			if !asked[e.key] {
				asked[e.key] = true
				fetched = append(fetched, e)
			}
		}
		if len(missing) == 0 {
			return fetched, nil
		}
		if !room.holds(missing) {
			room.giveBack()
			if room, err = c.reserve(missing, false); err != nil {
				return nil, err
			}
		}
		refused := false
		if room != nil {
			err := c.fetch(ctx, from, missing, !room.must)
			c.saveLogged() // others count what has come from here on
			if err == nil {
				return fetched, nil
			}
			if room.must || !isFull(err) && !errors.Is(err, errTight) || ctx.Err() != nil {
				return nil, err
			}
			room.giveBack()
			room, refused = nil, true
		}
		if room, err = c.makeRoom(ctx, p, missing, refused, unlock); err != nil {
			return nil, err
		}
	}
}

// room is what a transfer has set aside.
type room struct {
	lock  *flock.Flock
	bytes int64
	items int
	must  bool // beyond the limits: nothing can go
}

func (r *room) holds(entries []entry) bool {
	return r != nil && sizeOf(entries) <= r.bytes && len(entries) <= r.items
}

// giveBack may be called of no room, and again.
func (r *room) giveBack() {
	if r == nil {
		return
	}
	_ = os.Remove(r.lock.Path())
	_ = r.lock.Close()
}

// sizeOf is what entries take.
func sizeOf(entries []entry) (bytes int64) {
	for _, e := range entries {
		bytes += e.size
	}
	return bytes
}

// reserve sets room aside for entries, if they fit beside what is here and what
// others fetch just now; else it returns nil. With must they fit whenever the
// disk can hold them. The caller holds useLock.
func (c *Cache) reserve(missing []entry, must bool) (*room, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	unlock, err := c.lock(ctx, stateLock, false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	bytes, items, err := c.reserved() // before what is free is asked: who ends meanwhile is counted twice, and not never
	if err != nil {
		return nil, err
	}
	free, err := c.opt.Free(c.opt.Dir)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		c.opt.Log.Warn("cache state is broken; every entry is hashed", "dir", c.opt.Dir, "err", err)
	}
	size := sizeOf(missing)
	over := c.over(c.bytes()+bytes+size, len(c.items)+items+len(missing), free-bytes-size)
	if over && must && free < size {
		return nil, fmt.Errorf("the disk of the bot is full: inputs need %d bytes, %d are free, and nothing else in the cache can go", size, free)
	}
	if over && !must {
		return nil, nil
	}
	name := fmt.Sprintf("%d-%d-%s", size, len(missing), strings.ToLower(rand.Text()[:12]))
	l := flock.New(filepath.Join(c.opt.Dir, roomDir, name), flock.SetPermissions(0o600))
	if ok, err := l.TryLock(); err != nil || !ok {
		return nil, fmt.Errorf("set room aside in the cache: %w", err)
	}
	return &room{lock: l, bytes: size, items: len(missing), must: must}, nil
}

// over reports whether a cache of so many bytes and entries, on a disk with so
// much free, is beyond a limit.
func (c *Cache) over(bytes int64, items int, free int64) bool {
	o := &c.opt
	return bytes > o.MaxBytes || o.MaxItems > 0 && items > o.MaxItems || free < o.MinFree
}

func (c *Cache) bytes() (n int64) {
	for _, r := range c.items {
		n += r.size
	}
	return n
}

// reserved is what all users of the cache have set aside. A file in roomDir
// says so by its name, and its lock that the user lives. The caller holds
// stateLock.
func (c *Cache) reserved() (bytes int64, items int, err error) {
	names, err := os.ReadDir(filepath.Join(c.opt.Dir, roomDir))
	for _, e := range names {
		path := filepath.Join(c.opt.Dir, roomDir, e.Name())
		part := strings.SplitN(e.Name(), "-", 3)
		if len(part) < 3 {
			continue
		}
		l := flock.New(path, flock.SetFlag(os.O_RDONLY))
		if ok, err := l.TryLock(); ok || errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(path) // who had it was killed
			_ = l.Close()
			continue
		}
		_ = l.Close()
		b, err1 := strconv.ParseInt(part[0], 10, 64)
		n, err2 := strconv.Atoi(part[1])
		if err1 == nil && err2 == nil && b >= 0 && n >= 0 {
			bytes, items = bytes+b, items+n
		}
	}
	return bytes, items, err
}

// makeRoom evicts, the longest unused first, until what a plan lacks fits,
// sparing what it has, and sets the room aside before anybody else can.
// refused says that the disk took no more, whatever it said to be free. Our
// shared lock is given up meanwhile, so that everybody who makes a tree has
// ended. It returns nil when those who are about to begin have the room: they
// end.
func (c *Cache) makeRoom(ctx context.Context, p *plan, missing []entry, refused bool, unlock *func()) (r *room, err error) {
	(*unlock)()
	*unlock = func() {}
	t, err := c.Trim(ctx)
	if err != nil {
		return nil, err
	}
	r, err = t.makeRoom(p, c.lacksNow(p, missing), refused)
	if err = errors.Join(err, t.Close()); err == nil {
		var held func()
		if held, err = c.use(ctx, true); err == nil {
			*unlock = held
			return r, nil
		}
	}
	r.giveBack()
	return nil, err
}

// lacksNow are the entries of a plan that were missing, or went since.
func (c *Cache) lacksNow(p *plan, missing []entry) (lacks []entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := make(map[key]bool, len(missing))
	for _, e := range missing {
		was[e.key] = true
	}
	for _, e := range p.entries {
		if was[e.key] || c.items[e.key] == nil {
			lacks = append(lacks, e)
		}
	}
	return lacks
}

func (t *Trimmer) makeRoom(p *plan, lacks []entry, refused bool) (*room, error) {
	bytes, items, err := t.c.reserved()
	if err != nil {
		return nil, err
	}
	alone := items == 0
	evicted, made, err := t.spareAndFit(p, bytes+sizeOf(lacks), items+len(lacks), refused)
	if err != nil {
		return nil, err
	}
	r, err := t.c.reserve(lacks, alone && (!made || refused && evicted == 0))
	if r == nil && err == nil && alone { // the disk filled this moment
		r, err = t.c.reserve(lacks, true)
	}
	return r, err
}

// spareAndFit evicts until so much more fits, but nothing of a plan, and
// returns how many entries and trees went and whether it fits.
func (t *Trimmer) spareAndFit(p *plan, bytes int64, items int, refused bool) (evicted int, made bool, err error) {
	c := t.c
	spare := make(map[key]bool, len(p.entries))
	for _, e := range p.entries {
		spare[e.key] = true
	}
	free, err := c.opt.Free(c.opt.Dir)
	if err != nil {
		return 0, false, err
	}
	if refused { // its word counts for nothing: at least what is needed must go
		free = min(free, c.opt.MinFree)
	}
	kept := t.list[:0:0]
	for len(t.list) > 0 && c.over(t.bytes+bytes, t.items+items, free-bytes) {
		v := t.list[0]
		if v.size < 0 && v.tree == p.root.Hash || v.size >= 0 && spare[v.key] {
			kept, t.list = append(kept, v), t.list[1:]
			continue
		}
		freed, err := t.Evict()
		if err != nil {
			return evicted, false, err
		}
		free += freed
		evicted++
	}
	t.list = append(kept, t.list...)
	return evicted, !c.over(t.bytes+bytes, t.items+items, free-bytes), nil
}

// errTight ends a fetch while which the disk became too full.
var errTight = errors.New("the disk of the bot is nearly full")

// watch ends a fetch when less than MinFree is free for what is still to come:
// somebody else fills the disk.
func (c *Cache) watch(ctx context.Context, tight func()) {
	every := time.NewTicker(c.opt.watchEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			if free, err := c.opt.Free(c.opt.Dir); err == nil && free < c.opt.MinFree {
				tight()
				return
			}
		}
	}
}

// Within reports whether the cache needs no trimming: nothing in it is too
// old, its own limits hold, and so much of the disk is free. It waits for
// nobody.
func (c *Cache) Within(minFree int64) bool {
	free, err := c.opt.Free(c.opt.Dir)
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		return false
	}
	tooOld := c.opt.Now().Add(-c.opt.MaxAge).Unix()
	for _, r := range c.items {
		if r.used < tooOld {
			return false
		}
	}
	return free >= minFree && !c.over(c.bytes(), len(c.items), c.opt.MinFree)
}
