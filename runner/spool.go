package runner

import (
	"os"
	"sync"
	"time"
)

// Bounds of a task's output. spec bot.md §2.10: a server keeps 1024 chunks of
// 102,400 bytes and drops the rest.
const (
	outputCap   = 1024 * 102400
	spoolMemory = 1 << 20 // unsent bytes kept in memory; the rest waits in a file
)

// spool is a task's output between the task and the server: bytes enter at the
// end, and leave at the front only when the server has them. It is used by one
// writer and one reader.
type spool struct {
	path string // file for what does not fit into memory; made when needed

	mu      sync.Mutex
	start   int64  // offset of the first byte that the server does not have
	mem     []byte // bytes from start on
	file    *os.File
	fileR   int64 // file[fileR:fileW] follows mem
	fileW   int64
	total   int64     // bytes taken in
	dropped int64     // bytes beyond the cap
	since   time.Time // when the first unsent byte came; zero when there is none
	room    chan struct{}
}

func newSpool(path string) *spool {
	return &spool{path: path, room: make(chan struct{}, 1)}
}

// add takes in b. It returns false, and nothing has happened, when b fits
// neither into memory nor on disk: try again after room.
func (s *spool) add(b []byte, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := b[:min(int64(len(b)), outputCap-s.total)]
	if len(keep) > 0 {
		if s.fileR == s.fileW && len(s.mem)+len(keep) <= spoolMemory {
			s.mem = append(s.mem, keep...)
		} else if !s.spill(keep) {
			return false
		}
		if s.since.IsZero() {
			s.since = now
		}
	}
	s.total += int64(len(keep))
	s.dropped += int64(len(b) - len(keep))
	return true
}

func (s *spool) spill(b []byte) bool {
	if s.file == nil {
		f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return false
		}
		s.file = f
	}
	if _, err := s.file.WriteAt(b, s.fileW); err != nil {
		return false
	}
	s.fileW += int64(len(b))
	return true
}

// next returns up to n unsent bytes and their offset; sent must be called
// before the next call when the server has them. The bytes stay valid until
// then.
func (s *spool) next(n int, now time.Time) (b []byte, offset int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mem) < n && s.fileR < s.fileW {
		fill := min(int64(spoolMemory/2), s.fileW-s.fileR)
		at := len(s.mem)
		mem := append(s.mem[:at:at], make([]byte, fill)...)
		if _, err := s.file.ReadAt(mem[at:], s.fileR); err != nil {
			return nil, s.start, err
		}
		s.mem = mem
		if s.fileR += fill; s.fileR == s.fileW {
			s.fileR, s.fileW = 0, 0
			_ = s.file.Truncate(0)
		}
	}
	n = min(n, len(s.mem))
	s.since = now // what comes after these bytes is no older
	return s.mem[:n], s.start, nil
}

// sent drops the first n unsent bytes: the server has them.
func (s *spool) sent(n int) {
	s.mu.Lock()
	s.start += int64(n)
	s.mem = s.mem[n:]
	if len(s.mem) == 0 {
		s.mem = nil
		if s.fileR == s.fileW {
			s.since = time.Time{}
		}
	}
	s.mu.Unlock()
	select {
	case s.room <- struct{}{}:
	default:
	}
}

// unsent returns how many bytes wait, and since when the first of them does.
func (s *spool) unsent() (n int64, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(len(s.mem)) + s.fileW - s.fileR, s.since
}

// close removes the file. The spool must not be used afterwards.
func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close()
		_ = os.Remove(s.path)
	}
}
