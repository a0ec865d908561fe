package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/skepdev/skep/cas"
)

// A pack is a header and records. All numbers are little endian, all checksums
// CRC-32C.
//
//	header  "skep pack 1\n" | marker 8 | zero 8 | checksum of the above 4
//	record  marker 8 | size 4 | checksum of the data 4 | hash 32 | checksum of the above 4 | data
//
// The marker is random and differs from pack to pack. Whoever uploads a blob
// cannot know it, so no content can pass for a record when a scan searches its
// way past a damaged place.
const (
	packMagic     = "skep pack 1\n"
	indexMagic    = "skep index 1"
	useMagic      = "skep use 1\x00\x00"
	packHeaderLen = 32
	recordLen     = 52      // of a record's header
	smallMax      = 1 << 16 // bytes of the largest blob that lies in a pack
	packMax       = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

type marker [8]byte

var (
	le          = binary.LittleEndian
	errChecksum = errors.New("a checksum does not match")
)

func appendPackHeader(b []byte, m marker) []byte {
	at := len(b)
	b = append(append(append(b, packMagic...), m[:]...), make([]byte, 8)...)
	return le.AppendUint32(b, crc(b[at:]))
}

func decodePackHeader(b []byte) (m marker, err error) {
	if len(b) < packHeaderLen || string(b[:len(packMagic)]) != packMagic || crc(b[:packHeaderLen-4]) != le.Uint32(b[packHeaderLen-4:]) {
		return m, errors.New("the file has no header of a pack")
	}
	copy(m[:], b[len(packMagic):])
	return m, nil
}

// appendRecord appends a blob whose checksum is sum.
func appendRecord(b []byte, m marker, h cas.Hash, sum uint32, data []byte) []byte {
	at := len(b)
	b = append(b, m[:]...)
	b = le.AppendUint32(b, uint32(len(data)))
	b = le.AppendUint32(b, sum)
	b = append(b, h[:]...)
	b = le.AppendUint32(b, crc(b[at:]))
	return append(b, data...)
}

// decodeRecord reads the header of the record that b starts with; the data may
// be beyond the end of b.
func decodeRecord(b []byte, m marker) (h cas.Hash, size int, sum uint32, ok bool) {
	if len(b) < recordLen || !bytes.Equal(b[:8], m[:]) || crc(b[:recordLen-4]) != le.Uint32(b[recordLen-4:]) {
		return h, 0, 0, false
	}
	size = int(le.Uint32(b[8:]))
	if size == 0 || size > smallMax {
		return h, 0, 0, false
	}
	copy(h[:], b[16:])
	return h, size, le.Uint32(b[12:]), true
}

// checkRecord returns the data of the record that b is, if it is that of d.
func checkRecord(b []byte, m marker, d cas.Digest) ([]byte, error) {
	h, size, sum, ok := decodeRecord(b, m)
	if !ok || h != d.Hash || int64(size) != d.Size || len(b) != recordLen+size || crc(b[recordLen:]) != sum {
		return nil, errChecksum
	}
	return b[recordLen:], nil
}

// place is a record of a pack, or a stretch without one: then the hash is
// zero. A place ends where the next begins.
type place struct {
	hash cas.Hash
	off  uint32
}

// scanned is what a pack holds.
type scanned struct {
	marker marker
	places []place
	end    uint32 // after the last good record
	lost   int    // stretches without a good record before it
}

// scanPack reads a whole pack. It finds every good record, also behind damaged
// ones; an error means that there is none and no usable header.
func scanPack(b []byte) (s scanned, err error) {
	if len(b) > packMax {
		return s, fmt.Errorf("the pack has %d bytes, want %d at most", len(b), packMax)
	}
	s.marker, err = decodePackHeader(b)
	if err != nil { // then the first record says it
		if len(b) < packHeaderLen+recordLen {
			return s, err
		}
		copy(s.marker[:], b[packHeaderLen:])
		if _, _, _, ok := decodeRecord(b[packHeaderLen:], s.marker); !ok {
			return s, err
		}
	}
	at, gap := packHeaderLen, -1
	trusted := err == nil // false: what looks like a record may be content
	s.end = packHeaderLen
	for at < len(b) {
		h, size, sum, ok := decodeRecord(b[at:], s.marker)
		end := at + recordLen + size
		if ok && end > len(b) {
			ok = false
		}
		if !ok {
			if gap < 0 {
				gap = at
			}
			trusted = false
			next := bytes.Index(b[at+1:], s.marker[:])
			if next < 0 {
				break
			}
			at += 1 + next
			continue
		}
		data := b[at+recordLen : end]
		if crc(data) != sum || !trusted && sha256.Sum256(data) != h {
			if gap < 0 {
				gap = at
			}
			if trusted {
				at = end // its header says where the next one is
			} else {
				at++
			}
			continue
		}
		if gap >= 0 {
			s.places, s.lost, gap = append(s.places, place{off: uint32(gap)}), s.lost+1, -1
		}
		s.places = append(s.places, place{h, uint32(at)})
		at, s.end = end, uint32(end)
	}
	return s, nil
}

// encodeIndex makes the index of a pack:
// magic 12 | marker 8 | end 4 | count 4 | count × (hash 32, offset 4) | checksum 4.
func encodeIndex(m marker, end uint32, places []place) []byte {
	b := make([]byte, 0, 32+36*len(places))
	b = append(append(b, indexMagic...), m[:]...)
	b = le.AppendUint32(b, end)
	b = le.AppendUint32(b, uint32(len(places)))
	for _, p := range places {
		b = le.AppendUint32(append(b, p.hash[:]...), p.off)
	}
	return le.AppendUint32(b, crc(b))
}

func decodeIndex(b []byte) (s scanned, err error) {
	body, s, n, err := decodeTable(b, indexMagic, 36)
	if err != nil {
		return s, err
	}
	s.places = make([]place, n)
	last := uint32(packHeaderLen)
	for i := range s.places {
		p := &s.places[i]
		copy(p.hash[:], body)
		p.off = le.Uint32(body[32:])
		body = body[36:]
		if i == 0 && p.off != packHeaderLen || p.off < last {
			return s, errors.New("the offsets of an index do not grow")
		}
		if i > 0 && s.places[i-1].hash != (cas.Hash{}) && (p.off <= last+recordLen || p.off > last+recordLen+smallMax) {
			return s, errors.New("a record of an index has an impossible length")
		}
		last = p.off
	}
	if n > 0 && (s.end <= last+recordLen || s.end > last+recordLen+smallMax || s.places[n-1].hash == (cas.Hash{})) || n == 0 && s.end != packHeaderLen {
		return s, errors.New("the end of an index is impossible")
	}
	return s, nil
}

// encodeUse makes the file that says when the records of a pack were last
// used, in seconds since 1970, 0 for a dead one:
// magic 12 | marker 8 | end 4 | count 4 | count × (offset 4, seconds 4) | checksum 4.
func encodeUse(m marker, end uint32, offs, used []uint32) []byte {
	b := make([]byte, 0, 32+8*len(offs))
	b = append(append(b, useMagic...), m[:]...)
	b = le.AppendUint32(b, end)
	b = le.AppendUint32(b, uint32(len(offs)))
	for i := range offs {
		b = le.AppendUint32(le.AppendUint32(b, offs[i]), used[i])
	}
	return le.AppendUint32(b, crc(b))
}

// decodeUse calls each for every pair.
func decodeUse(b []byte, m marker, each func(off, used uint32)) error {
	body, s, n, err := decodeTable(b, useMagic, 8)
	if err == nil && s.marker != m {
		err = errors.New("the file belongs to another pack")
	}
	if err != nil {
		return err
	}
	for i := range n {
		each(le.Uint32(body[8*i:]), le.Uint32(body[8*i+4:]))
	}
	return nil
}

func decodeTable(b []byte, magic string, row int) (body []byte, s scanned, n int, err error) {
	const head = 28
	if len(b) < head+4 || string(b[:12]) != magic {
		return nil, s, 0, fmt.Errorf("the file does not start with %q", magic)
	}
	if crc(b[:len(b)-4]) != le.Uint32(b[len(b)-4:]) {
		return nil, s, 0, errChecksum
	}
	copy(s.marker[:], b[12:])
	s.end = le.Uint32(b[20:])
	if uint64(len(b)-head-4) != uint64(row)*uint64(le.Uint32(b[24:])) || s.end > packMax {
		return nil, s, 0, errors.New("the length of a table is wrong")
	}
	return b[head : len(b)-4], s, (len(b) - head - 4) / row, nil
}
