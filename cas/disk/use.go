package disk

import (
	"slices"
	"time"

	"github.com/skepdev/skep/cas"
)

// saveUse writes down when blobs were last used, where that changed: for packs
// a file beside them, for files their mtime. Everything that is lost by not
// writing it is the order of eviction.
func (s *Store) saveUse() {
	s.mu.Lock()
	var packs []*pack
	for _, p := range s.packs {
		if p.stale {
			packs = append(packs, p)
		}
	}
	type stamp struct {
		hash cas.Hash
		used uint32
	}
	var files []stamp
	for i := range s.files {
		e := &s.files[i]
		if e.size >= 0 && e.used > e.saved {
			files = append(files, stamp{e.hash, e.used})
			e.saved = e.used
		}
	}
	s.mu.Unlock()
	slices.SortFunc(packs, func(a, b *pack) int { return int(int64(a.id) - int64(b.id)) })
	for _, p := range packs {
		s.saveUseOf(p)
	}
	for _, f := range files {
		_, name := blobName(f.hash)
		t := time.Unix(int64(f.used), 0)
		_ = s.root.Chtimes(name, t, t) // evicted meanwhile
	}
}

func (s *Store) saveUseOf(p *pack) {
	s.mu.Lock()
	p.stale = false
	offs, end := p.offs, p.end
	used := slices.Clone(p.used)
	_, there := s.packs[p.id]
	s.mu.Unlock()
	if !there {
		return
	}
	n := s.writeLazily(p.name("use"), encodeUse(p.marker, end, offs, used))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.packs[p.id] == nil {
		_ = s.root.Remove(p.name("use")) // the pack went meanwhile
		return
	}
	if n > 0 {
		p.size, s.bytes, p.useLen = p.size+n-p.useLen, s.bytes+n-p.useLen, n
		s.owe(p)
	}
}
