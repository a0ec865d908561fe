package disk

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/skepdev/skep/cas"
)

// quarantine keeps what was found damaged, for people to look at: a bounded
// number of files and bytes, the newest.
type quarantine struct {
	mu    sync.Mutex
	bytes atomic.Int64
}

const quarantineFiles = 64

// quarantineMax is how many bytes the quarantine may hold.
func (s *Store) quarantineMax() int64 { return max(s.o.MaxBytes/100, 1<<20) }

// condemnRecord takes a damaged record out of the store.
func (s *Store) condemnRecord(d cas.Digest, r ref, cause error) {
	s.mu.Lock()
	p := s.packs[r.pack]
	live := p != nil && p.used[r.ord] != 0
	if live {
		d.Hash, _ = s.hashAt(r, d.Hash)
		s.kill(d.Hash, r)
		s.stats.corrupt++
	}
	s.mu.Unlock()
	if !live {
		return
	}
	s.o.Log.Error("a blob is damaged and missing from now on", "blob", d, "file", p.name("pack"), "err", cause)
	off, end := p.extentOf(s, r.ord)
	b := make([]byte, end-off)
	if s.readPack(p, b, int64(off)) == nil {
		s.jail.mu.Lock()
		name := s.cell(d)
		if err := s.root.WriteFile(name, b, 0o600); err != nil {
			_ = s.root.Remove(name)
		}
		s.jail.mu.Unlock()
		s.trimQuarantine()
	}
	s.saveUseOf(p) // or the next start takes it for present until it is read
}

func (p *pack) extentOf(s *Store, ord uint32) (off, end uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return p.extent(ord)
}

// condemnFile looks at a large blob once more, as the file may be another one
// by now, and takes it out of the store if it is damaged. nil means that the
// file is good or gone; look again. An error says that this cannot be known now.
func (s *Store) condemnFile(ctx context.Context, d cas.Digest, cause error) error {
	lock := &s.names[d.Hash[0]]
	lock.Lock()
	_, name := blobName(d.Hash)
	var sum *summer
	f, err := s.root.Open(name)
	if err == nil {
		sum, err = sumAll(ctx, f, d)
		_ = f.Close()
	}
	if err == nil {
		lock.Unlock()
		s.mendFooter(d, sum.footer())
		return nil
	}
	if ctx.Err() != nil || !damaged(err) {
		lock.Unlock()
		return cmp.Or(ctx.Err(), err)
	}
	s.mu.Lock()
	r, ok := s.index[d.Hash]
	live := ok && r.pack == 0
	if live {
		s.dropFile(r.ord)
		s.stats.corrupt++
	}
	s.mu.Unlock()
	if live {
		s.o.Log.ErrorContext(ctx, "a blob is damaged and missing from now on", "blob", d, "file", name, "err", cause)
		s.jail.mu.Lock()
		if err := s.root.Rename(name, s.cell(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.o.Log.ErrorContext(ctx, "a damaged blob was not moved away", "file", name, "err", err)
		}
		s.jail.mu.Unlock()
	}
	lock.Unlock()
	s.trimQuarantine()
	return nil
}

func (s *Store) cell(d cas.Digest) string {
	return quarantineDir + "/" + s.o.Now().UTC().Format("20060102T150405.000000000Z") + "-" + d.Hash.String()
}

// trimQuarantine removes the oldest until the rest is within its bounds. Names
// start with the time.
func (s *Store) trimQuarantine() {
	s.jail.mu.Lock()
	defer s.jail.mu.Unlock()
	names, err := readNames(s.root, quarantineDir)
	if err != nil {
		return
	}
	slices.Sort(names)
	slices.Reverse(names)
	var bytes int64
	for i, n := range names {
		name := quarantineDir + "/" + n
		st, err := s.root.Lstat(name)
		if err != nil {
			continue
		}
		if i >= quarantineFiles || bytes+st.Size() > s.quarantineMax() {
			if s.root.Remove(name) == nil {
				continue
			}
		}
		bytes += st.Size()
	}
	s.jail.bytes.Store(bytes)
}
