package disk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// item is a small blob on its way into a pack.
type item struct {
	digest cas.Digest
	data   []byte
	sum    uint32 // CRC-32C of data
	from   ref    // of a live record that moves; zero for a new blob
	err    error
}

// commit is what one caller writes together.
type commit struct {
	items []*item
	seal  bool // first end the growing pack, so that it can be compacted
	done  chan struct{}
}

// writer is the one goroutine that writes packs. It takes all that waits,
// writes it with one write and one sync, and then answers. There is no delay to
// gather more: while one sync runs, the next round gathers by itself.
type writer struct {
	mu      sync.Mutex
	queue   []*commit
	stopped bool
	wake    chan struct{}
	ended   chan struct{}

	// Of the goroutine alone.
	active *pack // grows; nil before the first write and after a failed one
	file   *os.File
	next   uint32 // number of the next pack
	buf    []byte
	placed []placed          // records in buf, and those written and not synced
	new    map[cas.Hash]bool // blobs among placed that are new
	twins  []*item           // others of the same content
}

type placed struct {
	it  *item
	off uint32
}

const (
	roundMax = 8 << 20 // bytes of one round, about; what waits is in the memory of callers
	bufMax   = 4 << 20
)

func (w *writer) start(s *Store) {
	w.wake, w.ended = make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(w.ended)
		for range w.wake {
			for w.round(s) {
			}
		}
		if w.file != nil {
			_ = w.file.Close()
		}
	}()
}

func (w *writer) stop() {
	w.mu.Lock()
	w.stopped = true
	close(w.wake)
	w.mu.Unlock()
	<-w.ended
	w.mu.Lock()
	left := w.queue
	w.queue = nil
	w.mu.Unlock()
	for _, c := range left {
		for _, it := range c.items {
			it.err = errClosed
		}
		close(c.done)
	}
}

// write hands a commit over and waits until it is durable or has failed. It
// does not look at a context: the data belongs to the writer meanwhile.
func (w *writer) write(c *commit) {
	c.done = make(chan struct{})
	w.mu.Lock()
	if w.stopped {
		w.mu.Unlock()
		for _, it := range c.items {
			it.err = errClosed
		}
		return
	}
	w.queue = append(w.queue, c)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	w.mu.Unlock()
	<-c.done
}

// round writes what waits and answers; false means that nothing waited.
func (w *writer) round(s *Store) bool {
	w.mu.Lock()
	n, bytes := 0, 0
	for n < len(w.queue) && bytes < roundMax {
		for _, it := range w.queue[n].items {
			bytes += recordLen + len(it.data)
		}
		n++
	}
	commits := append([]*commit(nil), w.queue[:n]...)
	w.queue = append(w.queue[:0], w.queue[n:]...)
	w.mu.Unlock()
	if n == 0 {
		return false
	}
	err := w.put(s, commits)
	if err != nil {
		w.rollback(s, err)
		for _, c := range commits {
			for _, it := range c.items {
				if errors.Is(it.err, errPending) {
					it.err = err
				}
			}
		}
	}
	for _, c := range commits {
		close(c.done)
	}
	return true
}

var errPending = errors.New("not durable yet")

func (w *writer) put(s *Store, commits []*commit) error {
	for _, c := range commits {
		for _, it := range c.items {
			it.err = errPending
		}
	}
	for _, c := range commits {
		if c.seal && w.active != nil {
			if err := w.seal(s); err != nil {
				return err
			}
		}
		for _, it := range c.items {
			if err := w.add(s, it); err != nil {
				return err
			}
		}
	}
	return w.sync(s)
}

// add appends a record to the buffer, in a new pack if the old one is full.
func (w *writer) add(s *Store, it *item) error {
	n := recordLen + len(it.data)
	if (it.from == ref{}) && w.isTwin(s, it) {
		return nil
	}
	if w.active != nil && w.tail()+int64(n) > s.o.packMax {
		if err := w.seal(s); err != nil {
			return err
		}
	}
	if w.active == nil {
		if err := w.begin(s); err != nil {
			return fmt.Errorf("begin a pack: %w", err)
		}
	}
	if len(w.buf)+n > bufMax {
		if err := w.flush(s); err != nil {
			return err
		}
	}
	off := w.tail()
	w.buf = appendRecord(w.buf, w.active.marker, it.digest.Hash, it.sum, it.data)
	w.placed = append(w.placed, placed{it, uint32(off)})
	return nil
}

// isTwin says that somebody else's item of this round, or before, is the same
// blob, and is written already.
func (w *writer) isTwin(s *Store, it *item) bool {
	if w.new[it.digest.Hash] {
		w.twins = append(w.twins, it)
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.find(it.digest); ok {
		s.touch(r, true)
		it.err = nil
		return true
	}
	if w.new == nil {
		w.new = map[cas.Hash]bool{}
	}
	w.new[it.digest.Hash] = true
	return false
}

// forget empties the lists of what was published or has failed.
func (w *writer) forget() {
	clear(w.placed)
	clear(w.twins)
	clear(w.new)
	w.placed, w.twins = w.placed[:0], w.twins[:0]
}

// tail is where the next record goes.
func (w *writer) tail() int64 {
	end := int64(w.active.end)
	if n := len(w.placed); n > 0 {
		last := w.placed[n-1]
		end = int64(last.off) + recordLen + int64(len(last.it.data))
	}
	return end
}

// flush writes the buffer.
func (w *writer) flush(s *Store) error {
	if len(w.buf) == 0 {
		return nil
	}
	err := s.step("write pack")
	if err == nil {
		_, err = w.file.WriteAt(w.buf, w.tail()-int64(len(w.buf)))
	}
	w.buf = w.buf[:0]
	if err != nil {
		return fmt.Errorf("write a pack: %w", err)
	}
	return nil
}

// sync makes all that was added durable and lets readers see it.
func (w *writer) sync(s *Store) error {
	if len(w.placed) == 0 {
		return nil
	}
	if err := w.flush(s); err != nil {
		return err
	}
	err := s.step("sync pack")
	if err == nil {
		err = syncData(w.file)
	}
	if err != nil {
		return fmt.Errorf("sync a pack: %w", errSync{err})
	}
	s.publish(w.active, w.placed)
	for _, it := range w.twins {
		it.err = nil
	}
	w.forget()
	return nil
}

// errSync marks a failed sync: what the kernel has of the file and what the
// disk has may differ from then on, so that the pack is not written again.
type errSync struct{ error }

func (e errSync) Unwrap() error { return e.error }

// publish enters durable records into the index.
func (s *Store) publish(p *pack, records []placed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for _, r := range records {
		n := int64(recordLen + len(r.it.data))
		at := ref{p.id, uint32(len(p.offs))}
		p.offs, p.hashes, p.end = append(p.offs, r.off), append(p.hashes, r.it.digest.Hash), r.off+uint32(n)
		p.size, s.bytes = p.size+n, s.bytes+n
		s.forgetOther(r.it.digest)
		old, ok := s.index[r.it.digest.Hash]
		used, flags := now, uint8(flagPromised)
		switch {
		case r.it.from != ref{} && (!ok || old != r.it.from): // evicted or found corrupt meanwhile
			used, flags = 0, 0
		case r.it.from != ref{}:
			u, f := s.stamps(old)
			used, flags = *u, *f
			s.kill(r.it.digest.Hash, old)
		case ok: // somebody else was first
			s.touch(old, true)
			used, flags = 0, 0
		}
		p.used, p.flags, p.stale = append(p.used, used), append(p.flags, flags), true
		if used == 0 {
			p.dead, s.dead = p.dead+n, s.dead+n
		} else {
			s.index[r.it.digest.Hash] = at
		}
		r.it.err = nil
	}
	s.owe(p)
}

// begin makes the next pack.
func (w *writer) begin(s *Store) error {
	p := &pack{id: w.next, end: packHeaderLen, size: packHeaderLen, hashes: []cas.Hash{}}
	_, _ = rand.Read(p.marker[:])
	if err := s.step("begin pack"); err != nil {
		return err
	}
	f, err := s.root.OpenFile(p.name("pack"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(appendPackHeader(nil, p.marker), 0)
	if err == nil {
		err = syncDir(s.root, packsDir)
	}
	w.next++
	if err != nil {
		return errors.Join(err, f.Close(), s.root.Remove(p.name("pack")))
	}
	w.active, w.file = p, f
	s.mu.Lock()
	s.packs[p.id] = p
	s.bytes += p.size
	s.owe(p)
	s.mu.Unlock()
	return nil
}

// seal ends the growing pack and writes its index.
func (w *writer) seal(s *Store) error {
	if err := w.sync(s); err != nil {
		return err
	}
	p, f := w.active, w.file
	w.active, w.file = nil, nil
	s.finish(p)
	return f.Close()
}

// finish writes the index of a pack that grows no more.
func (s *Store) finish(p *pack) {
	places, _ := s.places(p) // in memory
	s.saveIndex(p, p.end, places)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.sealed, p.hashes = true, nil
	p.offs, p.used, p.flags = append([]uint32(nil), p.offs...), append([]uint32(nil), p.used...), append([]uint8(nil), p.flags...)
}

// rollback cuts what a failed round wrote. If it cannot, the pack is left as it
// is and another one begun: the next start cuts it.
func (w *writer) rollback(s *Store, cause error) {
	w.buf = w.buf[:0]
	w.forget()
	if w.active == nil {
		return
	}
	err := s.step("cut pack")
	if err == nil {
		err = w.file.Truncate(int64(w.active.end))
	}
	if _, failedSync := errors.AsType[errSync](cause); err == nil && !failedSync {
		return
	}
	s.o.Log.Error("a pack cannot be written any more and is closed", "file", w.active.name("pack"), "err", errors.Join(cause, err))
	p := w.active
	s.mu.Lock()
	if st, err := w.file.Stat(); err == nil {
		tail := st.Size() - int64(p.end)
		p.size, s.bytes = p.size+tail, s.bytes+tail
	}
	s.mu.Unlock()
	_ = w.file.Close()
	w.active, w.file = nil, nil
	if s.finish(p); p.live() == 0 {
		s.removePack(p)
	}
}

// PutBatch stores blobs together, which is far cheaper than one by one: small
// ones share a write and a sync. An error stands at the place of its blob and
// is as that of Put.
func (s *Store) PutBatch(ctx context.Context, blobs []Blob) []error {
	errs := make([]error, len(blobs))
	sums := verifyAll(blobs, errs)
	s.putAll(ctx, blobs, sums, errs)
	return errs
}

// PutUnnamed is PutBatch of blobs without digests, and gives them these. had
// says which the store had before.
func (s *Store) PutUnnamed(ctx context.Context, blobs []Blob) (had []bool, errs []error) {
	errs = make([]error, len(blobs))
	sums := nameAll(blobs)
	return s.putAll(ctx, blobs, sums, errs), errs
}

// putAll stores blobs that have no error in errs. had says which were there.
func (s *Store) putAll(ctx context.Context, blobs []Blob, sums []uint32, errs []error) (had []bool) {
	had = make([]bool, len(blobs))
	if err := ctx.Err(); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return had
	}
	var (
		small  commit
		places []int // of small.items in blobs
		large  []int
		need   = int64(packExtra)
	)
	s.mu.Lock()
	for i, b := range blobs {
		if errs[i] != nil || b.Digest == cas.Empty {
			continue
		}
		if r, ok := s.find(b.Digest); ok {
			s.touch(r, true)
			had[i] = true
			continue
		}
		if b.Digest.Size > smallMax {
			large = append(large, i)
			continue
		}
		small.items = append(small.items, &item{digest: b.Digest, data: b.Data, sum: sums[i]})
		places = append(places, i)
		need += recordExtra + b.Digest.Size
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	if len(large) > 0 {
		wg.Go(func() { s.putFiles(ctx, blobs, large, errs) })
	}
	if len(small.items) > 0 {
		err := s.writeSmall(ctx, &small, need)
		for k, i := range places {
			if errs[i] = err; err == nil {
				errs[i] = small.items[k].err
			}
		}
	}
	wg.Wait()
	return had
}

// writeSmall makes room and writes. A full disk gets one more try, after
// making room again. The error is about all items; others stand in them.
func (s *Store) writeSmall(ctx context.Context, c *commit, need int64) error {
	if err := s.reserve(ctx, need); err != nil {
		return err
	}
	defer s.release(need)
	s.writer.write(c)
	if !isFull(c.items[0].err) && !isFull(c.items[len(c.items)-1].err) {
		return nil
	}
	again := &commit{}
	for _, it := range c.items {
		if it.err != nil {
			again.items = append(again.items, it)
		}
	}
	if _, err := s.makeRoom(ctx, need, true); err == nil {
		s.writer.write(again)
	}
	for _, it := range again.items {
		if isFull(it.err) {
			it.err = s.full(it.digest.Size, it.err)
		}
	}
	return nil
}

// Put stores a blob whose content is data. Data that is not what d says is an
// Invalid error, a store without room an Exhausted one. When it returns nil the
// blob is durable, and stays for Keep at least. Calls at the same time share
// their sync.
func (s *Store) Put(ctx context.Context, d cas.Digest, data []byte) error {
	return s.PutBatch(ctx, []Blob{{d, data}})[0]
}

func verify(b Blob) error {
	if int64(len(b.Data)) != b.Digest.Size {
		return skep.Errorf(skep.Invalid, "blob %s: the content has %d bytes", b.Digest, len(b.Data))
	}
	if got := cas.Sum(b.Data); got != b.Digest {
		return skep.Errorf(skep.Invalid, "blob %s: the content's hash is %s", b.Digest, got.Hash)
	}
	return nil
}
