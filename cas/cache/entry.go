package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/skepdev/skep/cas"
)

// tempName is a name for a file that is not whole yet. What carries one after
// a kill is removed by Clean.
func (c *Cache) tempName() string {
	return tempPrefix + strconv.Itoa(os.Getpid()) + "-" + strings.ToLower(rand.Text()[:12])
}

// lacking returns those entries that are not here whole, looking at the file of
// each, and marks the others as used now.
func (c *Cache) lacking(entries []entry) (missing []entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var (
		now     = c.opt.Now().Unix()
		records = make([]*record, len(entries))
		unknown atomic.Int64
		looks   = make([]info, len(entries)) // of those that were hashed
		gone    = make([]bool, len(entries))
	)
	eachOf(len(entries), func(n int) {
		if records[n] = c.items[entries[n].key]; records[n] == nil {
			unknown.Add(1)
		}
	})
	// A file that the state does not name is what a kill left. Where that are
	// more than there can be, one look at the directory saves one at each.
	isHere := func(key) bool { return true }
	if int(unknown.Load()) > len(c.items) {
		if names, err := c.names(); err == nil {
			isHere = func(k key) bool { return names[k] }
		}
	}
	eachOf(len(entries), func(n int) {
		e, r := &entries[n], records[n]
		if gone[n] = r == nil && !isHere(e.key); gone[n] {
			return
		}
		i, err := c.dir.lstat(e.key.String())
		if err == nil && r != nil && r.size == e.size && r.matches(e.key, i) {
			return
		}
		ok := err == nil && i.regular && i.size == e.size
		if ok {
			looks[n], ok = c.verify(e.key, i.size)
		}
		gone[n] = !ok
	})
	for n, e := range entries {
		switch r := records[n]; {
		case gone[n]:
			missing = append(missing, e)
			if r != nil {
				c.opt.Log.Warn("cache entry is gone or damaged; fetching it again", "dir", c.opt.Dir, "entry", e.key.String())
				c.drop(e.key)
			}
		case looks[n].regular:
			c.add(e.key, looks[n], now)
		case now-r.used >= usedGrain:
			r.used, r.dirty, c.dirty = now, true, true
		}
	}
	return missing
}

// names are the entries that the directory has.
func (c *Cache) names() (map[key]bool, error) {
	f, err := os.Open(c.opt.Dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	names := make(map[key]bool, len(list))
	for _, name := range list {
		if k, ok := parseKey(name); ok {
			names[k] = true
		}
	}
	return names, err
}

// eachOf calls fn for 0 to n−1, on all processors.
func eachOf(n int, fn func(n int)) {
	var workers sync.WaitGroup
	part := n/runtime.GOMAXPROCS(0) + 1
	for from := 0; from < n; from += part {
		workers.Go(func() {
			for at := from; at < min(from+part, n); at++ {
				fn(at)
			}
		})
	}
	workers.Wait()
}

// usedGrain is how many seconds the time of an entry's last use may be off, so
// that tasks of the same inputs need not write the state.
const usedGrain = 60

// verify hashes a file that is not known to be right, and makes its mode what
// its name says.
func (c *Cache) verify(k key, size int64) (info, bool) {
	f, err := c.dir.openFile(k.String())
	if err != nil {
		return info{}, false
	}
	defer f.Close()
	d, err := cas.SumReader(f)
	if err != nil || d != (cas.Digest{Hash: k.hash, Size: size}) {
		return info{}, false
	}
	i, err := seal(f, k.perm())
	return i, err == nil && int(i.uid) == os.Geteuid()
}

// add records an entry whose content is right. c.mu is held.
func (c *Cache) add(k key, i info, now int64) {
	r := c.items[k]
	if r == nil {
		r = &record{}
		c.items[k] = r
	}
	r.saw(i)
	r.used, c.dirty = now, true
	delete(c.dropped, k)
}

// drop forgets an entry. c.mu is held.
func (c *Cache) drop(k key) {
	delete(c.items, k)
	c.dropped[k], c.dirty = true, true
}

// put makes the file of an entry out of its verified content. A kill in the
// middle leaves a file that no state names; it is hashed before it is used.
func (c *Cache) put(k key, data []byte) (info, error) {
	name := k.String()
	i, err := c.dir.writeFile(name, k.perm(), data)
	if !errors.Is(err, fs.ErrExist) {
		return i, err
	}
	// Another one is fetching it, or what is there is damaged.
	temp := c.tempName()
	if _, err := c.dir.writeFile(temp, k.perm(), data); err != nil {
		return info{}, err
	}
	return c.replace(temp, name)
}

// replace gives a whole file its name, whatever had it before.
func (c *Cache) replace(temp, name string) (info, error) {
	if err := c.dir.rename(temp, name); err != nil {
		_ = c.dir.remove(temp)
		return info{}, err
	}
	return c.dir.lstat(name)
}

// renew replaces the file of an entry by a copy of its own: the file system
// takes no further link to it.
func (c *Cache) renew(k key) error {
	temp := c.tempName()
	if _, err := c.dir.copyTo(k.String(), c.dir, temp, k.perm(), false, -1, -1); err != nil {
		return err
	}
	i, err := c.replace(temp, k.String())
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.items[k]; r != nil {
		linked := r.ctime == 0
		r.saw(i)
		if linked {
			r.ctime = 0
		}
		c.dirty = true
	}
	return nil
}

// full says what a full disk means.
func (c *Cache) full(err error, what string, bytes int64) error {
	if !isFull(err) {
		return err
	}
	free, _ := c.opt.Free(c.opt.Dir)
	return fmt.Errorf("the disk of the bot is full: %s need %d bytes, %d are free, and nothing else in the cache can go: %w", what, bytes, free, err)
}
