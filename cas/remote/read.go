package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// CorruptError says that a storage handed out other bytes than a digest names.
type CorruptError struct {
	Want cas.Digest
	Got  cas.Digest // of the bytes that came; a Size above Want's is where reading stopped
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("blob %s came as other bytes, %s", e.Want, e.Got)
}

// corruptTries is how often a blob is asked for that came damaged.
const corruptTries = 3

// perBlob is what a blob costs in a message beside its bytes.
const perBlob = 160

// ReadBatch reads blobs that are small, and others by streams but whole in
// memory, and calls each with every one: once for a digest however often it
// stands in list, from Options.Parallel goroutines at a time. The bytes were
// verified and are each's until it returns. An error of each ends the call.
// After the others were read, the absent ones are a *cas.MissingError.
func (c *Client) ReadBatch(ctx context.Context, list []cas.Digest, each func(cas.Digest, []byte) error) error {
	limits, err := c.Limits(ctx)
	if err != nil {
		return err
	}
	var (
		mu     sync.Mutex
		absent []cas.Digest
	)
	lost := func(d cas.Digest) {
		mu.Lock()
		defer mu.Unlock()
		absent = append(absent, d)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opt.Parallel)
	seen := make(map[cas.Digest]bool, len(list))
	var batch []cas.Digest
	var size int64
	flush := func() {
		if len(batch) > 0 {
			part := batch
			g.Go(func() error { return c.readSome(ctx, limits, part, each, lost) })
		}
		batch, size = nil, 0
	}
	for _, d := range list {
		switch n := d.Size + perBlob; {
		case ctx.Err() != nil || seen[d]:
			continue
		case d == cas.Empty:
			g.Go(func() error { return each(d, nil) })
		case n > limits.Batch:
			g.Go(func() error { return c.readOne(ctx, d, each, lost) })
		default:
			if size+n > limits.Batch {
				flush()
			}
			batch, size = append(batch, d), size+n
		}
		seen[d] = true
	}
	flush()
	if err := g.Wait(); err != nil {
		return err
	}
	if len(absent) > 0 {
		return &cas.MissingError{Digests: absent}
	}
	return nil
}

// buffers are for the answers of batches.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// readSome reads a batch. What an answer lacks or has damaged is asked for
// again.
func (c *Client) readSome(ctx context.Context, limits Limits, list []cas.Digest, each func(cas.Digest, []byte) error, lost func(cas.Digest)) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	open := make(map[cas.Digest]bool, len(list))
	var largest int64
	for _, d := range list {
		open[d] = true
		largest = max(largest, d.Size)
	}
	if c.loopback && limits.Bundles && largest <= cas.MaxBundled && len(list) <= cas.MaxBundleBlobs {
		err := c.readBundle(ctx, list, open, each, lost)
		if permanent := (permanentError{}); errors.As(err, &permanent) {
			return permanent.error
		}
		if len(open) == 0 {
			return nil
		}
		// What is lost of it goes on as ever.
		c.opt.Log.DebugContext(ctx, "blobs go on by gRPC", "left", len(open), "err", err)
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	var streams []cas.Digest
	room := 0
	for _, d := range list {
		room += int(d.Size) + perBlob
	}
	if cap(*buf) < room { // as much as we ask for, and more only as it comes
		*buf = make([]byte, 0, room)
	}
	damaged, ask := 0, len(list)
	err := c.retry(ctx, "read blobs", func(ctx context.Context) (bool, error) {
		list = slices.DeleteFunc(list, func(d cas.Digest) bool { return !open[d] })
		msg := appendString(nil, 1, c.instance)
		ask = min(ask, len(list))
		for _, d := range list[:ask] {
			msg = cas.AppendDigest(msg, 2, d)
		}
		answer, err := c.unary(ctx, methodBatchRead, [][]byte{msg}, *buf)
		if err != nil {
			if ask == 1 && transient(err) { // a stream goes on where it was cut
				streams = append(streams, list[0])
				delete(open, list[0])
			}
			ask = max(1, ask/2)
			if len(open) == 0 {
				return true, nil
			}
			return false, err
		}
		*buf = answer
		results, err := decodeBatch(answer, 3)
		if err != nil {
			return false, malformed("read blobs", err)
		}
		progress := false
		var bad error
		for _, r := range results {
			if !open[r.digest] {
				continue
			}
			switch {
			case codeOf(r.err) == notFound:
				lost(r.digest)
			case r.err != nil && (codeOf(r.err) == resourceExhausted || codeOf(r.err) == invalidArgument):
				streams = append(streams, r.digest) // too much for a batch
			case r.err != nil:
				bad = r.err
				continue
			case r.compressor != identity || cas.Sum(r.data) != r.digest:
				damaged++
				bad = statusf(dataLoss, "%v", &CorruptError{r.digest, cas.Sum(r.data)})
				if damaged >= corruptTries {
					bad = permanentError{skep.Errorf(skep.Unavailable, "%w", &CorruptError{r.digest, cas.Sum(r.data)})}
				}
				continue
			default:
				if err := each(r.digest, r.data); err != nil {
					return true, permanentError{err}
				}
			}
			delete(open, r.digest)
			progress = true
		}
		switch {
		case len(open) == 0:
			return progress, nil
		case bad == nil && progress:
			ask *= 2
			return true, errMore
		case bad == nil:
			bad = statusf(unavailable, "%d blobs are not in the answer", len(open))
		}
		return progress, bad
	})
	if err != nil {
		return err
	}
	for _, d := range streams {
		if err := c.readWhole(ctx, d, each, lost); err != nil {
			return err
		}
	}
	return nil
}

// readOne is readWhole at a place among the transfers.
func (c *Client) readOne(ctx context.Context, d cas.Digest, each func(cas.Digest, []byte) error, lost func(cas.Digest)) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	return c.readWhole(ctx, d, each, lost)
}

func (c *Client) readWhole(ctx context.Context, d cas.Digest, each func(cas.Digest, []byte) error, lost func(cas.Digest)) error {
	var b bytes.Buffer // grows with what arrives
	err := c.read(ctx, d, &b)
	if missing := (*cas.MissingError)(nil); errors.As(err, &missing) {
		lost(d)
		return nil
	}
	if err != nil {
		return err
	}
	return each(d, b.Bytes())
}

// Blob returns one blob that fits into memory.
func (c *Client) Blob(ctx context.Context, d cas.Digest) (data []byte, err error) {
	err = c.ReadBatch(ctx, []cas.Digest{d}, func(_ cas.Digest, b []byte) error {
		data = slices.Clone(b)
		return nil
	})
	return data, err
}

// Read writes a blob of any size to w. When the connection breaks it goes on
// where it stopped. The last bytes reach w before the whole is verified: w's
// content counts only when the result is nil. An absent blob is a
// *cas.MissingError, one with other bytes a *CorruptError.
func (c *Client) Read(ctx context.Context, d cas.Digest, w io.Writer) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	return c.read(ctx, d, w)
}

func (c *Client) read(ctx context.Context, d cas.Digest, w io.Writer) error {
	limits, err := c.Limits(ctx)
	if err != nil {
		return err
	}
	in := &incoming{want: d, w: w, hash: sha256.New()}
	compressed := limits.Zstd && c.pays(d.Size)
	if c.isPlain(limits, d.Size) {
		err := c.readPlain(ctx, in)
		if permanent := (permanentError{}); errors.As(err, &permanent) {
			return permanent.error
		}
		if err != nil { // what is lost of it goes on as ever
			c.opt.Log.DebugContext(ctx, "blob goes on by gRPC", "blob", d, "at", in.n, "err", err)
		}
	}
	err = c.retry(ctx, "read blob", func(ctx context.Context) (bool, error) {
		before := in.n
		if in.n == d.Size {
			return false, nil // all is here; only the end of the call was lost
		}
		err := c.readOnce(ctx, in, compressed)
		switch {
		case codeOf(err) == notFound:
			err = permanentError{&cas.MissingError{Digests: []cas.Digest{d}}}
		case compressed && (codeOf(err) == unimplemented || codeOf(err) == invalidArgument):
			compressed = false
			return true, statusf(unavailable, "%v", err)
		}
		return in.n > before, err
	})
	if err != nil {
		return err
	}
	if got := (cas.Digest{Hash: cas.Hash(in.hash.Sum(nil)), Size: in.n}); got != d {
		return skep.Errorf(skep.Unavailable, "content-addressed storage at %s: %w", c.base, &CorruptError{d, got})
	}
	return nil
}

// incoming is a blob on its way to w.
type incoming struct {
	want cas.Digest
	w    io.Writer
	hash hash.Hash
	n    int64
}

// Write takes the next bytes; more than the digest's size are refused.
func (in *incoming) Write(p []byte) (int, error) {
	if int64(len(p)) > in.want.Size-in.n {
		return 0, permanentError{skep.Errorf(skep.Unavailable, "%w", &CorruptError{in.want, cas.Digest{Size: in.n + int64(len(p))}})}
	}
	hashed := make(chan struct{})
	go func() { // while the kernel copies
		in.hash.Write(p)
		close(hashed)
	}()
	n, err := in.pass(p)
	<-hashed
	return n, err
}

// pass gives w what is hashed, or is being. What w does not take fails for good:
// that more was hashed does not matter.
func (in *incoming) pass(p []byte) (int, error) {
	n, err := in.w.Write(p)
	in.n += int64(n)
	if err != nil {
		return n, permanentError{err}
	}
	return n, nil
}

// readOnce reads from where in stands.
func (c *Client) readOnce(ctx context.Context, in *incoming, compressed bool) error {
	msg := appendInt(appendString(nil, 1, c.resource(in.want, compressed)), 2, in.n)
	body := one(msg)
	s, err := c.open(ctx, methodRead, body, int64(len(msg)+frameHeader), 0)
	if err != nil {
		return err
	}
	defer s.close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	pieces := func(fn func([]byte) error) error {
		for {
			m, err := s.recv(*buf, maxAnswer)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			*buf = m
			data, err := decodeRead(m)
			if err != nil {
				return malformed("read blob", err)
			}
			if err := fn(data); err != nil {
				return err
			}
		}
	}
	if compressed {
		err = c.zstd.decode(in, s.close, pieces)
	} else {
		err = pieces(func(p []byte) error { _, err := in.Write(p); return err })
	}
	if err == nil && in.n < in.want.Size {
		err = statusf(unavailable, "the blob ended after %d of %d bytes", in.n, in.want.Size)
	}
	return err
}
