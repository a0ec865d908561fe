package disk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// freeSpace is what the file system has free, asked at most once in a while.
type freeSpace struct {
	mu    sync.Mutex
	at    time.Time
	bytes int64
	fake  func() int64 // of tests
}

// get returns the free bytes, -1 when unknown.
func (f *freeSpace) get(s *Store) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fake != nil {
		return f.fake()
	}
	if now := time.Now(); f.at.IsZero() || now.Sub(f.at) > time.Second || now.Before(f.at) {
		f.at = now
		n, err := freeBytes(s.o.Dir)
		if err != nil {
			n = -1
		}
		f.bytes = n
	}
	return f.bytes
}

func (f *freeSpace) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = time.Time{}
}

// excess is by how many bytes the store is too large to write need more.
func (s *Store) excess(need int64) int64 {
	free := s.free.get(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over(need, free)
}

// over is excess for a caller that holds mu and asked for the free space.
func (s *Store) over(need, free int64) int64 {
	over := s.bytes + s.owed + s.reserved + need - s.o.MaxBytes
	if free >= 0 {
		over = max(over, s.o.MinFree+s.reserved+need-free)
	}
	return over
}

// reserve sets need bytes aside for a write, after evicting what must go.
// Nothing is evicted for a write that can never fit.
func (s *Store) reserve(ctx context.Context, need int64) error {
	for {
		free := s.free.get(s)
		s.mu.Lock()
		over := s.over(need, free)
		if s.closed {
			s.mu.Unlock()
			return errClosed
		}
		if over <= 0 {
			s.reserved += need
			s.grown()
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if need > s.o.MaxBytes {
			return s.full(need, nil)
		}
		// Another writer may take the room that was made; then we try again.
		if progress, err := s.makeRoom(ctx, need, false); err != nil {
			return err
		} else if !progress && s.excess(need) > 0 {
			return s.full(need, nil)
		}
	}
}

// fits refuses a write for which there cannot be room: what need not stay is
// too little. It evicts nothing and reserves nothing.
func (s *Store) fits(ctx context.Context, need int64) error {
	if need > s.o.MaxBytes {
		return s.full(need, nil)
	}
	if s.excess(need) <= 0 {
		return nil
	}
	done, err := s.evicting(ctx)
	if err != nil {
		return err
	}
	defer done()
	s.free.forget()
	over := s.excess(need)
	if over <= 0 {
		return nil
	}
	if s.failedLately(need) {
		return s.full(need, nil)
	}
	err = s.mark(ctx)
	s.unmark()
	if err != nil {
		return err
	}
	may := s.removable(func(uint32, int64) {})
	s.mu.Lock()
	may += s.dead
	s.mu.Unlock()
	if may < over {
		s.failed.need, s.failed.at = need, s.o.Now()
		return s.full(need, nil)
	}
	return nil
}

// evicting waits for the token of who evicts, or looks at what may go.
func (s *Store) evicting(ctx context.Context) (done func(), err error) {
	select {
	case s.room <- struct{}{}:
		return func() { <-s.room }, nil
	case <-s.quit:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// failedLately says that as much room could not be made a moment ago: a look
// at every tree for each write would make it worse. The caller has the token.
func (s *Store) failedLately(need int64) bool {
	return need >= s.failed.need && s.o.Now().Sub(s.failed.at) < time.Second
}

func (s *Store) release(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= n
}

// full is the error of a store without room for need bytes.
func (s *Store) full(need int64, cause error) error {
	u := s.Usage()
	text := fmt.Sprintf("the content-addressed storage has no room for %d bytes: it holds %d of at most %d, %d for writes under way, %d needed by pending and running tasks, %d others less than %v old; %d bytes are free on the disk, %d must stay free",
		need, u.Bytes, u.Limit, u.Reserved, u.Pinned, u.Fresh, Keep, u.Free, u.MinFree)
	if cause != nil {
		return skep.Errorf(skep.Exhausted, "%s: %w", text, cause)
	}
	return skep.Errorf(skep.Exhausted, "%s", text)
}

// makeRoom evicts until need bytes fit, and then some, so that the next write
// need not wait as well. One does it at a time. diskFull says that the file
// system refused bytes, whatever it said to be free. progress says that there
// may be more room than before.
func (s *Store) makeRoom(ctx context.Context, need int64, diskFull bool) (progress bool, err error) {
	done, err := s.evicting(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	s.free.forget()
	over := s.excess(need)
	if diskFull {
		over = max(over, need)
	}
	if over <= 0 {
		return true, nil // somebody else was first
	}
	if !diskFull && s.failedLately(need) {
		return false, nil
	}
	defer s.unmark()
	if err := s.mark(ctx); err != nil {
		return false, err
	}
	freed, err := s.evict(ctx, over, over+s.o.MaxBytes/20)
	s.free.forget()
	if freed == 0 && s.excess(need) > 0 {
		s.failed.need, s.failed.at = need, s.o.Now()
	}
	return freed > 0, err
}

// ahead is how much room Run keeps, so that writers need not wait for it.
func (s *Store) ahead() int64 { return s.o.MaxBytes / 50 }

// grown wakes Run when there is little room left. The caller holds mu.
func (s *Store) grown() {
	if s.bytes+s.owed+s.reserved > s.o.MaxBytes-s.ahead() {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// Run evicts, compacts, looks for damage and writes down last uses until ctx
// ends. A store works without it; then writers wait for room longer.
func (s *Store) Run(ctx context.Context) error {
	every := time.NewTicker(time.Minute)
	defer every.Stop()
	var scrub scrubber
	minutes := 0
	wake := s.wake
	for {
		var pause <-chan time.Time // after an eviction that could not do enough
		if s.excess(s.ahead()) > 0 {
			_, err := s.makeRoom(ctx, s.ahead(), false)
			s.round(ctx, err)
			if wake = s.wake; s.excess(s.ahead()) > 0 {
				wake, pause = nil, time.After(10*time.Second)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.quit:
			return nil
		case <-wake:
		case <-pause:
		case <-every.C:
			s.expireUploads()
			s.saveUse()
			s.round(ctx, s.compactWorst(ctx))
			if minutes++; minutes%10 == 0 {
				s.round(ctx, scrub.round(ctx, s))
			}
		}
	}
}

// round logs what went wrong; the next one tries again.
func (s *Store) round(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil && !errors.Is(err, errClosed) {
		s.o.Log.WarnContext(ctx, "care of the content-addressed storage failed", "err", err)
	}
}
