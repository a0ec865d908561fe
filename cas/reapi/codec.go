package reapi

import (
	"errors"

	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that the others use
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// codec is grpc's own for protobuf, but for the two messages that carry large
// blobs: of these the bytes are not copied once more, which is what most of
// the time of a transfer went into.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

// Fields of the messages of ByteStream.
const (
	fieldData        = 10 // of ReadResponse and WriteRequest
	fieldName        = 1
	fieldWriteOffset = 2
	fieldFinish      = 3
)

// readChunk is a ReadResponse whose bytes go to the line as they are.
type readChunk struct{ data mem.Buffer }

// writeChunk is a WriteRequest whose Data is that of buf.
type writeChunk struct {
	bspb.WriteRequest
	buf mem.Buffer
}

// free gives the bytes back; they must not be used after it.
func (w *writeChunk) free() {
	if w.buf != nil {
		w.buf.Free()
		w.buf, w.Data = nil, nil
	}
}

// chunkPool hands out buffers of chunk bytes.
type chunkPool struct{}

func (chunkPool) Get(n int) *[]byte {
	b := chunks.Get().(*[chunk]byte)[:n]
	return &b
}

func (chunkPool) Put(b *[]byte) { chunks.Put((*[chunk]byte)((*b)[:chunk])) }

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*readChunk)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head := make([]byte, 0, 12)
	head = protowire.AppendTag(head, fieldData, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(r.data.Len()))
	r.data.Ref()
	return mem.BufferSlice{mem.SliceBuffer(head), r.data}, nil
}

// Unmarshal decodes a message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	w, ok := v.(*writeChunk)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	w.free()
	w.WriteRequest.Reset()
	buf := data.MaterializeToBuffer(&frames)
	if err := w.decode(buf.ReadOnlyData()); err != nil {
		buf.Free()
		return err
	}
	w.buf = buf
	return nil
}

var errMalformed = errors.New("malformed WriteRequest")

// decode reads a message; Data is a part of b.
func (w *writeChunk) decode(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		switch {
		case num == fieldData && typ == protowire.BytesType:
			w.Data, n = protowire.ConsumeBytes(b)
		case num == fieldName && typ == protowire.BytesType:
			w.ResourceName, n = protowire.ConsumeString(b)
		case num == fieldWriteOffset && typ == protowire.VarintType:
			var x uint64
			x, n = protowire.ConsumeVarint(b)
			w.WriteOffset = int64(x)
		case num == fieldFinish && typ == protowire.VarintType:
			var x uint64
			x, n = protowire.ConsumeVarint(b)
			w.FinishWrite = x != 0
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
	}
	return nil
}
