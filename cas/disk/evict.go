package disk

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
)

// A pack is worth compacting when a third of it is dead: then at most two
// bytes are written for each one won.
const worthCompacting = 1. / 3

// evict makes the files at least must bytes smaller, better want: least
// recently used blobs first. Records of packs die first and go when their pack
// is compacted, so more than want may die. It returns an error only when it
// could not do its work; that there is too little to evict is none. The caller
// has the token of room and has marked what must stay.
func (s *Store) evict(ctx context.Context, must, want int64) (freed int64, err error) {
	freed, err = s.compactAll(ctx, want, worthCompacting)
	for freed < want && err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		if err = s.remark(ctx); err != nil {
			break
		}
		var n, died int64
		n, died, err = s.evictOldest(want - freed)
		freed += n
		if err != nil || n+died == 0 && !s.pinsArrived() {
			break
		}
		if freed < want {
			n, err = s.compactAll(ctx, want-freed, worthCompacting)
			freed += n
		}
	}
	if freed < must && err == nil { // all the rest must stay: then every dead byte counts
		n := int64(0)
		n, err = s.compactAll(ctx, must-freed, 0)
		freed += n
	}
	s.o.Log.InfoContext(ctx, "evicted", "freed", freed, "wanted", want, "err", err)
	return freed, err
}

// survey calls fn for every live blob, with the lock held for one pack or some
// files at a time.
func (s *Store) survey(fn func(r ref, length int64, used uint32, flags uint8)) {
	for _, p := range s.allPacks() {
		s.mu.Lock()
		for i, u := range p.used {
			if u != 0 {
				off, end := p.extent(uint32(i))
				fn(ref{p.id, uint32(i)}, int64(end-off), u, p.flags[i])
			}
		}
		s.mu.Unlock()
	}
	for at := 0; ; at += 4096 {
		s.mu.Lock()
		if at >= len(s.files) {
			s.mu.Unlock()
			return
		}
		for i, e := range s.files[at:min(at+4096, len(s.files))] {
			if e.size >= 0 {
				fn(ref{0, uint32(at + i)}, fileLen(e.size), e.used, e.flags)
			}
		}
		s.mu.Unlock()
	}
}

func (s *Store) allPacks() []*pack {
	s.mu.Lock()
	defer s.mu.Unlock()
	packs := make([]*pack, 0, len(s.packs))
	for _, p := range s.packs {
		packs = append(packs, p)
	}
	slices.SortFunc(packs, func(a, b *pack) int { return cmp.Compare(a.id, b.id) })
	return packs
}

// removable returns the bytes of blobs that need not stay, and calls fn for
// each of them with the second of its last use.
func (s *Store) removable(fn func(used uint32, length int64)) (total int64) {
	now := s.now()
	var pinned, recent int64
	s.survey(func(_ ref, n int64, used uint32, flags uint8) {
		switch pin, fresh := s.protected(used, flags, now); {
		case pin:
			pinned += n
		case fresh:
			recent += n
		default:
			total += n
			fn(used, n)
		}
	})
	s.mu.Lock()
	s.stats.pinned, s.stats.fresh = pinned, recent
	s.mu.Unlock()
	return total
}

// cutoff returns the second of last use up to which blobs must go to get rid
// of goal bytes, 0 if nothing may go. Two histograms find it in bounded memory:
// of the upper halves of the times, then of the lower ones.
func (s *Store) cutoff(goal int64) uint32 {
	upper, lower := make([]int64, 1<<16), make([]int64, 1<<16)
	total := s.removable(func(used uint32, n int64) { upper[used>>16] += n })
	if total == 0 {
		return 0
	}
	pick := func(sums []int64) int {
		last := 0
		for i, n := range sums {
			if n > 0 {
				if last = i; n >= goal {
					return i
				}
				goal -= n
			}
		}
		return last
	}
	high, now := pick(upper), s.now()
	s.survey(func(_ ref, n int64, used uint32, flags uint8) {
		pin, fresh := s.protected(used, flags, now)
		if int(used>>16) == high && !pin && !fresh {
			lower[used&0xffff] += n
		}
	})
	return uint32(high)<<16 | uint32(pick(lower))
}

// evictOldest evicts least recently used blobs of goal bytes together. freed
// are bytes that the files are smaller by, died those of dead records.
func (s *Store) evictOldest(goal int64) (freed, died int64, err error) {
	cut := s.cutoff(goal)
	if cut == 0 {
		return 0, 0, nil
	}
	now := s.now()
	old := map[uint32][]uint32{} // by pack
	var atCut, older int64
	s.survey(func(r ref, n int64, used uint32, flags uint8) {
		if pin, fresh := s.protected(used, flags, now); pin || fresh || used > cut {
			return
		}
		if used < cut {
			older += n
		}
		old[r.pack] = append(old[r.pack], r.ord)
	})
	// Of those last used at the cut itself only as many go as needed.
	// When a task is accepted meanwhile, nothing goes until its tree is marked.
	take := func(used uint32, flags uint8, n int64) bool {
		if len(s.pins.arrived) > 0 {
			return false
		}
		pin, fresh := s.protected(used, flags, now)
		if pin || fresh || used > cut || used == cut && older+atCut >= goal {
			return false
		}
		if used == cut {
			atCut += n
		}
		return true
	}
	if err := s.step("evict"); err != nil {
		return 0, 0, err
	}
	for _, at := range old[0] {
		freed += s.evictFile(at, take)
	}
	delete(old, 0)
	for id, ords := range old {
		s.mu.Lock()
		p := s.packs[id]
		s.mu.Unlock()
		n, d, e := s.evictRecords(p, ords, take)
		freed, died, err = freed+n, died+d, errors.Join(err, e)
	}
	return freed, died, err
}

// evictFile removes a large blob if take still says so.
func (s *Store) evictFile(at uint32, take func(uint32, uint8, int64) bool) int64 {
	s.mu.Lock()
	h := s.files[at].hash
	s.mu.Unlock()
	lock := &s.names[h[0]]
	lock.Lock()
	defer lock.Unlock()
	s.mu.Lock()
	e := s.files[at]
	if e.size < 0 || e.hash != h || !take(e.used, e.flags, fileLen(e.size)) {
		s.mu.Unlock()
		return 0
	}
	s.dropFile(at)
	s.stats.evicted++
	s.stats.evictedBytes += e.size
	s.mu.Unlock()
	_, name := blobName(h)
	if err := s.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.o.Log.Error("an evicted blob was not removed; the next start finds it again", "file", name, "err", err)
		return 0
	}
	return fileLen(e.size)
}

// evictRecords kills those of a pack's records that take still names. A pack
// without a live one is removed at once.
func (s *Store) evictRecords(p *pack, ords []uint32, take func(uint32, uint8, int64) bool) (freed, died int64, err error) {
	places, err := s.places(p)
	if err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	for _, i := range ords {
		off, end := p.extent(i)
		if p.used[i] == 0 || !take(p.used[i], p.flags[i], int64(end-off)) {
			continue
		}
		h, _ := s.hashAt(ref{p.id, i}, places[i].hash)
		s.kill(h, ref{p.id, i})
		died += int64(end - off)
		s.stats.evicted++
		s.stats.evictedBytes += int64(end-off) - recordLen
	}
	empty := p.sealed && p.live() == 0
	s.mu.Unlock()
	if empty {
		freed, died = p.size, 0
		s.removePack(p)
	}
	return freed, died, nil
}
