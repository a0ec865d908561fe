package reapi

import (
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// maxWindow is how far back a compressed stream may refer: what zstd's own
// encoder needs at its ordinary levels. The decoder of a stream holds about as
// much memory.
const maxWindow = 32 << 20

// chunk is how much of a blob is handled at a time.
const chunk = 256 << 10

var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// batchDecoder unpacks the small blobs of batches, each into a buffer that it
// never outgrows. batchEncoder packs them.
var (
	batchDecoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(maxMessage), zstd.WithDecoderLowmem(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	})
	batchEncoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err)
		}
		return e
	})
)

// unpack returns a blob of a batch. Its size is known to be small.
func unpack(d cas.Digest, packed []byte) ([]byte, error) {
	out, err := batchDecoder().DecodeAll(packed, make([]byte, 0, d.Size))
	switch {
	case err != nil:
		return nil, skep.Errorf(skep.Invalid, "blob %s: the zstd data is broken, or unfolds to more than %d bytes: %v", d, d.Size, err)
	case int64(len(out)) != d.Size:
		return nil, skep.Errorf(skep.Invalid, "blob %s: the zstd data unfolds to %d bytes", d, len(out))
	}
	return out, nil
}

// Coders of streams hold large buffers, and so are used again.
var (
	decoders = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			panic(err)
		}
		return d
	}}
	encoders = sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err)
		}
		return e
	}}
)

// unfold copies r, a zstd stream, to w and stops when that is more than limit
// bytes.
func unfold(w io.Writer, r io.Reader, limit int64) error {
	dec := decoders.Get().(*zstd.Decoder)
	defer func() {
		_ = dec.Reset(nil) // lets go of r
		decoders.Put(dec)
	}()
	if err := dec.Reset(r); err != nil {
		return err
	}
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for {
		n, err := dec.Read(buf[:])
		if int64(n) > limit {
			return skep.Errorf(skep.Invalid, "the zstd data unfolds to more than the blob's size")
		}
		limit -= int64(n)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
