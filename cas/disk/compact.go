package disk

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/skepdev/skep/cas"
)

// compactAll compacts packs of which more than a share is dead, the worst
// first, until goal bytes are won.
func (s *Store) compactAll(ctx context.Context, goal int64, share float64) (freed int64, err error) {
	worth := s.deadest(share)
	for _, p := range worth {
		if freed >= goal {
			break
		}
		n, err := s.compact(ctx, p)
		freed += n
		if isFull(err) { // not even what lives in it can be moved: then it goes too, if it may
			if n, err = s.clear(p); n > 0 {
				freed += n
			}
		}
		if err != nil {
			return freed, err
		}
	}
	return freed, nil
}

// deadest returns the packs of which more than a share is dead.
func (s *Store) deadest(share float64) []*pack {
	type one struct {
		p    *pack
		dead float64
	}
	var found []one
	s.mu.Lock()
	for _, p := range s.packs {
		if d := float64(p.dead) / float64(p.end); p.dead > 0 && d > share {
			found = append(found, one{p, d})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(found, func(a, b one) int { return cmp.Or(cmp.Compare(b.dead, a.dead), cmp.Compare(a.p.id, b.p.id)) })
	packs := make([]*pack, len(found))
	for i, o := range found {
		packs[i] = o.p
	}
	return packs
}

// compact moves the live records of a pack to the growing one and removes it.
// A crash in between leaves some records twice; the next start keeps the later
// ones. It returns how many bytes were won. The caller has the token of room.
func (s *Store) compact(ctx context.Context, p *pack) (freed int64, err error) {
	s.mu.Lock()
	sealed := p.sealed
	s.mu.Unlock()
	if !sealed {
		s.writer.write(&commit{seal: true})
		s.mu.Lock()
		sealed = p.sealed
		s.mu.Unlock()
		if !sealed {
			return 0, nil // another one grows now, or the disk is full
		}
	}
	places, err := s.places(p)
	if err != nil {
		return 0, err
	}
	var c commit
	var moved, size int64
	move := func() error {
		if len(c.items) > 0 {
			s.writer.write(&c)
		}
		for _, it := range c.items {
			if it.err != nil {
				return it.err
			}
		}
		c, moved, size = commit{}, moved+size, 0
		return nil
	}
	for i, at := range places {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		r := ref{p.id, uint32(i)}
		s.mu.Lock()
		live := p.used[i] != 0
		off, end := p.extent(r.ord)
		s.mu.Unlock()
		if !live {
			continue
		}
		d := cas.Digest{Hash: at.hash, Size: int64(end) - int64(off) - recordLen}
		b := make([]byte, end-off)
		err := s.readPack(p, b, int64(off))
		if err == nil {
			b, err = checkRecord(b, p.marker, d)
		}
		switch {
		case err == nil:
			c.items = append(c.items, &item{digest: d, data: b, sum: crc(b), from: r})
		case damaged(err):
			s.condemnRecord(d, r, err)
			continue
		default:
			return 0, err
		}
		if size += int64(len(b)) + recordLen; size >= bufMax {
			if err := move(); err != nil {
				return 0, err
			}
		}
	}
	if err := move(); err != nil {
		return 0, err
	}
	if err := s.step("remove pack"); err != nil {
		return 0, err
	}
	s.mu.Lock()
	left, was := p.live(), p.size
	s.mu.Unlock()
	if left > 0 {
		return 0, errors.New("a pack kept live records after its compaction")
	}
	s.removePack(p)
	return was - moved, nil
}

// clear evicts all of a pack that may go.
func (s *Store) clear(p *pack) (freed int64, err error) {
	s.mu.Lock()
	now := s.now()
	var ords []uint32
	for i, u := range p.used {
		if u != 0 {
			ords = append(ords, uint32(i))
		}
	}
	s.mu.Unlock()
	freed, _, err = s.evictRecords(p, ords, func(used uint32, flags uint8, _ int64) bool {
		pin, fresh := s.protected(used, flags, now)
		return !pin && !fresh
	})
	return freed, err
}

// compactWorst compacts the pack with the most dead bytes, if more than half
// of it is dead, without need.
func (s *Store) compactWorst(ctx context.Context) error {
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	default:
		return nil // room is being made
	}
	packs := s.deadest(0.5)
	if len(packs) == 0 {
		return nil
	}
	_, err := s.compact(ctx, packs[0])
	return err
}

// scrubber reads everything in turn, some MiB each round, so that damage is
// found while another copy can be had: 50 GiB in about a week.
type scrubber struct {
	pack uint32
	file int
}

const scrubMax = 64 << 20

func (c *scrubber) round(ctx context.Context, s *Store) error {
	for _, p := range s.allPacks() {
		if p.id > c.pack {
			c.pack = p.id
			return s.scrubPack(ctx, p)
		}
	}
	for n := int64(0); n < scrubMax; c.file++ {
		s.mu.Lock()
		if c.file >= len(s.files) {
			s.mu.Unlock()
			*c = scrubber{}
			return nil
		}
		e := s.files[c.file]
		s.mu.Unlock()
		if e.size < 0 {
			continue
		}
		n += e.size
		r, err := s.openLarge(ctx, cas.Digest{Hash: e.hash, Size: e.size}, 0, false)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			err = errors.Join(err, r.Close())
		}
		if _, gone := errors.AsType[*cas.MissingError](err); err != nil && !gone {
			return err
		}
	}
	return nil
}

func (s *Store) scrubPack(ctx context.Context, p *pack) error {
	places, err := s.places(p)
	if err != nil {
		return err
	}
	for i, at := range places {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		live := p.used[i] != 0 && s.index[at.hash] == ref{p.id, uint32(i)}
		off, end := p.extent(uint32(i))
		s.mu.Unlock()
		if !live {
			continue
		}
		if _, err := s.getSmall(ctx, cas.Digest{Hash: at.hash, Size: int64(end) - int64(off) - recordLen}, false); err != nil {
			if _, gone := errors.AsType[*cas.MissingError](err); !gone {
				return err
			}
		}
	}
	return nil
}
