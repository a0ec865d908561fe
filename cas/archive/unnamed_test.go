//go:build unix

package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
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

// A large file is sent while it is hashed, and comes back as it was.
func TestLargeFileIsSentWhileHashed(t *testing.T) {
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
		n := 0
		w := &walker{opt: Options{Parallel: 1}, keep: true}
		u := c.Uploader(t.Context(), nil)
		w.emit = u.Add
		w.send = func(f io.ReaderAt, size int64, unchanged func() error) (cas.Digest, error) {
			return u.Hash(f, size, func() error {
				if n++; n <= changes {
					f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
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
		tree, err := walk(t.Context(), src, w)
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

// A storage that does not take files without their digest gets them in the
// ordinary way.
func TestNotTaken(t *testing.T) {
	u := storage(t).Uploader(t.Context(), nil)
	defer u.Wait() //nolint:errcheck // nothing was added
	if _, err := u.Hash(bytes.NewReader(make([]byte, 100)), 100, nil); !errors.Is(err, remote.ErrNotTaken) {
		t.Errorf("a small file: %v", err)
	}
}
