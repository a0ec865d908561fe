package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// keepBelow is the size of files that are read whole, hashed and sent without
// reading them again.
const keepBelow = 1 << 20

// tries is how often a file is hashed that changes meanwhile.
const tries = 3

// hasher is what hashing one file after the other uses again.
type hasher struct {
	sum hash.Hash
	buf []byte
}

func newHasher() *hasher { return &hasher{sum: sha256.New()} }

var errChanged = errors.New("the file changed while it was read")

// unchanged is hash for a file whose hash is known.
func (w *walker) unchanged(j *job, hash cas.Hash) (cas.File, error) {
	w.count(j.info.Size(), true)
	d := cas.Digest{Hash: hash, Size: j.info.Size()}
	return j.entry(d), w.emit(j.source(d, nil))
}

// hash returns the file's entry and emits its blob.
func (w *walker) hash(ctx context.Context, h *hasher, j job) (cas.File, error) {
	if hash, known := w.stats.known(j.at, j.info); known {
		return w.unchanged(&j, hash)
	}
	var (
		d    cas.Digest
		data []byte
		sent bool
	)
	err := j.still(ctx, func(f *os.File, size int64, unchanged func() error) (err error) {
		d, data, sent, err = w.read(ctx, h, f, size, unchanged)
		return err
	})
	if err != nil {
		return cas.File{}, err
	}
	w.learn(&j, d)
	if !sent {
		err = w.emit(j.source(d, data))
	}
	return j.entry(d), err
}

// entry is the file as its directory has it.
func (j *job) entry(d cas.Digest) cas.File {
	return cas.File{Name: j.name, Digest: d, Executable: executable(j.info)}
}

// learn counts and remembers a file that was hashed.
func (w *walker) learn(j *job, d cas.Digest) {
	w.count(d.Size, false)
	w.stats.learn(j.at, j.info, d.Hash)
}

func (w *walker) count(n int64, cached bool) {
	w.opt.Hashed(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tree.Files++
	w.tree.Bytes += n
	if cached {
		w.tree.Cached++
	}
}

// still calls fn with the open file, and again when that finds that it changed
// meanwhile; unchanged tells. j.info is of what was read.
func (j *job) still(ctx context.Context, fn func(f *os.File, size int64, unchanged func() error) error) error {
	for try := 1; ; try++ {
		err := j.opened(fn)
		if errors.Is(err, errChanged) && try < tries && ctx.Err() == nil {
			if j.info, err = j.dir.open.Lstat(j.name); err == nil && j.info.Mode().IsRegular() {
				continue
			}
			if err == nil {
				err = errChanged
			}
		}
		if errors.Is(err, errChanged) {
			return skep.Errorf(skep.Invalid, "%s: %w", filepath.Join(j.dir.disk, j.name), err)
		}
		if err != nil {
			return j.dir.named(j.name, err)
		}
		return nil
	}
}

func (j *job) opened(fn func(f *os.File, size int64, unchanged func() error) error) error {
	f, err := j.dir.open.OpenFile(j.name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe put in its place must not hold us
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || !os.SameFile(info, j.info) {
		return errChanged
	}
	j.info = info
	return fn(f, info.Size(), func() error {
		after, err := f.Stat()
		if err == nil && stamp(after) != stamp(info) {
			err = errChanged
		}
		return err
	})
}

// read hashes a file once. data is its content where that is kept; sent says that
// the storage has it.
func (w *walker) read(ctx context.Context, h *hasher, f *os.File, size int64, unchanged func() error) (d cas.Digest, data []byte, sent bool, err error) {
	if w.to != nil {
		if d, err = w.to.Hash(f, size, unchanged); !errors.Is(err, remote.ErrNotTaken) {
			return d, nil, err == nil, err
		}
	}
	if w.to != nil && size < keepBelow { // it is sent soon
		data = make([]byte, size+1)[:size]
		if err := readSmall(f, data); err != nil {
			return d, nil, false, err
		}
		d = cas.Sum(data)
	} else {
		if h.buf == nil {
			h.buf = make([]byte, 256<<10)
		}
		h.sum.Reset()
		n, err := io.CopyBuffer(struct{ io.Writer }{h.sum}, &untilDone{ctx, io.NewSectionReader(f, 0, size+1)}, h.buf)
		if err != nil {
			return d, nil, false, err
		}
		d = cas.Digest{Hash: cas.Hash(h.sum.Sum(nil)), Size: n}
	}
	if d.Size != size {
		return d, nil, false, errChanged
	}
	return d, data, false, unchanged()
}

// readSmall fills b with a file, and sees whether that has more; b has room for
// one more byte.
func readSmall(f *os.File, b []byte) error {
	n, err := io.ReadFull(f, b[:len(b)+1])
	switch {
	case n != len(b), err == nil:
		return errChanged
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil
	}
	return err
}

// lot is small files that are hashed where they come in, together.
type lot struct {
	bundle cas.Bundle
	files  []job // of its blobs, in their order
}

const (
	lotBytes    = 5 << 19 // from which on a lot is sent; one more file fits
	sendsAtOnce = 4
)

var lots = sync.Pool{New: func() any { return new(lot) }}

// gather reads a file into a lot, if it is still small.
func (w *walker) gather(ctx context.Context, l *lot, j job) (small bool, err error) {
	err = j.still(ctx, func(f *os.File, size int64, unchanged func() error) error {
		if small = size < keepBelow && l.bundle.Fits(size); !small {
			return nil
		}
		err := readSmall(f, l.bundle.Append(int(size)))
		if err == nil {
			err = unchanged()
		}
		if err != nil {
			l.bundle.Drop()
		}
		return err
	})
	if small || err != nil {
		j.dir.unread()
	}
	if small && err == nil {
		l.files = append(l.files, j)
	}
	return small, err
}

// send has a lot hashed and stored, and makes its files entries of their
// directories.
func (w *walker) send(ctx context.Context, l *lot) error {
	if len(l.files) == 0 {
		return nil
	}
	list, err := w.to.HashBundle(&l.bundle)
	taken := err == nil
	if err != nil && !errors.Is(err, remote.ErrNotTaken) {
		return err
	}
	for i, j := range l.files {
		var d cas.Digest
		if taken {
			d = list[i]
		} else {
			d = cas.Sum(l.bundle.Blob(i))
			if err := w.emit(remote.Source{Digest: d, Data: l.bundle.Blob(i)}); err != nil {
				return err
			}
		}
		w.learn(&j, d)
		j.dir.add(j.entry(d))
		if err := j.dir.done(ctx); err != nil {
			return err
		}
	}
	if taken { // else its bytes are being sent
		l.bundle.Reset()
		clear(l.files)
		l.files = l.files[:0]
		lots.Put(l)
	}
	return nil
}

// untilDone ends a long reading with its context.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u *untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// source is the file as a blob to upload: in memory, or to be opened again
// below the directory that the walk opened it in.
func (j job) source(d cas.Digest, data []byte) remote.Source {
	if data != nil || d.Size == 0 {
		return remote.Source{Digest: d, Data: data}
	}
	disk, name, was := j.dir.disk, j.name, stamp(j.info)
	return remote.Source{Digest: d, Open: func() (io.ReadSeekCloser, error) {
		root, err := os.OpenRoot(disk)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || stamp(info) != was {
			f.Close()
			return nil, skep.Errorf(skep.Invalid, "%s: %w", filepath.Join(disk, name), errChanged)
		}
		return f, nil
	}}
}
