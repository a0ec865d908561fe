package code

import (
	"archive/zip"
	"encoding/binary"
	"errors"
	"io"

	"github.com/skepdev/skep"
)

// Bounds of a zip: a bot's holds a configuration and some scripts. What claims
// more is refused before it is unpacked, so that reading costs little memory
// whatever was appended to an executable.
const (
	maxEntries   = 1000
	maxDirectory = 1 << 20 // bytes
	maxComment   = 1<<16 - 1
	endSize      = 22 // of the end record without its comment
)

// openZip reads the directory of the zip at the end of r. The error is
// zip.ErrFormat where there is none.
func openZip(r io.ReaderAt, size int64) (*zip.Reader, error) {
	tail := make([]byte, min(size, endSize+maxComment))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	entries, directory, ok := endRecord(tail)
	if !ok {
		return nil, zip.ErrFormat
	}
	// More than 16 bits of entries, or 32 of bytes, also mean the 64-bit form.
	if entries > maxEntries || directory > maxDirectory {
		return nil, skep.Errorf(skep.Invalid, "the zip has %d entries and a directory of %d bytes; %d and %d are the most that a bot has", entries, directory, maxEntries, maxDirectory)
	}
	// The reader believes the directory itself, not what the record says of it.
	return zip.NewReader(&bounded{r: r, left: 2*maxDirectory + maxFile + 4*int64(len(tail))}, size)
}

// endRecord returns what the last end record in tail, the end of a file, says
// of the directory. APPNOTE 4.3.16.
func endRecord(tail []byte) (entries, directory int, ok bool) {
	for i := len(tail) - endSize; i >= 0; i-- {
		b := tail[i:]
		if string(b[:4]) == "PK\x05\x06" && int(binary.LittleEndian.Uint16(b[20:]))+endSize <= len(b) {
			return int(binary.LittleEndian.Uint16(b[10:])), int(binary.LittleEndian.Uint32(b[12:])), true
		}
	}
	return 0, 0, false
}

// bounded reads a limited number of bytes, wherever they are.
type bounded struct {
	r    io.ReaderAt
	left int64
}

func (b *bounded) ReadAt(p []byte, off int64) (int, error) {
	if int64(len(p)) > b.left {
		return 0, skep.Errorf(skep.Invalid, "the zip is larger than that of any bot")
	}
	n, err := b.r.ReadAt(p, off)
	b.left -= int64(n)
	return n, err
}
