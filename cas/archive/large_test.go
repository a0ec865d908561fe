//go:build unix

package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/remote"
)

// A large file is hashed where it comes in, and comes back as it was.
func TestLargeFileIsHashedThere(t *testing.T) {
	c := storage(t)
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "dst")
	data := bytes.Repeat([]byte("0123456789abcde\n"), 20<<20/16)
	data = append(data, 7)
	if err := os.WriteFile(filepath.Join(src, "large"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ cold, hot int }{{2, 0}, {1, 1}} { // the second time in vain; the directory is there
		var told atomic.Int64
		tree, err := Upload(t.Context(), c, src, Options{Sent: func(n int64) { told.Add(n) }})
		if err != nil {
			t.Fatal(err)
		}
		if got := told.Load(); got < tree.Bytes || got > tree.Bytes+1000 {
			t.Errorf("progress of %d bytes for %d", got, tree.Bytes)
		}
		if len(tree.Stats.Cold) != want.cold || len(tree.Stats.Hot) != want.hot {
			t.Errorf("got %+v, want %+v", tree.Stats, want)
		}
		if want.hot > 0 {
			if _, err := Extract(t.Context(), c, tree.Root, dst, Target{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if diff := cmp.Diff(files(t, src), files(t, dst)); diff != "" {
		t.Error(diff)
	}
}

// changing has a file change so many times after it was sent.
type changing struct {
	*remote.Uploader
	name  string
	times int
}

func (c *changing) Hash(f *os.File, size int64, unchanged func() error) (cas.Digest, error) {
	return c.Uploader.Hash(f, size, func() error {
		if c.times--; c.times >= 0 {
			f, err := os.OpenFile(c.name, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			if _, err := f.WriteString("more"); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
		}
		return unchanged()
	})
}

// A file that changes while it is sent is tried again, and refused when it
// does not stand still.
func TestLargeFileChanges(t *testing.T) {
	for _, changes := range []int{1, 100} {
		c := storage(t)
		src := t.TempDir()
		name := filepath.Join(src, "large")
		if err := os.WriteFile(name, make([]byte, 20<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		u := c.Uploader(t.Context(), nil)
		tree, err := walk(t.Context(), src, &walker{opt: Options{Parallel: 1}, emit: u.Add, to: &changing{Uploader: u, name: name, times: changes}})
		stats, waitErr := u.Wait()
		if waitErr != nil {
			t.Fatal(waitErr)
		}
		if changes > tries {
			if !errors.Is(err, errChanged) || skep.KindOf(err) != skep.Invalid || len(stats.Cold) != 0 {
				t.Errorf("%v, %+v", err, stats)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		want := cas.Sum(append(make([]byte, 20<<20), "more"...))
		missing, err := c.Missing(t.Context(), []cas.Digest{want})
		if err != nil || len(missing) > 0 || tree.Bytes != want.Size {
			t.Errorf("%v is missing, %v", missing, err)
		}
	}
}

// Who gives up while a file is being sent is not kept waiting.
func TestLargeFileCanceled(t *testing.T) {
	c := storage(t)
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "large"), make([]byte, 64<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var once sync.Once
	_, err := Upload(ctx, c, src, Options{Sent: func(int64) { once.Do(cancel) }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// refusing takes small files no more after some bundles.
type refusing struct {
	*remote.Uploader
	takes atomic.Int32
}

func (r *refusing) HashBundle(b *cas.Bundle) ([]cas.Digest, error) {
	if r.takes.Add(-1) < 0 {
		return nil, remote.ErrNotTaken
	}
	return r.Uploader.HashBundle(b)
}

// Small files are hashed where they come in, and here when that fails.
func TestSmallFilesAreHashedThere(t *testing.T) {
	src := t.TempDir()
	for i := range 300 {
		dir := filepath.Join(src, fmt.Sprint("d", i%7), fmt.Sprint("e", i%3))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, i%5*10_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := Scan(t.Context(), src, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, takes := range []int32{100, 2, 0} {
		c, dst := storage(t), filepath.Join(t.TempDir(), "dst")
		u := c.Uploader(t.Context(), nil)
		to := &refusing{Uploader: u}
		to.takes.Store(takes)
		tree, err := walk(t.Context(), src, &walker{emit: u.Add, to: to})
		if err != nil {
			t.Fatal(err)
		}
		stats, err := u.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if tree.Root != want.Root || tree.Files != want.Files || tree.Bytes != want.Bytes || tree.Dirs != want.Dirs {
			t.Errorf("%+v, want %+v", tree, want)
		}
		if n := len(stats.Cold); n != len(want.Blobs)-1 || takes < 100 && to.takes.Load() >= 0 { // the empty one is everywhere
			t.Errorf("%d blobs sent, want %d; %d bundles left", n, len(want.Blobs)-1, to.takes.Load())
		}
		if _, err := Extract(t.Context(), c, tree.Root, dst, Target{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(files(t, src), files(t, dst)); diff != "" {
			t.Error(diff)
		}
	}
}
