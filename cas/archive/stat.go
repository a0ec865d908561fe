package archive

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/atomicfile"
)

// stat is by what a file is known to be unchanged.
type stat struct {
	size, mtime, ctime int64 // bytes, ns, ns
	inode              uint64
}

func stamp(info fs.FileInfo) stat {
	inode, ctime := identity(info)
	return stat{info.Size(), info.ModTime().UnixNano(), ctime, inode}
}

// statCache remembers the hashes of a directory's files by their stats.
type statCache struct {
	last map[string]*known // of the last time
	// Files touched later than this are not remembered: within the same tick of
	// the file system's clock they may change and keep their stat (git has the
	// same trouble, Documentation/technical/racy-git).
	before int64

	mu   sync.Mutex
	next map[string]*known // learned
}

type known struct {
	stat
	hash cas.Hash
	kept bool // it is as it was; set by who looks at this file, and nobody else does
}

// Bounds of the file.
const (
	statMagic   = "skep stat 1\n"
	statMaxFile = 512 << 20
	racy        = 2 * time.Second
)

// loadStats reads the file of the last time. A file that is damaged, too large
// or of another directory is as good as none.
func loadStats(path, dir string, now time.Time) *statCache {
	c := &statCache{before: now.Add(-racy).UnixNano(), next: map[string]*known{}}
	if path == "" {
		return c
	}
	if st, err := os.Stat(path); err != nil || st.Size() > statMaxFile {
		return c
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return c
	}
	if last, err := decodeStats(b, dir); err == nil {
		c.last = last
	}
	return c
}

// known returns the hash of a file that has not changed since it was hashed.
func (c *statCache) known(name string, info fs.FileInfo) (cas.Hash, bool) {
	k := c.last[name]
	if k == nil || k.stat != stamp(info) {
		return cas.Hash{}, false
	}
	k.kept = true
	return k.hash, true
}

// learn remembers a hash, if the file is old enough.
func (c *statCache) learn(name string, info fs.FileInfo, h cas.Hash) {
	s := stamp(info)
	if s.mtime >= c.before || s.ctime >= c.before {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next[name] = &known{stat: s, hash: h}
}

// save replaces the file, if there is news. A failure costs time, next time.
func (c *statCache) save(path, dir string) {
	if path == "" {
		return
	}
	kept := 0
	for _, k := range c.last {
		if k.kept {
			kept++
		}
	}
	if len(c.next) == 0 && kept == len(c.last) {
		return
	}
	for name, k := range c.last {
		if _, again := c.next[name]; k.kept && !again {
			c.next[name] = k
		}
	}
	if len(c.next) <= cas.MaxTreeEntries && os.MkdirAll(filepath.Dir(path), 0o700) == nil {
		_ = atomicfile.Write(path, encodeStats(c.next, dir), 0o600)
	}
}

// encodeStats writes the magic, the directory, the entries by name, and a
// SHA-256 of it all.
func encodeStats(files map[string]*known, dir string) []byte {
	b := make([]byte, 0, 128*len(files)+len(dir)+64)
	b = append(b, statMagic...)
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(dir)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		k := files[name]
		text(name)
		b = binary.AppendVarint(b, k.size)
		b = binary.AppendVarint(b, k.mtime)
		b = binary.AppendVarint(b, k.ctime)
		b = binary.AppendUvarint(b, k.inode)
		b = append(b, k.hash[:]...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

var errStats = errors.New("no file of stats for this directory")

// decodeStats reads what encodeStats wrote for dir.
func decodeStats(b []byte, dir string) (map[string]*known, error) {
	cut := len(b) - sha256.Size
	if cut < 0 || !bytes.HasPrefix(b, []byte(statMagic)) {
		return nil, errStats
	}
	if sum := sha256.Sum256(b[:cut]); !bytes.Equal(sum[:], b[cut:]) {
		return nil, errStats
	}
	r := &reader{b: b[len(statMagic):cut], all: string(b[len(statMagic):cut])}
	if r.text() != dir {
		return nil, errStats
	}
	files := make(map[string]*known, len(r.b)/100)
	var room []known // for many at once
	for len(r.b) > 0 && !r.bad {
		name := r.text()
		if len(room) == cap(room) {
			room = make([]known, 0, 1024)
		}
		room = append(room, known{})
		k := &room[len(room)-1]
		k.size, k.mtime, k.ctime, k.inode = r.varint(), r.varint(), r.varint(), r.uvarint()
		copy(k.hash[:], r.bytes(len(k.hash)))
		files[name] = k
	}
	if r.bad {
		return nil, errStats
	}
	return files, nil
}

// reader takes values off the front of b; bad stays once it is set.
type reader struct {
	b   []byte
	all string // of which b is the end: texts are parts of it
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.b, r.bad = nil, true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) text() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.b, r.bad = nil, true
		return ""
	}
	at := len(r.all) - len(r.b)
	return r.all[at : at+len(r.bytes(int(n)))]
}
