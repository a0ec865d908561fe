package archive

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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

// hash returns the file's entry and emits its blob.
func (w *walker) hash(ctx context.Context, h *hasher, j job) (cas.File, error) {
	at := path.Join(j.dir.path, j.name)
	if hash, known := w.stats.known(at, j.info); known {
		w.count(j.info.Size(), true)
		d := cas.Digest{Hash: hash, Size: j.info.Size()}
		return cas.File{Name: j.name, Digest: d, Executable: executable(j.info)}, w.emit(j.source(d, nil))
	}
	for try := 1; ; try++ {
		d, data, sent, info, err := w.read(ctx, h, j)
		if errors.Is(err, errChanged) && try < tries && ctx.Err() == nil {
			if j.info, err = j.dir.open.Lstat(j.name); err == nil && j.info.Mode().IsRegular() {
				continue
			}
		}
		if errors.Is(err, errChanged) {
			return cas.File{}, skep.Errorf(skep.Invalid, "%s: %w", filepath.Join(j.dir.disk, j.name), err)
		}
		if err != nil {
			return cas.File{}, j.dir.named(j.name, err)
		}
		w.count(d.Size, false)
		w.stats.learn(at, info, d.Hash)
		j.info = info
		if sent {
			return cas.File{Name: j.name, Digest: d, Executable: executable(info)}, nil
		}
		return cas.File{Name: j.name, Digest: d, Executable: executable(info)}, w.emit(j.source(d, data))
	}
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

// read hashes the file once. data is its content where that is kept; sent says
// that the storage has it.
func (w *walker) read(ctx context.Context, h *hasher, j job) (d cas.Digest, data []byte, sent bool, info fs.FileInfo, err error) {
	f, err := j.dir.open.OpenFile(j.name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe put in its place must not hold us
	if err != nil {
		return d, nil, false, nil, err
	}
	defer f.Close()
	info, err = f.Stat()
	if err != nil {
		return d, nil, false, nil, err
	}
	if !info.Mode().IsRegular() || !os.SameFile(info, j.info) {
		return d, nil, false, nil, errChanged
	}
	unchanged := func() error {
		after, err := f.Stat()
		if err == nil && stamp(after) != stamp(info) {
			err = errChanged
		}
		return err
	}
	size := info.Size()
	if w.send != nil {
		if d, err = w.send(f, size, unchanged); !errors.Is(err, remote.ErrNotTaken) {
			return d, nil, err == nil, info, err
		}
	}
	if w.keep && size < keepBelow {
		if data, err = readSmall(f, size); err != nil {
			return d, nil, false, nil, err
		}
		d = cas.Sum(data)
	} else {
		if h.buf == nil {
			h.buf = make([]byte, 256<<10)
		}
		h.sum.Reset()
		n, err := io.CopyBuffer(struct{ io.Writer }{h.sum}, &untilDone{ctx, io.LimitReader(f, size+1)}, h.buf)
		if err != nil {
			return d, nil, false, nil, err
		}
		d = cas.Digest{Hash: cas.Hash(h.sum.Sum(nil)), Size: n}
	}
	if d.Size != size {
		err = errChanged
	} else {
		err = unchanged()
	}
	return d, data, false, info, err
}

// readSmall reads a file of the size, and sees whether it has more.
func readSmall(f *os.File, size int64) ([]byte, error) {
	b := make([]byte, size+1)
	n, err := io.ReadFull(f, b)
	switch {
	case int64(n) != size, err == nil:
		return nil, errChanged
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return b[:n:n], nil
	}
	return nil, err
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
