package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/skepdev/skep/cas"
)

// tempName is a name for a file that is not whole yet. What carries one after
// a kill is removed by Clean.
func (c *Cache) tempName() string {
	return tempPrefix + strconv.Itoa(os.Getpid()) + "-" + strings.ToLower(rand.Text()[:12])
}

// lacking returns those of wants that are not here whole, looking at the file
// of each, and marks the others as used now.
func (c *Cache) lacking(wants map[key]int64) map[key]int64 {
	list := make([]key, 0, len(wants))
	for k := range wants {
		list = append(list, k)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.opt.Now().Unix()
	var (
		mu       sync.Mutex
		missing  = map[key]int64{}
		verified = map[key]info{}
		workers  sync.WaitGroup
	)
	for part := range slices.Chunk(list, len(list)/runtime.GOMAXPROCS(0)+1) {
		workers.Go(func() {
			for _, k := range part {
				i, err := c.dir.lstat(k.String())
				if r := c.items[k]; err == nil && r != nil && r.size == wants[k] && r.matches(k, i) {
					continue
				}
				ok := err == nil && i.regular && i.size == wants[k]
				if ok {
					i, ok = c.verify(k, i.size)
				}
				mu.Lock()
				if ok {
					verified[k] = i
				} else {
					missing[k] = wants[k]
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	for k, i := range verified {
		c.add(k, i, now)
	}
	for k := range missing {
		if c.items[k] != nil {
			c.opt.Log.Warn("cache entry is gone or damaged; fetching it again", "dir", c.opt.Dir, "entry", k.String())
			c.drop(k)
		}
	}
	for _, k := range list {
		if r := c.items[k]; r != nil && now-r.used >= usedGrain {
			r.used, r.dirty, c.dirty = now, true, true
		}
	}
	return missing
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
