package cache

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/cas"
)

// Source is where content comes from; *remote.Client is one. Everything that
// it hands out is verified.
type Source interface {
	// Tree returns the directories below root and root's own.
	Tree(ctx context.Context, root cas.Digest) (map[cas.Hash]*cas.Directory, error)
	// ReadBatch calls each with every blob, many at a time; data is each's until it returns.
	ReadBatch(ctx context.Context, list []cas.Digest, each func(d cas.Digest, data []byte) error) error
	// Read writes a blob to w, whose content counts only when the result is nil.
	Read(ctx context.Context, d cas.Digest, w io.Writer) error
}

const (
	largeBlob = 1 << 20         // from here on a blob goes to the disk piece by piece
	streams   = 2               // large blobs at a time: hashing one takes a processor
	saveEvery = 2 * time.Second // what a kill costs in hashing
)

// fetch gets what is missing into the cache. With watched it ends with
// errTight when the disk becomes too full meanwhile.
func (c *Cache) fetch(ctx context.Context, from Source, missing []entry, watched bool) error {
	type modes struct{ plain, exec bool }
	wanted := make(map[cas.Digest]modes, len(missing))
	var bytes int64
	for _, e := range missing {
		d := cas.Digest{Hash: e.key.hash, Size: e.size}
		m := wanted[d]
		m.plain, m.exec = m.plain || !e.key.exec, m.exec || e.key.exec
		wanted[d] = m
		bytes += e.size
	}
	f := &fetching{c: c, saved: time.Now(), pause: saveEvery}
	var small, large []cas.Digest
	for d, m := range wanted {
		switch {
		case d == cas.Empty:
			if err := f.put(d, nil, m.plain, m.exec); err != nil {
				return c.full(err, "inputs", bytes)
			}
		case d.Size >= largeBlob:
			large = append(large, d)
		default:
			small = append(small, d)
		}
	}
	// One after the other as they were written: that is how a storage has them.
	slices.SortFunc(large, func(a, b cas.Digest) int { return int(min(1, max(-1, b.Size-a.Size))) })
	var (
		mu     sync.Mutex
		absent []cas.Digest
	)
	note := func(err error) error {
		var m *cas.MissingError
		if !errors.As(err, &m) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		absent = append(absent, m.Digests...)
		return nil
	}
	ctx, tight := context.WithCancelCause(ctx)
	defer tight(nil)
	if watched {
		go c.watch(ctx, func() { tight(errTight) })
	}
	parent := ctx
	g, ctx := errgroup.WithContext(ctx)
	if len(small) > 0 {
		g.Go(func() error {
			return note(from.ReadBatch(ctx, small, func(d cas.Digest, data []byte) error {
				m := wanted[d]
				return f.put(d, data, m.plain, m.exec)
			}))
		})
	}
	g.Go(func() error {
		s, ctx := errgroup.WithContext(ctx)
		s.SetLimit(streams)
		for _, d := range large {
			s.Go(func() error {
				m := wanted[d]
				return note(f.stream(ctx, from, d, m.plain, m.exec))
			})
		}
		return s.Wait()
	})
	err := g.Wait()
	f.mu.Lock()
	f.keep()
	f.mu.Unlock()
	if err != nil && errors.Is(context.Cause(parent), errTight) {
		return errTight
	}
	if err == nil && len(absent) > 0 {
		slices.SortFunc(absent, func(a, b cas.Digest) int { return slices.Compare(a.Hash[:], b.Hash[:]) })
		err = &cas.MissingError{Digests: slices.Compact(absent)}
	}
	return c.full(err, "inputs", bytes)
}

// fetching records what has come.
type fetching struct {
	c *Cache

	mu    sync.Mutex
	done  []arrived
	saved time.Time
	pause time.Duration
}

type arrived struct {
	key  key
	info info
}

func (f *fetching) put(d cas.Digest, data []byte, plain, exec bool) error {
	for _, k := range keys(d, plain, exec) {
		i, err := f.c.put(k, data)
		if err != nil {
			return err
		}
		f.note(k, i)
	}
	return nil
}

func keys(d cas.Digest, plain, exec bool) (list []key) {
	if plain {
		list = append(list, key{d.Hash, false})
	}
	if exec {
		list = append(list, key{d.Hash, true})
	}
	return list
}

func (f *fetching) note(k key, i info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, arrived{k, i})
	if time.Since(f.saved) < f.pause {
		return
	}
	f.keep()
	began := time.Now()
	f.c.mu.Lock()
	err := f.c.save()
	f.c.mu.Unlock()
	if err != nil {
		f.c.opt.Log.Warn("cache state not saved", "dir", f.c.opt.Dir, "err", err)
	}
	f.saved = time.Now()
	f.pause = max(saveEvery, 20*f.saved.Sub(began))
}

// keep makes entries of what has come. f.mu is held.
func (f *fetching) keep() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	now := f.c.opt.Now().Unix()
	for _, a := range f.done {
		f.c.add(a.key, a.info, now)
	}
	f.done = f.done[:0]
}

// stream gets one large blob.
func (f *fetching) stream(ctx context.Context, from Source, d cas.Digest, plain, exec bool) (err error) {
	list := keys(d, plain, exec)
	temp := f.c.tempName()
	file, err := f.c.dir.create(temp, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.c.dir.remove(temp)
		}
	}()
	// Read hashes while the kernel takes the bytes, and the connection fills
	// meanwhile: no stage between them.
	if err = from.Read(ctx, d, file); err == nil {
		_, err = seal(file, list[0].perm())
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	i, err := f.c.replace(temp, list[0].String())
	if err != nil {
		return err
	}
	f.note(list[0], i)
	for _, k := range list[1:] {
		temp := f.c.tempName()
		if _, err := f.c.dir.copyTo(list[0].String(), f.c.dir, temp, k.perm(), false, -1, -1); err != nil {
			return err
		}
		i, err := f.c.replace(temp, k.String())
		if err != nil {
			return err
		}
		f.note(k, i)
	}
	return nil
}
