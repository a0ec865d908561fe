package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Source is a blob to upload: its bytes, or how to read them. Open is called
// when the storage lacks the blob, once for each try; what it gives must still
// be what the digest says, or the upload fails with an Invalid error.
type Source struct {
	Digest cas.Digest
	Data   []byte // when Open is nil; not changed until the upload ended
	Open   func() (io.ReadSeekCloser, error)
}

// Stats say what an upload did, with the size of each blob.
type Stats struct {
	Cold []int64 // were sent
	Hot  []int64 // the storage had them
}

// Upload makes sure that the storage has all of list. progress, when not nil,
// is told how many bytes more are done, those that the storage had included;
// many may call it at a time.
func (c *Client) Upload(ctx context.Context, list []Source, progress func(n int64)) (Stats, error) {
	u := c.Uploader(ctx, progress)
	for _, s := range list {
		if u.Add(s) != nil {
			break
		}
	}
	return u.Wait()
}

// Groups of blobs that are asked about together: small enough to begin early.
const (
	groupBlobs = 1000
	groupBytes = 8 << 20 // of Data
	groupsOpen = 3       // at once
)

// Uploader uploads blobs while its caller still finds more of them.
type Uploader struct {
	c      *Client
	ctx    context.Context
	tell   func(int64)
	groups *errgroup.Group

	mu     sync.Mutex // held while a group waits for its turn
	seen   map[cas.Digest]struct{}
	next   []Source
	inData int

	counting sync.Mutex
	stats    Stats
	ahead    int64 // bytes told that will be sent again
}

// progress tells of n bytes more that are done.
func (u *Uploader) progress(n int64) {
	if u.tell == nil {
		return
	}
	u.counting.Lock()
	known := min(n, u.ahead)
	u.ahead -= known
	u.counting.Unlock()
	if n > known {
		u.tell(n - known)
	}
}

// Uploader begins an upload. Wait must be called.
func (c *Client) Uploader(ctx context.Context, progress func(n int64)) *Uploader {
	u := &Uploader{c: c, tell: progress, seen: map[cas.Digest]struct{}{}}
	u.groups, u.ctx = errgroup.WithContext(ctx)
	u.groups.SetLimit(groupsOpen)
	return u
}

// Add takes one more blob, and waits while too many are under way. Its error
// is that the upload has failed; Wait says why. Many may call it at a time.
func (u *Uploader) Add(s Source) error {
	if u.ctx.Err() != nil {
		return context.Cause(u.ctx)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, twice := u.seen[s.Digest]; twice || s.Digest == cas.Empty { // the empty blob is everywhere
		return nil
	}
	u.seen[s.Digest] = struct{}{}
	u.next = append(u.next, s)
	u.inData += len(s.Data)
	if len(u.next) >= groupBlobs || u.inData >= groupBytes || s.Digest.Size >= groupBytes {
		u.flush()
	}
	return nil
}

// flush starts the next group; u.mu is held, so that Add waits with it.
func (u *Uploader) flush() {
	if group := u.next; len(group) > 0 {
		u.groups.Go(func() error { return u.group(group) })
	}
	u.next, u.inData = nil, 0
}

// Wait returns when all blobs are in the storage, or with the first error.
func (u *Uploader) Wait() (Stats, error) {
	u.mu.Lock()
	u.flush()
	u.mu.Unlock()
	err := u.groups.Wait()
	u.counting.Lock()
	defer u.counting.Unlock()
	return u.stats, err
}

// group asks which blobs are missing and sends those.
func (u *Uploader) group(list []Source) error {
	limits, err := u.c.Limits(u.ctx)
	if err != nil {
		return err
	}
	digests := make([]cas.Digest, len(list))
	for i, s := range list {
		digests[i] = s.Digest
	}
	found, err := u.c.missing(u.ctx, digests)
	if err != nil {
		return err
	}
	absent := make(map[cas.Digest]bool, len(found))
	for _, d := range found {
		absent[d] = true
	}
	u.counting.Lock()
	var hot int64
	for _, d := range digests {
		if absent[d] {
			u.stats.Cold = append(u.stats.Cold, d.Size)
		} else {
			u.stats.Hot = append(u.stats.Hot, d.Size)
			hot += d.Size
		}
	}
	u.counting.Unlock()
	u.progress(hot)
	return u.send(list, absent, limits)
}

// send uploads the absent of list: small ones together, large ones alone.
func (u *Uploader) send(list []Source, absent map[cas.Digest]bool, limits Limits) error {
	g, ctx := errgroup.WithContext(u.ctx)
	g.SetLimit(u.c.opt.Parallel)
	var batch []Source
	var size int64
	flush := func() {
		if part := batch; len(part) > 0 {
			g.Go(func() error { return u.sendBatch(ctx, part, limits) })
		}
		batch, size = nil, 0
	}
	for _, s := range list {
		n := s.Digest.Size + perBlob
		switch {
		case !absent[s.Digest]:
		case limits.Blob > 0 && s.Digest.Size > limits.Blob:
			g.Go(func() error {
				return skep.Errorf(skep.Exhausted, "blob %s: the storage takes %d bytes at most", s.Digest, limits.Blob)
			})
		case n > limits.Batch:
			g.Go(func() error { return u.c.write(ctx, s, limits, u.progress) })
		default:
			if size+n > limits.Batch {
				flush()
			}
			batch, size = append(batch, s), size+n
		}
	}
	flush()
	return g.Wait()
}

// sendBatch uploads small blobs with one call, and those again that failed in
// a way that may pass.
func (u *Uploader) sendBatch(ctx context.Context, list []Source, limits Limits) error {
	c := u.c
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	open := make(map[cas.Digest]entry, len(list))
	for _, s := range list {
		e, err := c.entry(s, limits)
		if err != nil {
			return err
		}
		open[s.Digest] = e
	}
	var streams []Source
	ask := len(list)
	err := c.retry(ctx, "upload blobs", func(ctx context.Context) (bool, error) {
		list = slices.DeleteFunc(list, func(s Source) bool { _, is := open[s.Digest]; return !is })
		ask = min(ask, len(list))
		msg := [][]byte{appendString(nil, 1, c.instance)}
		for _, s := range list[:ask] {
			e := open[s.Digest]
			msg = append(msg, e.head, e.data, e.tail)
		}
		answer, err := c.unary(ctx, methodBatchUpdate, msg, nil)
		if err != nil {
			if ask == 1 && transient(err) { // a stream goes on where it was cut
				streams = append(streams, list[0])
				delete(open, list[0].Digest)
			}
			ask = max(1, ask/2)
			if len(open) == 0 {
				return true, nil
			}
			return false, err
		}
		results, err := decodeBatch(answer, 2)
		if err != nil {
			return false, malformed("upload blobs", err)
		}
		var bad error
		progress := false
		for _, r := range results {
			e, is := open[r.digest]
			switch {
			case !is:
				continue
			case codeOf(r.err) == unimplemented: // as some storages say for a single blob
				streams = append(streams, e.source)
			case r.err != nil:
				if bad == nil || !transient(r.err) {
					bad = fmt.Errorf("blob %s: %w", r.digest, r.err)
				}
				continue
			default:
				u.progress(r.digest.Size)
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
			bad = statusf(unavailable, "the answer does not tell of %d blobs", len(open))
		}
		return progress, bad
	})
	for _, s := range streams {
		if err == nil {
			err = c.writeHeld(ctx, s, limits, u.progress)
		}
	}
	return err
}

// entry is a request of a batch in three pieces.
type entry struct {
	source           Source
	head, data, tail []byte
}

// entry reads a blob, and writes what stands around it.
func (c *Client) entry(s Source, limits Limits) (e entry, err error) {
	e.source, e.data = s, s.Data
	if s.Open != nil {
		if e.data, err = readSource(s); err != nil {
			return e, err
		}
	}
	if int64(len(e.data)) != s.Digest.Size {
		return e, changed(s.Digest)
	}
	if limits.ZstdBatch && c.pays(s.Digest.Size) {
		if small := c.zstd.small(e.data); small != nil {
			e.data, e.tail = small, appendInt(nil, 3, zstdCode)
		}
	}
	body := cas.AppendDigest(nil, 1, s.Digest)
	body = bytesHead(body, 2, len(e.data))
	e.head = append(bytesHead(nil, 2, len(body)+len(e.data)+len(e.tail)), body...)
	return e, nil
}

// readSource reads a small blob. It was hashed before, and the storage hashes
// it again; the size keeps the message in bounds.
func readSource(s Source) ([]byte, error) {
	f, err := s.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, s.Digest.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return nil, changed(s.Digest)
		}
		return nil, err
	}
	if n, _ := f.Read(make([]byte, 1)); n > 0 {
		return nil, changed(s.Digest)
	}
	return data, nil
}

func changed(d cas.Digest) error {
	return skep.Errorf(skep.Invalid, "a file has changed since it was hashed as %s", d)
}
