package disk

import (
	"context"
	"errors"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// Run keeps room ahead of writers, writes stamps down, compacts, finds damage,
// and ends with its context.
func TestRun(t *testing.T) {
	o := options(t, t.TempDir())
	o.MaxBytes = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		o.Now = time.Now
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		damaged := blob(500, 3000)
		for i := range 14 {
			put(t, s, blob(uint64(i), 80_000), blob(uint64(100+i), 20_000))
			time.Sleep(2 * Keep)
		}
		put(t, s, damaged)
		synctest.Wait()
		if u := s.Usage(); u.Bytes > u.Limit-s.ahead() || u.Evicted == 0 {
			t.Errorf("usage %+v", u)
		}
		r := s.index[damaged.Digest.Hash]
		p := s.packs[r.pack]
		off, end := p.extent(r.ord)
		f, err := s.root.OpenFile(p.name("pack"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("damage"), int64(end-100)); err != nil || off == 0 {
			t.Fatal(err)
		}
		_ = f.Close()
		if up, err := s.Upload(t.Context(), blob(900, 70_000).Digest, "left"); err != nil {
			t.Fatal(err)
		} else if _, err := up.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if u := s.Usage(); u.Corrupt != 1 || u.OpenedUploads != 0 || u.Reserved != 0 {
			t.Errorf("usage %+v", u)
		}
		if _, err := s.root.Stat(p.name("use")); err != nil {
			t.Error(err)
		}
		wantDisk(t, s)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
