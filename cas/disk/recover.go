package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/skepdev/skep/cas"
)

// recover reads what the directory holds.
func (s *Store) recover(ctx context.Context) error {
	made := false
	for _, dir := range []string{blobsDir, packsDir, tempDir, quarantineDir} {
		switch err := s.root.Mkdir(dir, 0o700); {
		case err == nil:
			made = true
		case !errors.Is(err, fs.ErrExist):
			return err
		}
	}
	if made {
		if err := syncDir(s.root, "."); err != nil {
			return err
		}
	}
	temps, err := readNames(s.root, tempDir)
	if err != nil {
		return err
	}
	for _, n := range temps {
		if err := s.root.RemoveAll(tempDir + "/" + n); err != nil {
			return err
		}
	}
	if err := s.recoverPacks(ctx); err != nil {
		return err
	}
	if err := s.recoverFiles(ctx); err != nil {
		return err
	}
	s.trimQuarantine()
	return nil
}

// recoverFiles enters the large blobs. Names that are none are left alone.
func (s *Store) recoverFiles(ctx context.Context) error {
	for i := range 256 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := fmt.Sprintf("%s/%02x", blobsDir, i)
		d, err := s.root.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		entries, err := d.ReadDir(-1)
		if err := errors.Join(err, d.Close()); err != nil {
			return err
		}
		for _, e := range entries {
			h, err := cas.ParseHash(e.Name())
			if err != nil || int(h[0]) != i || !e.Type().IsRegular() {
				s.o.Log.WarnContext(ctx, "a file that is no blob lies in the content-addressed storage", "file", dir+"/"+e.Name())
				continue
			}
			st, err := e.Info()
			if err != nil {
				return err
			}
			size := contentLen(st.Size())
			if size <= smallMax {
				s.o.Log.ErrorContext(ctx, "a blob's file has an impossible length and goes to the quarantine", "file", dir+"/"+e.Name(), "bytes", st.Size())
				s.stats.corrupt++
				if err := s.root.Rename(dir+"/"+e.Name(), s.cell(cas.Digest{Hash: h})); err != nil {
					return err
				}
				continue
			}
			if _, ok := s.index[h]; ok { // never of our making: its size decides which it is
				continue
			}
			used := uint32(min(max(st.ModTime().Unix(), 1), int64(s.now())))
			s.addFile(fileEntry{hash: h, size: size, used: used, saved: used, flags: flagPromised})
		}
	}
	return nil
}

// recoverPacks enters the small blobs, cuts the pack that grew, and removes
// what belongs to no pack.
func (s *Store) recoverPacks(ctx context.Context) error {
	names, err := readNames(s.root, packsDir)
	if err != nil {
		return err
	}
	var ids []uint32
	for _, n := range names {
		if num, ok := strings.CutSuffix(n, ".pack"); ok {
			id, err := strconv.ParseUint(num, 10, 32)
			if err != nil || id == 0 || (&pack{id: uint32(id)}).name("pack") != packsDir+"/"+n {
				s.o.Log.WarnContext(ctx, "a file that is no pack lies in the content-addressed storage", "file", packsDir+"/"+n)
				continue
			}
			ids = append(ids, uint32(id))
		}
	}
	slices.Sort(ids)
	s.writer.next = 1
	for i, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.recoverPack(ctx, id, i == len(ids)-1); err != nil {
			return fmt.Errorf("pack %d: %w", id, err)
		}
		s.writer.next = id + 1
	}
	for _, n := range names {
		num, ending, _ := strings.Cut(n, ".")
		id, err := strconv.ParseUint(num, 10, 32)
		if err == nil && (ending == "idx" || ending == "use") && s.packs[uint32(id)] == nil {
			if err := s.root.Remove(packsDir + "/" + n); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// recoverPack enters a pack. The last one grows on if it has no index.
func (s *Store) recoverPack(ctx context.Context, id uint32, last bool) error {
	p := &pack{id: id}
	st, err := s.root.Lstat(p.name("pack"))
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		s.o.Log.WarnContext(ctx, "a pack is no regular file and left alone", "file", p.name("pack"))
		return nil
	}
	got, indexed, err := s.readIndex(p, st.Size())
	grow := false
	if err == nil && !indexed {
		got, grow, err = s.scan(ctx, p, st.Size(), last)
	}
	if err != nil {
		return err
	}
	if got.places == nil && !grow {
		return nil
	}
	p.marker, p.end = got.marker, got.end
	p.sealed = !grow
	p.offs, p.used, p.flags = make([]uint32, len(got.places)), make([]uint32, len(got.places)), make([]uint8, len(got.places))
	if grow {
		p.hashes = make([]cas.Hash, len(got.places))
	}
	used := uint32(min(max(st.ModTime().Unix(), 1), int64(s.now())))
	stamps := make(map[uint32]uint32, len(got.places))
	if b, err := s.root.ReadFile(p.name("use")); err == nil {
		if err := decodeUse(b, p.marker, func(off, used uint32) { stamps[off] = used }); err != nil {
			s.o.Log.WarnContext(ctx, "the last uses of a pack are lost", "file", p.name("use"), "err", err)
		}
		p.useLen = int64(len(b))
		p.size += p.useLen
	}
	if st, err := s.root.Lstat(p.name("idx")); err == nil {
		p.idxLen = st.Size()
		p.size += p.idxLen
	}
	p.size += int64(p.end)
	s.packs[id] = p
	s.bytes += p.size
	s.owe(p)
	for i, at := range got.places {
		p.offs[i] = at.off
		if grow {
			p.hashes[i] = at.hash
		}
		u, ok := stamps[at.off]
		if !ok {
			u = used
		}
		if at.hash == (cas.Hash{}) {
			u = 0
		}
		if u == 0 {
			off, end := at.off, p.end
			if i+1 < len(got.places) {
				end = got.places[i+1].off
			}
			p.dead, s.dead = p.dead+int64(end-off), s.dead+int64(end-off)
			continue
		}
		if old, ok := s.index[at.hash]; ok { // a compaction was cut short: the later one stays
			s.kill(at.hash, old)
		}
		p.used[i], p.flags[i] = min(u, s.now()), flagPromised
		s.index[at.hash] = ref{id, uint32(i)}
	}
	if grow {
		s.writer.active = p
		return nil
	}
	if p.live() == 0 {
		s.removePack(p)
		return nil
	}
	if !indexed {
		s.saveIndex(p, p.end, got.places)
	}
	return nil
}

// readIndex reads the index of a sealed pack, if it has one that fits.
func (s *Store) readIndex(p *pack, size int64) (got scanned, ok bool, err error) {
	b, err := s.root.ReadFile(p.name("idx"))
	if errors.Is(err, fs.ErrNotExist) {
		return got, false, nil
	}
	if err != nil && !isUnreadable(err) {
		return got, false, err
	}
	if got, err = decodeIndex(b); err != nil || int64(got.end) != size {
		s.o.Log.Warn("the index of a pack is damaged and made anew", "file", p.name("idx"), "err", err)
		return got, false, s.root.Remove(p.name("idx"))
	}
	return got, true, nil
}

// scan reads a whole pack and cuts what is behind its last good record. grow
// says that it may be written on. A pack without a good record is moved to the
// quarantine, or removed if it is empty.
func (s *Store) scan(ctx context.Context, p *pack, size int64, last bool) (got scanned, grow bool, err error) {
	b := make([]byte, min(size, packMax))
	f, err := s.root.OpenFile(p.name("pack"), os.O_RDWR, 0)
	if err != nil {
		return got, false, err
	}
	defer func() {
		if !grow {
			err = errors.Join(err, f.Close())
		}
	}()
	n, err := f.ReadAt(b, 0)
	if n < len(b) && !damaged(err) {
		return got, false, err
	}
	got, err = scanPack(b[:n])
	if err != nil || len(got.places) == 0 {
		s.o.Log.InfoContext(ctx, "a pack holds no blob and is taken away", "file", p.name("pack"), "bytes", size)
		if last || size <= packHeaderLen+recordLen { // its first round was cut short
			return scanned{}, false, s.root.Remove(p.name("pack"))
		}
		return scanned{}, false, s.root.Rename(p.name("pack"), s.cell(cas.Digest{}))
	}
	if got.lost > 0 {
		s.stats.corrupt += int64(got.lost)
		s.o.Log.ErrorContext(ctx, "a pack is damaged; what it held there is missing", "file", p.name("pack"), "places", got.lost)
	}
	if size > int64(got.end) {
		s.o.Log.InfoContext(ctx, "the end of a pack was not complete and is cut", "file", p.name("pack"), "bytes", size-int64(got.end))
		if err := errors.Join(f.Truncate(int64(got.end)), f.Sync()); err != nil {
			return scanned{}, false, err
		}
	}
	header, err := decodePackHeader(b)
	if grow = last && err == nil && header == got.marker && got.lost == 0; grow {
		// What is there may have been acknowledged by nobody, but is served from now on.
		if err := syncData(f); err != nil {
			return scanned{}, false, err
		}
		s.writer.file = f
	}
	return got, grow, nil
}
