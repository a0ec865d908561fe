package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"

	"github.com/skepdev/skep/cas"
)

// pack is a pack file in memory: 9 bytes for a record. mu of the store is over
// all but marker and id, which do not change.
type pack struct {
	id     uint32
	marker marker
	end    uint32     // of the last record
	size   int64      // bytes of its files: pack, index and last uses
	offs   []uint32   // of records and of stretches without one
	used   []uint32   // seconds since 1970; 0 = dead
	flags  []uint8    //
	dead   int64      // bytes of records that are dead
	idxLen int64      // bytes of its index
	useLen int64      // bytes of the file with last uses
	owed   int64      // bytes by which these two will still grow
	stale  bool       // used is newer than its file
	hashes []cas.Hash // of the records, only while the pack grows
	sealed bool       // it grows no more
}

func (p *pack) name(ending string) string {
	return fmt.Sprintf("%s/%06d.%s", packsDir, p.id, ending)
}

func (p *pack) extent(ord uint32) (off, end uint32) {
	if int(ord)+1 < len(p.offs) {
		return p.offs[ord], p.offs[ord+1]
	}
	return p.offs[ord], p.end
}

// What a record and a pack take beside the content, in the end.
const (
	recordExtra = recordLen + 36 + 8
	packExtra   = packHeaderLen + 2*32
)

// owe counts what the files beside a pack will still need, so that they do not
// break the limit when they are written. The caller holds mu.
func (s *Store) owe(p *pack) {
	was := p.owed
	p.owed = max(0, int64(packExtra-packHeaderLen+(recordExtra-recordLen)*len(p.offs))-p.idxLen-p.useLen)
	s.owed += p.owed - was
}

func (p *pack) live() int64 { return int64(p.end) - packHeaderLen - p.dead }

// places returns what the pack holds, with hashes: of a growing pack as it is
// in memory, of a sealed one from its index, or from a scan if that is bad.
// Ordinals are the same.
func (s *Store) places(p *pack) ([]place, error) {
	s.mu.Lock()
	offs, hashes, end, sealed := p.offs, p.hashes, p.end, p.sealed
	s.mu.Unlock()
	if hashes != nil {
		out := make([]place, len(offs))
		for i := range out {
			out[i] = place{hashes[i], offs[i]}
		}
		return out, nil
	}
	fits := func(got scanned) bool {
		if got.marker != p.marker || got.end != end || len(got.places) != len(offs) {
			return false
		}
		for i, at := range got.places {
			if at.off != offs[i] {
				return false
			}
		}
		return true
	}
	if b, err := s.root.ReadFile(p.name("idx")); err == nil {
		if got, err := decodeIndex(b); err == nil && fits(got) {
			return got.places, nil
		}
	}
	// The index went bad while we ran. The records' own headers have the hashes.
	out := make([]place, len(offs))
	var head [recordLen]byte
	for i, off := range offs {
		out[i].off = off
		if err := s.readPack(p, head[:], int64(off)); err != nil {
			return nil, err
		}
		if h, size, _, ok := decodeRecord(head[:], p.marker); ok {
			if from, to := p.extent(uint32(i)); uint32(size)+recordLen == to-from {
				out[i].hash = h
			}
		}
	}
	if sealed {
		s.saveIndex(p, end, out)
	}
	return out, nil
}

// saveIndex writes the index of a pack, where it is missing or damaged.
func (s *Store) saveIndex(p *pack, end uint32, places []place) {
	n := s.writeLazily(p.name("idx"), encodeIndex(p.marker, end, places))
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 {
		p.size, s.bytes, p.idxLen = p.size+n-p.idxLen, s.bytes+n-p.idxLen, n
		s.owe(p)
	}
}

// readPack fills b from a pack at off. fs.ErrNotExist means that the pack was
// removed; then the blob is elsewhere or gone.
func (s *Store) readPack(p *pack, b []byte, off int64) error {
	for {
		f, err := s.handles.get(s.root, p)
		if err != nil {
			return err
		}
		_, err = f.ReadAt(b, off)
		switch {
		case errors.Is(err, os.ErrClosed): // by somebody who needed a handle
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}

// handles are the open pack files, a bounded number of them.
type handles struct {
	mu   sync.Mutex
	open map[uint32]*os.File
}

const maxHandles = 256

func (h *handles) get(root *os.Root, p *pack) (*os.File, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.open[p.id]; f != nil {
		return f, nil
	}
	f, err := root.Open(p.name("pack"))
	if err != nil {
		return nil, err
	}
	if h.open == nil {
		h.open = map[uint32]*os.File{}
	}
	for id, other := range h.open {
		if len(h.open) < maxHandles {
			break
		}
		_ = other.Close() // readers try again
		delete(h.open, id)
	}
	h.open[p.id] = f
	return f, nil
}

// drop closes the handle of a pack that is about to be removed.
func (h *handles) drop(id uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.open[id]; f != nil {
		_ = f.Close()
		delete(h.open, id)
	}
}

func (h *handles) closeAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, f := range h.open {
		_ = f.Close()
		delete(h.open, id)
	}
}

// writeLazily replaces a file that can be made anew. It is not synced: a
// checksum tells when a power cut took it. It returns its length, 0 if it was
// not written.
func (s *Store) writeLazily(name string, b []byte) int64 {
	temp := tempDir + "/" + randomName()
	err := s.step("write " + name)
	if err == nil {
		err = s.root.WriteFile(temp, b, 0o600)
	}
	if err == nil {
		err = s.root.Rename(temp, name)
	}
	if err != nil {
		s.o.Log.Warn("a file that helps at the next start was not written", "file", name, "err", err)
		_ = s.root.Remove(temp)
		return 0
	}
	return int64(len(b))
}

func randomName() string { return strconv.FormatUint(rand.Uint64(), 36) }

// removePack removes a pack without live records and all beside it.
func (s *Store) removePack(p *pack) {
	s.mu.Lock()
	delete(s.packs, p.id)
	s.bytes -= p.size
	s.dead -= p.dead
	s.owed -= p.owed
	s.mu.Unlock()
	s.handles.drop(p.id)
	for _, ending := range []string{"pack", "idx", "use"} {
		if err := s.root.Remove(p.name(ending)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.o.Log.Warn("a file of a pack was not removed", "file", p.name(ending), "err", err)
		}
	}
	s.handles.drop(p.id) // of a reader that came in between
}
