package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// unnamedHeader is what a skep server that takes blobs without their digest
// answers with its capabilities. wire: docs/wire/cas.md#unnamed-writes
const unnamedHeader = "skep-unnamed-writes"

// elsewhereHeader is where a skep server that keeps no blobs names the storage
// to use. wire: docs/wire/cas.md#storage-elsewhere
const elsewhereHeader = "skep-storage"

const (
	unnamedFrom  = 16 << 20  // bytes of a file from which sending it in vain may pay
	unnamedChunk = 256 << 10 // bytes of a message: what was hashed is in the processor's cache when it is sent
	unnamedAhead = 6         // messages in memory
)

// ErrNotTaken says that a file must be hashed and added to the upload in the
// ordinary way.
var ErrNotTaken = errors.New("the storage does not take this file without its digest")

// Hash sends a file of size bytes and hashes it at the same time, so that it
// takes as long as the slower of the two sides and not both, one after the
// other. Only a skep server on loopback takes files in that way, and only large
// ones are worth it: the bytes are sent in vain when the storage has them
// already. In all other cases, and when the storage fails, the error is
// ErrNotTaken. Other errors are those of file and of unchanged, which is called
// when all was read and whose error means that nothing is to be kept. Many may
// call it at a time.
func (u *Uploader) Hash(file io.ReaderAt, size int64, unchanged func() error) (cas.Digest, error) {
	if !u.c.loopback || size < unnamedFrom {
		return cas.Digest{}, ErrNotTaken
	}
	limits, err := u.c.Limits(u.ctx)
	if err != nil || !limits.Unnamed || limits.Blob > 0 && size > limits.Blob {
		return cas.Digest{}, ErrNotTaken // Wait tells of err
	}
	if err := u.c.hold(u.ctx); err != nil {
		return cas.Digest{}, err
	}
	defer u.c.release()
	b := &unnamedBody{
		name: u.c.within("uploads/" + newUUID()), size: size, file: file, unchanged: unchanged, told: u.progress,
		free: make(chan *unnamedMessage, unnamedAhead), full: make(chan *unnamedMessage, unnamedAhead), quit: make(chan struct{}),
	}
	if len(b.name) > maxUnnamedName/2 {
		return cas.Digest{}, ErrNotTaken
	}
	d, err := u.c.writeUnnamed(u.ctx, b)
	if err == nil {
		u.progress(size - b.sent)
		u.mu.Lock()
		u.seen[d] = struct{}{}
		u.mu.Unlock()
		u.counting.Lock()
		u.stats.Cold = append(u.stats.Cold, size)
		u.counting.Unlock()
		return d, nil
	}
	u.counting.Lock()
	u.ahead += b.sent
	u.counting.Unlock()
	switch {
	case b.err != nil:
		return cas.Digest{}, b.err
	case u.ctx.Err() != nil:
		return cas.Digest{}, context.Cause(u.ctx)
	}
	u.c.opt.Log.DebugContext(u.ctx, "file is hashed before it is sent", "err", err)
	return cas.Digest{}, ErrNotTaken
}

// writeUnnamed makes the call, once: what fails is done in the ordinary way,
// which resumes.
func (c *Client) writeUnnamed(ctx context.Context, b *unnamedBody) (cas.Digest, error) {
	var reading sync.WaitGroup
	reading.Go(b.read)
	defer reading.Wait()
	defer b.stop() // nothing is told after it
	s, err := c.open(ctx, methodWrite, b, -1, 0)
	if err != nil {
		return cas.Digest{}, err
	}
	defer s.close()
	answer, err := s.recv(nil, maxAnswer)
	if err != nil {
		return cas.Digest{}, err
	}
	if _, err := s.next(maxAnswer); !errors.Is(err, io.EOF) {
		return cas.Digest{}, fmt.Errorf("after the answer: %w", err)
	}
	committed, _, err := decodeWrite(answer)
	if err != nil {
		return cas.Digest{}, err
	}
	d, complete := b.result()
	if committed != b.size || !complete { // it speaks of another blob
		return cas.Digest{}, statusf(unimplemented, "%d bytes were taken", committed)
	}
	return d, nil
}

// unnamedBody makes the messages of a Write. One goroutine reads and hashes the
// file, another sends.
type unnamedBody struct {
	name      string // up to the id
	size      int64
	file      io.ReaderAt
	unchanged func() error
	told      func(int64)

	free, full chan *unnamedMessage
	quit       chan struct{}
	once       sync.Once

	// Of the reading goroutine until it has ended.
	err    error // of the file
	digest cas.Digest
	whole  bool // all was hashed

	mu   sync.Mutex // the transport reads on after the call ended
	cur  *unnamedMessage
	out  []byte // what of cur is still to be sent
	end  bool   // cur was the last
	gone bool
	sent int64 // bytes told
}

// unnamedMessage is a framed message: room in front of the data.
type unnamedMessage struct {
	buf   [room + maxUnnamedName + unnamedChunk]byte
	frame []byte
	n     int // bytes of the file
	last  bool
}

const maxUnnamedName = 512

// stop ends the reading, and what the transport may still want.
func (b *unnamedBody) stop() {
	b.once.Do(func() { close(b.quit) })
	b.mu.Lock() // whoever has it waits for b.full, which now closes
	defer b.mu.Unlock()
	b.gone = true
}

// read hashes the file and hands on its messages.
func (b *unnamedBody) read() {
	defer close(b.full)
	sum := sha256.New()
	made := 0
	for at := int64(0); ; {
		var m *unnamedMessage
		if made < unnamedAhead {
			made++
			m = new(unnamedMessage)
		} else {
			select {
			case m = <-b.free:
			case <-b.quit:
				return
			}
		}
		const start = room + maxUnnamedName
		m.n = int(min(unnamedChunk, b.size-at))
		data := m.buf[start : start+m.n]
		if n, err := b.file.ReadAt(data, at); n < m.n {
			if b.err = err; !errors.Is(err, io.EOF) {
				return
			}
			if b.err = b.unchanged(); b.err == nil {
				b.err = skep.Errorf(skep.Invalid, "a file has changed while it was sent: it ends after %d of %d bytes", at+int64(n), b.size)
			}
			return
		}
		sum.Write(data)
		var fields []byte
		if at == 0 {
			fields = appendString(fields, 1, fmt.Sprintf("%s/skep-unnamed/%d", b.name, b.size))
		}
		from := at
		if at += int64(m.n); at == b.size {
			if b.err = b.unchanged(); b.err != nil {
				return
			}
			b.digest, b.whole, m.last = cas.Digest{Hash: cas.Hash(sum.Sum(nil)), Size: b.size}, true, true
			fields = appendString(fields, 1, b.name+"/blobs/"+b.digest.String())
		}
		fields = appendInt(fields, 2, from)
		if m.last {
			fields = appendInt(fields, 3, 1)
		}
		fields = bytesHead(fields, 10, m.n)
		head := append(appendFrame(make([]byte, 0, frameHeader+len(fields)), len(fields)+m.n), fields...)
		copy(m.buf[start-len(head):], head)
		m.frame = m.buf[start-len(head) : start+m.n]
		select {
		case b.full <- m:
		case <-b.quit:
			return
		}
		if m.last {
			return
		}
	}
}

// result is the digest, if the file was read to its end. The messages were all
// taken: nobody writes them any more.
func (b *unnamedBody) result() (cas.Digest, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.end {
		return cas.Digest{}, false
	}
	return b.digest, b.whole
}

var errNotSent = errors.New("the file was not read to its end")

// Read gives the framed messages.
func (b *unnamedBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gone {
		return 0, io.ErrClosedPipe
	}
	if len(b.out) == 0 {
		if b.end {
			return 0, io.EOF
		}
		if b.cur != nil {
			b.told(int64(b.cur.n))
			b.sent += int64(b.cur.n)
			b.free <- b.cur // there is room for all
			b.cur = nil
		}
		m, more := <-b.full
		if !more {
			return 0, errNotSent
		}
		b.cur, b.out, b.end = m, m.frame, m.last
	}
	n := copy(p, b.out)
	b.out = b.out[n:]
	return n, nil
}

// Close ends the reading; the transport calls it.
func (b *unnamedBody) Close() error {
	b.stop()
	return nil
}
