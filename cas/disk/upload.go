package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

const (
	// UploadKeep is how long an unfinished upload waits for its next byte.
	UploadKeep = 10 * time.Minute

	maxUploads  = 1024 // unfinished ones
	maxUploadID = 256
)

// uploads are the unfinished uploads by id.
type uploads struct {
	mu   sync.Mutex
	byID map[string]*upload
}

// upload is what callers of the same id share. Its mutex is held while bytes
// are written, and taken before any other.
type upload struct {
	id     string
	digest cas.Digest
	last   atomic.Int64 // Unix nanoseconds of the last call

	mu    sync.Mutex
	owner *Upload // who may write: the last who asked
	file  *os.File
	temp  string
	data  []byte // of a small blob, instead of a file
	came  int64  // bytes that are here
	sum   summer // of them
	ended bool
	held  int64 // bytes reserved: those that came, and a step
	began int64 // bytes of which writing to disk was started
}

// String names the blob in errors.
func (u *upload) String() string {
	if u.digest.Hash == (cas.Hash{}) {
		return fmt.Sprintf("of %d bytes", u.digest.Size)
	}
	return u.digest.String()
}

// Upload is one caller's part in writing one blob. It is not for many
// goroutines at once.
type Upload struct {
	ctx  context.Context // of the caller, who waits for room
	s    *Store
	u    *upload
	done bool // the blob is there
	d    cas.Digest
}

// Upload starts writing blob d in pieces, or goes on with it when an earlier
// caller with the same id stopped; that one's writes fail from then on. An
// unfinished upload lives for UploadKeep after the last call, and as long as
// the store is open. If the store has the blob already, Offset says its size
// and Commit does nothing.
func (s *Store) Upload(ctx context.Context, d cas.Digest, id string) (*Upload, error) {
	if id == "" || len(id) > maxUploadID || strings.HasPrefix(id, unnamedPrefix) {
		return nil, skep.Errorf(skep.Invalid, "upload id of %d bytes, want 1 to %d and no NUL in front", len(id), maxUploadID)
	}
	missing, err := s.Missing(ctx, []cas.Digest{d})
	if err != nil {
		return nil, err
	}
	if len(missing) == 0 {
		s.uploads.drop(s, id)
		return &Upload{ctx: ctx, s: s, d: d, done: true}, nil
	}
	s.expireUploads()
	s.uploads.mu.Lock()
	u := s.uploads.byID[id]
	s.uploads.mu.Unlock()
	if u == nil {
		if u, err = s.newUpload(ctx, d, id); err != nil {
			return nil, err
		}
	}
	if u.digest != d {
		return nil, skep.Errorf(skep.Conflict, "upload %q is of blob %s already", id, u.digest)
	}
	up := &Upload{ctx: ctx, s: s, u: u, d: d}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.owner = up
	u.last.Store(s.o.Now().UnixNano())
	return up, nil
}

func (s *Store) newUpload(ctx context.Context, d cas.Digest, id string) (*upload, error) {
	u := &upload{id: id, digest: d, sum: summer{hash: sha256.New()}}
	u.last.Store(s.o.Now().UnixNano())
	// What is only announced takes nobody's place.
	if err := s.fits(ctx, fileLen(d.Size)); err != nil {
		return nil, err
	}
	if d.Size > smallMax {
		var err error
		if u.file, u.temp, err = s.createTemp(); err != nil {
			if isFull(err) {
				err = s.full(d.Size, err)
			}
			return nil, err
		}
	}
	s.uploads.mu.Lock()
	other := s.uploads.byID[id]
	n := len(s.uploads.byID)
	if other == nil && n < maxUploads {
		if s.uploads.byID == nil {
			s.uploads.byID = map[string]*upload{}
		}
		s.uploads.byID[id] = u
		s.uploads.mu.Unlock()
		return u, nil
	}
	s.uploads.mu.Unlock()
	u.mu.Lock()
	u.end(s)
	u.mu.Unlock()
	if other != nil {
		return other, nil
	}
	return nil, skep.Errorf(skep.Exhausted, "%d uploads are unfinished already", n)
}

// UploadOffset returns how many bytes of an upload were received; known is
// false when there is none of that id for that blob. Of a blob that the store
// has, complete is true.
func (s *Store) UploadOffset(d cas.Digest, id string) (offset int64, complete, known bool) {
	s.mu.Lock()
	_, have := s.find(d)
	s.mu.Unlock()
	if have || d == cas.Empty {
		return d.Size, true, true
	}
	s.uploads.mu.Lock()
	u := s.uploads.byID[id]
	s.uploads.mu.Unlock()
	if u == nil || u.digest != d {
		return 0, false, false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.came, false, !u.ended
}

// Offset is where the next Write goes.
func (up *Upload) Offset() int64 {
	if up.done {
		return up.d.Size
	}
	up.u.mu.Lock()
	defer up.u.mu.Unlock()
	return up.u.came
}

var errTakenOver = skep.Errorf(skep.Conflict, "somebody else goes on with this upload, or it has ended")

// Write appends to the content. More bytes than the blob has are an Invalid
// error that changes nothing; after any other error the upload is gone, with all
// of its bytes.
func (up *Upload) Write(p []byte) (int, error) {
	if up.done {
		if len(p) > 0 {
			return 0, skep.Errorf(skep.Invalid, "blob %s is complete already", up.d)
		}
		return 0, nil
	}
	u := up.u
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := up.mayWrite(p); err != nil {
		return 0, err
	}
	if u.file == nil {
		u.data = append(u.data, p...)
		u.came += int64(len(p))
		return u.sum.Write(p)
	}
	written := make(chan error, 1)
	go func() { written <- up.write(p) }() // the kernel copies while we hash
	_, _ = u.sum.Write(p)
	if err := <-written; err != nil {
		return 0, err
	}
	return len(p), nil
}

// mayWrite says why p cannot be written, and has room for it. u.mu is held.
func (up *Upload) mayWrite(p []byte) error {
	u := up.u
	if u.owner != up || u.ended {
		return errTakenOver
	}
	u.last.Store(up.s.o.Now().UnixNano())
	if int64(len(p)) > u.digest.Size-u.came {
		return skep.Errorf(skep.Invalid, "blob %s: there are more bytes than that", u)
	}
	if err := u.hold(up.ctx, up.s, int64(len(p))); err != nil {
		u.end(up.s)
		return err
	}
	return nil
}

// write appends to the file; after an error the upload has ended. u.mu is held.
func (up *Upload) write(p []byte) error {
	u := up.u
	err := up.s.step("write upload")
	if err == nil {
		_, err = u.file.WriteAt(p, u.came)
	}
	if err != nil {
		u.end(up.s)
		if isFull(err) {
			return up.s.full(u.digest.Size, err)
		}
		return fmt.Errorf("write blob %s: %w", u, err)
	}
	u.came += int64(len(p))
	if n := u.came - u.began; n >= 8<<20 {
		writeBehind(u.file, u.began, n)
		u.began += n
	}
	return nil
}

// Steps in which room is reserved: as much again as has come.
const (
	minStep = 256 << 10
	maxStep = 64 << 20
)

// hold reserves room for n more bytes, and some ahead.
func (u *upload) hold(ctx context.Context, s *Store, n int64) error {
	all, came := fileLen(u.digest.Size), u.came+n
	if came == u.digest.Size {
		came = all // with the footer
	}
	if came <= u.held {
		return nil
	}
	to := min(all, came+min(max(came, minStep), maxStep))
	err := s.reserve(ctx, to-u.held)
	if skep.KindOf(err) == skep.Exhausted { // then what came, and nothing ahead
		to = came
		err = s.reserve(ctx, to-u.held)
	}
	switch {
	case skep.KindOf(err) == skep.Exhausted:
		return s.full(u.digest.Size, nil)
	case err != nil:
		return err
	}
	u.held = to
	return nil
}

// Commit checks the content against the digest and makes the blob durable.
// Content that is too short or different is an Invalid error. Whether it
// fails or not, the upload has ended.
func (up *Upload) Commit(ctx context.Context) error {
	if up.done {
		return nil
	}
	u, s := up.u, up.s
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.owner != up || u.ended {
		return errTakenOver
	}
	defer u.end(s)
	if err := u.check(u.digest); err != nil {
		return err
	}
	if u.file == nil {
		s.release(u.held) // writeSmall takes its own
		u.held = 0
		it := &item{digest: u.digest, data: u.data, sum: crc(u.data)}
		if err := s.writeSmall(ctx, &commit{items: []*item{it}}, packExtra+recordExtra+u.digest.Size); err != nil {
			return err
		}
		return it.err
	}
	return u.install(s, u.digest)
}

// check compares all that came with a digest.
func (u *upload) check(d cas.Digest) error {
	if u.came != d.Size {
		return skep.Errorf(skep.Invalid, "blob %s: the content has %d bytes", d, u.came)
	}
	if got := cas.Hash(u.sum.hash.Sum(nil)); got != d.Hash {
		return skep.Errorf(skep.Invalid, "blob %s: the content's hash is %s", d, got)
	}
	return nil
}

// install makes the file the blob d.
func (u *upload) install(s *Store, d cas.Digest) error {
	err := s.step("write upload")
	if err == nil {
		_, err = u.file.WriteAt(u.sum.footer(), d.Size)
	}
	f := u.file
	u.file = nil
	err = s.install(f, u.temp, d, err)
	if isFull(err) {
		return s.full(d.Size, err)
	}
	return err
}

// Close lets another caller go on. It may be called after Commit.
func (up *Upload) Close() error {
	if up.done {
		return nil
	}
	up.u.mu.Lock()
	defer up.u.mu.Unlock()
	if up.u.owner == up {
		up.u.owner = nil
	}
	return nil
}

// end forgets an upload and what it wrote. The caller holds its mutex.
func (u *upload) end(s *Store) {
	if u.ended {
		return
	}
	u.ended = true
	if u.file != nil {
		_ = u.file.Close()
		if err := s.root.Remove(u.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.o.Log.Warn("a temporary file stays until the next start", "file", u.temp, "err", err)
		}
	}
	u.file, u.data = nil, nil
	s.release(u.held)
	s.uploads.mu.Lock()
	defer s.uploads.mu.Unlock()
	if s.uploads.byID[u.id] == u {
		delete(s.uploads.byID, u.id)
	}
}

// expireUploads ends those whose callers stay away.
func (s *Store) expireUploads() {
	now := s.o.Now()
	var old []*upload
	s.uploads.mu.Lock()
	for _, u := range s.uploads.byID {
		if now.Sub(time.Unix(0, u.last.Load())) > UploadKeep {
			old = append(old, u)
		}
	}
	s.uploads.mu.Unlock()
	for _, u := range old {
		if u.mu.TryLock() { // else somebody writes
			u.end(s)
			u.mu.Unlock()
		}
	}
}

func (us *uploads) drop(s *Store, id string) {
	us.mu.Lock()
	u := us.byID[id]
	us.mu.Unlock()
	if u != nil && u.mu.TryLock() {
		u.end(s)
		u.mu.Unlock()
	}
}

func (us *uploads) dropAll(s *Store) {
	us.mu.Lock()
	all := make([]*upload, 0, len(us.byID))
	for _, u := range us.byID {
		all = append(all, u)
	}
	us.mu.Unlock()
	for _, u := range all {
		u.mu.Lock()
		u.end(s)
		u.mu.Unlock()
	}
}

func (us *uploads) count() int {
	us.mu.Lock()
	defer us.mu.Unlock()
	return len(us.byID)
}
