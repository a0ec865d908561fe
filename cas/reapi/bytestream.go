package reapi

import (
	"context"
	"errors"
	"io"

	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/klauspost/compress/zstd"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

func isMissing(err error) bool {
	_, ok := errors.AsType[*cas.MissingError](err)
	return ok
}

// Read sends a blob, or a part of it. Offsets count bytes of the blob, also
// when it is sent compressed.
func (s *Service) Read(req *bspb.ReadRequest, out bspb.ByteStream_ReadServer) error {
	ctx := out.Context()
	r, err := ParseRead(req.ResourceName)
	if err != nil {
		return s.status(ctx, err, "")
	}
	d := r.Digest
	switch {
	case req.ReadOffset < 0 || req.ReadOffset > d.Size:
		return status.Errorf(codes.OutOfRange, "blob %s: read_offset is %d, want 0 to %d", d, req.ReadOffset, d.Size)
	case req.ReadLimit < 0:
		return s.status(ctx, skep.Invalidf("read_limit", "is negative"), "")
	case r.Zstd && req.ReadLimit != 0:
		return s.status(ctx, skep.Invalidf("read_limit", "must be 0 for a compressed blob"), "")
	}
	err = guarded(func(t *ticks) error { return s.read(ctx, r, req.ReadOffset, req.ReadLimit, &sender{out, t}) })
	return s.status(ctx, err, d.String())
}

// sender sends the messages of a Read.
type sender struct {
	out bspb.ByteStream_ReadServer
	t   *ticks
}

// send sends data, which it frees.
func (s *sender) send(data mem.Buffer) error {
	defer data.Free()
	s.t.Add(1)
	return s.out.SendMsg(&readChunk{data})
}

func (s *Service) read(ctx context.Context, r Resource, offset, limit int64, out *sender) error {
	var src io.Reader
	want := r.Digest.Size - offset
	if r.Digest != cas.Empty {
		body, err := s.store.Open(ctx, r.Digest, offset)
		if err != nil {
			return err
		}
		defer body.Close()
		src = body
	}
	if limit > 0 && limit < want {
		want = limit
	}
	if want == 0 && !r.Zstd {
		return nil
	}
	if !r.Zstd {
		return send(out, src, want)
	}
	if err := s.coders.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.coders.Release(1)
	w := &chunkWriter{out: out}
	enc := encoders.Get().(*zstd.Encoder)
	defer func() {
		enc.Reset(nil)
		encoders.Put(enc)
	}()
	enc.Reset(w)
	if src != nil {
		buf := chunks.Get().(*[chunk]byte)
		defer chunks.Put(buf)
		if err := copyN(enc, src, want, buf[:]); err != nil {
			return err
		}
	}
	if err := enc.Close(); err != nil {
		return err
	}
	return w.flush()
}

// send sends n bytes of src.
func send(out *sender, src io.Reader, n int64) error {
	for n > 0 {
		b := chunkPool{}.Get(int(min(n, chunk)))
		k, err := io.ReadFull(src, *b)
		if err != nil {
			chunkPool{}.Put(b)
			return short(err, n-int64(k))
		}
		if err := out.send(mem.NewBuffer(b, chunkPool{})); err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

func copyN(w io.Writer, src io.Reader, n int64, buf []byte) error {
	for n > 0 {
		k, err := io.ReadFull(src, buf[:min(n, int64(len(buf)))])
		if err != nil {
			return short(err, n-int64(k))
		}
		if _, err := w.Write(buf[:k]); err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// short says what it means that a store gave too little.
func short(err error, left int64) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return skep.Errorf(skep.Internal, "the store ended a blob %d bytes too early", left)
	}
	return err
}

// chunkWriter sends what is written to it in messages of chunk bytes.
type chunkWriter struct {
	out *sender
	buf []byte
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	if len(w.buf) >= chunk {
		return len(p), w.flush()
	}
	return len(p), nil
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.out.send(mem.Copy(w.buf, mem.DefaultBufferPool()))
	w.buf = w.buf[:0]
	return err
}

// Write takes a blob in. Bytes are kept as they come: a write that breaks off
// can be resumed under the same name at the offset that QueryWriteStatus
// tells, or be sent again from the start.
//
// committed_size is the size of the blob, whether it came compressed or not.
// Only when a compressed blob is here already and more of it was to come, it
// is -1, as REAPI says: the client then knows that it need not go on.
func (s *Service) Write(in bspb.ByteStream_WriteServer) error {
	ctx := in.Context()
	msg := &writeChunk{}
	err := in.RecvMsg(msg)
	if errors.Is(err, io.EOF) {
		return s.status(ctx, skep.Invalidf("resource_name", "is required: the stream ended before its first message"), "")
	}
	if err != nil {
		return s.status(ctx, err, "")
	}
	r, err := ParseWrite(msg.ResourceName)
	if err != nil {
		return s.status(ctx, err, "")
	}
	var size int64
	err = guarded(func(t *ticks) (err error) {
		defer msg.free()
		size, err = s.write(ctx, r, &messages{in: in, t: t, msg: msg, fresh: true, name: msg.ResourceName, digest: r.Digest})
		return err
	})
	if err != nil {
		return s.status(ctx, err, r.Digest.String())
	}
	return in.SendAndClose(&bspb.WriteResponse{CommittedSize: size})
}

func (s *Service) write(ctx context.Context, r Resource, msgs *messages) (int64, error) {
	d, first := r.Digest, &msgs.msg.WriteRequest
	if first.WriteOffset < 0 {
		return 0, skep.Invalidf("write_offset", "is negative")
	}
	here, err := s.has(ctx, d)
	if err != nil {
		return 0, err
	}
	if here {
		if r.Zstd && !first.FinishWrite {
			return -1, nil
		}
		return d.Size, nil
	}
	up, err := s.store.Upload(ctx, d, r.uploadID())
	if err != nil {
		return 0, err
	}
	defer up.Close()
	begin := first.WriteOffset // first changes with the next message
	if begin > up.Offset() {
		return 0, status.Errorf(codes.OutOfRange, "blob %s: write_offset is %d, but %d bytes are here; go on from there", d, begin, up.Offset())
	}
	sink := &overlap{up: up, drop: up.Offset() - begin}
	if r.Zstd {
		if err := s.coders.Acquire(ctx, 1); err != nil {
			return 0, err
		}
		defer s.coders.Release(1)
		msgs.free = true
		if err := unfold(sink, msgs, d.Size-begin); err != nil {
			return 0, badStream(err, d)
		}
		// What the decoder did not ask for must be nothing.
		if n, err := msgs.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			return 0, badStream(err, d)
		}
	} else {
		msgs.offset = begin
		if err := msgs.copyTo(sink); err != nil {
			return 0, err
		}
	}
	if up.Offset() != d.Size {
		return 0, skep.Errorf(skep.Invalid, "blob %s: the stream ended after %d bytes", d, up.Offset())
	}
	if err := up.Commit(ctx); err != nil {
		return 0, err
	}
	return d.Size, nil
}

// badStream says which of the two sides of a zstd stream failed.
func badStream(err error, d cas.Digest) error {
	if _, ok := status.FromError(err); ok && err != nil {
		return err
	}
	switch {
	case err == nil:
		return skep.Errorf(skep.Invalid, "blob %s: data after the end of the zstd stream", d)
	case skep.KindOf(err) != skep.Internal || errors.Is(err, errStore):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return skep.Errorf(skep.Invalid, "blob %s: the zstd stream is cut off", d)
	default:
		return skep.Errorf(skep.Invalid, "blob %s: the zstd stream is broken: %v", d, err)
	}
}

// errStore marks errors of the store, as against those of the data.
var errStore = errors.New("write to the store")

// overlap leaves out what the store has already when a write is sent again
// from an earlier offset. What was left out is compared at the end, by the
// hash over all.
type overlap struct {
	up   Upload
	drop int64
}

func (o *overlap) Write(p []byte) (int, error) {
	n := int(min(int64(len(p)), o.drop))
	o.drop -= int64(n)
	if n == len(p) {
		return n, nil
	}
	k, err := o.up.Write(p[n:])
	if err != nil && skep.KindOf(err) == skep.Internal {
		err = errors.Join(errStore, err)
	}
	return n + k, err
}

// messages reads the data of a Write.
type messages struct {
	in     bspb.ByteStream_WriteServer
	t      *ticks
	msg    *writeChunk // the last one; its bytes are good until the next comes
	fresh  bool        // it is still to be read
	rest   []byte
	name   string
	digest cas.Digest
	offset int64 // of the next message
	free   bool  // offsets mean nothing: that of a compressed stream mixes two kinds of bytes
	ended  bool
}

// message returns the data of the next message, io.EOF after the last.
func (m *messages) message() ([]byte, error) {
	if m.ended {
		return nil, io.EOF
	}
	m.t.Add(1)
	if !m.fresh {
		if err := m.in.RecvMsg(m.msg); err != nil {
			return nil, err // io.EOF: the client closed its side
		}
	}
	m.fresh = false
	req := &m.msg.WriteRequest
	if req.ResourceName != "" && req.ResourceName != m.name {
		return nil, skep.Invalidf("resource_name", "changes within a stream")
	}
	if !m.free {
		if req.WriteOffset != m.offset {
			return nil, skep.Invalidf("write_offset", "is %d, want %d: the bytes of a blob come in order", req.WriteOffset, m.offset)
		}
		m.offset += int64(len(req.Data))
		if m.offset > m.digest.Size {
			return nil, skep.Errorf(skep.Invalid, "%s: the stream has %d bytes and more", m.name, m.offset)
		}
	}
	if req.FinishWrite {
		if m.ended = true; !m.free && m.offset != m.digest.Size {
			return nil, skep.Errorf(skep.Invalid, "%s: the stream ended after %d bytes", m.name, m.offset)
		}
	}
	return req.Data, nil
}

func (m *messages) copyTo(w io.Writer) error {
	for {
		b, err := m.message()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
}

func (m *messages) Read(p []byte) (int, error) {
	for len(m.rest) == 0 {
		b, err := m.message()
		if err != nil {
			return 0, err
		}
		m.rest = b
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

// has reports whether a blob is here; it then stays for an hour at least.
func (s *Service) has(ctx context.Context, d cas.Digest) (bool, error) {
	if d == cas.Empty {
		return true, nil
	}
	missing, err := s.store.Missing(ctx, []cas.Digest{d})
	return len(missing) == 0, err
}

// QueryWriteStatus says how many bytes of a blob are here: where to resume.
// They are bytes of the blob, also for a compressed write.
func (s *Service) QueryWriteStatus(ctx context.Context, req *bspb.QueryWriteStatusRequest) (*bspb.QueryWriteStatusResponse, error) {
	r, err := ParseWrite(req.ResourceName)
	if err != nil {
		return nil, s.status(ctx, err, "")
	}
	here, err := s.has(ctx, r.Digest)
	if err != nil {
		return nil, s.status(ctx, err, r.Digest.String())
	}
	if here {
		return &bspb.QueryWriteStatusResponse{CommittedSize: r.Digest.Size, Complete: true}, nil
	}
	return &bspb.QueryWriteStatusResponse{CommittedSize: s.store.UploadOffset(r.Digest, r.uploadID())}, nil
}
