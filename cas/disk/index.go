package disk

import (
	"github.com/skepdev/skep/cas"
)

// ref says where a blob lies: in a pack, by the ordinal of its record, or, for
// pack 0, in a file, by its place in Store.files. Ordinals and packs are never
// used again, so an unchanged ref is an unchanged blob.
type ref struct{ pack, ord uint32 }

// Flags of a blob. The lower bits are the generation of the mark.
const (
	flagPromised = 0x80 // written or answered as present; kept for Keep
	flagWalked   = 0x40 // a pinned directory whose entries were marked
	genMask      = 0x3f
)

type fileEntry struct {
	hash  cas.Hash
	size  int64 // of the blob; -1: the place is free
	used  uint32
	saved uint32 // of used, what the file's mtime says
	flags uint8
}

// find returns where d lies. The caller holds mu.
func (s *Store) find(d cas.Digest) (ref, bool) {
	r, ok := s.index[d.Hash]
	return r, ok && s.size(r) == d.Size
}

// size is that of a blob. The caller holds mu.
func (s *Store) size(r ref) int64 {
	if r.pack == 0 {
		return s.files[r.ord].size
	}
	off, end := s.packs[r.pack].extent(r.ord)
	return int64(end) - int64(off) - recordLen
}

// stamps are a blob's last use and flags. The caller holds mu.
func (s *Store) stamps(r ref) (used *uint32, flags *uint8) {
	if r.pack == 0 {
		f := &s.files[r.ord]
		return &f.used, &f.flags
	}
	p := s.packs[r.pack]
	return &p.used[r.ord], &p.flags[r.ord]
}

// touch records a use, and a promise to keep the blob. Stamps move in steps, so
// that a busy blob does not make its pack's stamps be written over and over.
// The caller holds mu.
func (s *Store) touch(r ref, promise bool) {
	used, flags := s.stamps(r)
	now := s.now()
	old := uint32(stampEvery.Seconds()) <= now-*used && now > *used
	switch {
	case promise && (old || *flags&flagPromised == 0):
		*flags |= flagPromised
	case !promise && old && !(*flags&flagPromised != 0 && fresh(*used, now)):
		*flags &^= flagPromised
	default:
		return
	}
	*used = max(now, *used)
	if r.pack != 0 {
		s.packs[r.pack].stale = true
	}
}

// fresh says that a promise of that time still holds. A time ahead of the
// clock counts as now.
func fresh(used, now uint32) bool {
	return used > now || now-used < uint32((Keep+stampEvery).Seconds())
}

// protected says that a blob must stay. The caller holds mu.
func (s *Store) protected(used uint32, flags uint8, now uint32) (pinned, isFresh bool) {
	return s.gen != 0 && flags&genMask == s.gen, flags&flagPromised != 0 && fresh(used, now)
}

// addFile enters a file. The caller holds mu; the blob is not in the index.
func (s *Store) addFile(e fileEntry) {
	var at uint32
	if n := len(s.spare); n > 0 {
		at, s.spare = s.spare[n-1], s.spare[:n-1]
		s.files[at] = e
	} else {
		at = uint32(len(s.files))
		s.files = append(s.files, e)
	}
	s.index[e.hash] = ref{0, at}
	s.bytes += fileLen(e.size)
}

// forgetOther drops what is in the index under the hash of d with another
// size: a file that was cut short while the store was closed. The caller holds
// mu and has just stored d.
func (s *Store) forgetOther(d cas.Digest) {
	if r, ok := s.index[d.Hash]; ok && s.size(r) != d.Size {
		if r.pack == 0 {
			s.dropFile(r.ord)
		} else {
			s.kill(d.Hash, r)
		}
	}
}

// dropFile takes a file out of the index. The caller holds mu and removes the
// file itself.
func (s *Store) dropFile(at uint32) {
	e := &s.files[at]
	delete(s.index, e.hash)
	s.bytes -= fileLen(e.size)
	*e = fileEntry{size: -1}
	s.spare = append(s.spare, at)
}

// hashAt returns the hash of the live blob at r: guess, unless the place that
// says so is damaged; then the index is searched, and ok is false if r is dead.
// The caller holds mu.
func (s *Store) hashAt(r ref, guess cas.Hash) (h cas.Hash, ok bool) {
	if s.index[guess] == r {
		return guess, true
	}
	for h, at := range s.index {
		if at == r {
			return h, true
		}
	}
	return guess, false
}

// kill makes a record dead. The caller holds mu; the record is live and its
// blob's.
func (s *Store) kill(h cas.Hash, r ref) {
	p := s.packs[r.pack]
	off, end := p.extent(r.ord)
	p.used[r.ord], p.flags[r.ord], p.stale = 0, 0, true
	p.dead += int64(end - off)
	s.dead += int64(end - off)
	if s.index[h] == r {
		delete(s.index, h)
	}
}
