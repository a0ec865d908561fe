package cas

import (
	"encoding/binary"
	"slices"

	"github.com/skepdev/skep"
)

const (
	// MaxBundle bounds a bundle in bytes, with its lengths.
	MaxBundle = 4 << 20
	// MaxBundleBlobs bounds how many blobs it has.
	MaxBundleBlobs = 16384
	// MaxBundled is the size of the largest blob that goes in bundles.
	MaxBundled = 1 << 20
	// BundleHead is the size of the length in front of each blob.
	BundleHead = 4
	// NotInBundle stands for the length of a blob that was asked for and is not
	// there.
	NotInBundle = 1<<32 - 1
)

// Bundle is small blobs on their way together: each is its length in four bytes,
// the highest first, and so many bytes. wire: docs/wire/cas.md#bundles
type Bundle struct {
	wire  []byte
	blobs []int // where each begins in wire; its length stands before
}

// Fits reports whether a blob of n bytes has room.
func (b *Bundle) Fits(n int64) bool {
	return n <= MaxBundled && len(b.blobs) < MaxBundleBlobs && int64(len(b.wire))+BundleHead+n <= MaxBundle
}

// Append adds a blob of n bytes, of which Fits was asked, and returns where they
// are to be written, with room for one more. It is valid until the next call.
func (b *Bundle) Append(n int) []byte {
	b.wire = slices.Grow(b.wire, BundleHead+n+1)
	b.wire = binary.BigEndian.AppendUint32(b.wire, uint32(n))
	at := len(b.wire)
	b.blobs, b.wire = append(b.blobs, at), b.wire[:at+n]
	return b.wire[at : at+n : at+n+1]
}

// Drop takes the last blob away again.
func (b *Bundle) Drop() {
	last := len(b.blobs) - 1
	b.wire, b.blobs = b.wire[:b.blobs[last]-BundleHead], b.blobs[:last]
}

// Reset empties the bundle, and keeps its memory.
func (b *Bundle) Reset() { b.wire, b.blobs = b.wire[:0], b.blobs[:0] }

// Len is the number of blobs.
func (b *Bundle) Len() int { return len(b.blobs) }

// Wire is all of it as it is sent.
func (b *Bundle) Wire() []byte { return b.wire }

// Blob is the content of one.
func (b *Bundle) Blob(i int) []byte {
	end := len(b.wire)
	if i+1 < len(b.blobs) {
		end = b.blobs[i+1] - BundleHead
	}
	return b.wire[b.blobs[i]:end:end]
}

// DecodeBundle reads what Wire gives. The blobs lie in wire. An Invalid error says
// what is wrong with it.
func DecodeBundle(wire []byte) (*Bundle, error) {
	b := &Bundle{wire: wire}
	for at := 0; at < len(wire); {
		left := len(wire) - at - BundleHead
		if left < 0 {
			return nil, skep.Errorf(skep.Invalid, "the bundle ends within the length of its blob %d", len(b.blobs))
		}
		switch n := int64(binary.BigEndian.Uint32(wire[at:])); {
		case len(b.blobs) == MaxBundleBlobs:
			return nil, skep.Errorf(skep.Invalid, "the bundle has more than %d blobs", MaxBundleBlobs)
		case n > MaxBundled:
			return nil, skep.Errorf(skep.Invalid, "blob %d of the bundle has %d bytes, want %d at most", len(b.blobs), n, MaxBundled)
		case n > int64(left):
			return nil, skep.Errorf(skep.Invalid, "the bundle ends within its blob %d: %d of %d bytes are there", len(b.blobs), left, n)
		default:
			at += BundleHead
			b.blobs = append(b.blobs, at)
			at += int(n)
		}
	}
	return b, nil
}
