package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Words of the tasks' common file.
const (
	wordStart = "start"
	wordEnd   = "end"
)

// line is what a task wrote of itself.
type line struct {
	Word string // wordStart or wordEnd
	Run  string // run id
	PID  int
	At   time.Time
}

func parseLine(s string) (line, error) {
	f := strings.Fields(s)
	if len(f) != 4 || f[0] != wordStart && f[0] != wordEnd {
		return line{}, fmt.Errorf("not a line of a task: %.80q", s)
	}
	pid, err := strconv.Atoi(f[2])
	us, err2 := strconv.ParseInt(f[3], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return line{}, fmt.Errorf("not a line of a task: %.80q: %w", s, err)
	}
	return line{Word: f[0], Run: f[1], PID: pid, At: time.UnixMicro(us)}, nil
}

// ledger reads the tasks' common file while it grows. Its methods may be
// called at once by many.
type ledger struct {
	f *os.File

	mu    sync.Mutex
	off   int64
	rest  []byte // an unfinished line
	lines []line
	bad   []string // lines that no task can have written
	words map[string]string
	ends  int
}

// newLedger makes the file, which every user may write to, and reads it.
func newLedger(path string) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil { // whatever the umask; tasks have users of their own
		return nil, errors.Join(err, f.Close())
	}
	return &ledger{f: f, words: map[string]string{}}, nil
}

// read takes in what was added.
func (l *ledger) read() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	buf := make([]byte, 16<<10)
	for {
		n, err := l.f.ReadAt(buf, l.off)
		l.off += int64(n)
		l.rest = append(l.rest, buf[:n]...)
		for {
			text, rest, whole := bytes.Cut(l.rest, []byte("\n"))
			if !whole {
				break
			}
			l.rest = rest
			l.take(string(text))
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (l *ledger) take(text string) {
	ln, err := parseLine(text)
	if err != nil {
		l.bad = append(l.bad, text)
		return
	}
	l.lines = append(l.lines, ln)
	if ln.Word == wordEnd {
		l.ends++
	}
	l.words[ln.Run] = ln.Word
}

// said returns the last word of a run, "" when it has said nothing yet.
func (l *ledger) said(run string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.words[run]
}

// ended returns how many end lines there are.
func (l *ledger) ended() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ends
}

// all returns every line, and what is none.
func (l *ledger) all() ([]line, []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	bad := append([]string(nil), l.bad...)
	if len(l.rest) > 0 {
		bad = append(bad, string(l.rest))
	}
	return append([]line(nil), l.lines...), bad
}

func (l *ledger) close() error { return l.f.Close() }
