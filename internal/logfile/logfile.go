// Package logfile writes the bot's log files: one line per record in the form
// existing tools know (spec bot.md §1.7), in files that the writer itself
// rotates.
package logfile

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
)

// The rotation of spec bot.md §1.7.
const (
	MaxSize = 10 << 20 // bytes of one file
	Backups = 5        // .1 (newest) to .5, beside the file itself
)

// File is an append-only file that moves itself to name.1 (and name.1 to
// name.2 …) before it would exceed its size. One process writes it; it may be
// used by many goroutines.
type File struct {
	path    string
	size    int64 // of one file
	backups int

	mu      sync.Mutex
	f       *os.File
	written int64
}

// Open opens path for appending, with MaxSize and Backups, and makes its
// directory.
func Open(path string) (*File, error) { return OpenSized(path, MaxSize, Backups) }

// OpenSized is Open with another size in bytes and number of old files.
func OpenSized(path string, size int64, backups int) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l := &File{path: path, size: size, backups: backups}
	return l, l.open()
}

func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.written = f, st.Size()
	return nil
}

// Write appends p, which is whole lines, and never splits it over two files.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return 0, os.ErrClosed
	}
	if l.written > 0 && l.written+int64(len(p)) > l.size {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.written += int64(n)
	return n, err
}

func (l *File) rotate() error {
	_ = l.f.Close() // before the rename, which Windows refuses for an open file
	l.f = nil
	Roll(l.path, l.backups)
	return l.open()
}

// Close closes the file; later writes fail.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// Roll moves path to path.1, path.1 to path.2 and so on; what would become
// number backups+1 is dropped. What cannot be moved stays: a full log is no
// reason to stop a bot.
func Roll(path string, backups int) {
	_ = os.Remove(fmt.Sprintf("%s.%d", path, backups))
	for i := backups - 1; i >= 1; i-- {
		_ = os.Rename(fmt.Sprintf("%s.%d", path, i), fmt.Sprintf("%s.%d", path, i+1))
	}
	_ = os.Rename(path, path+".1")
}

// New returns a logger that writes records from level Debug up to w.
func New(w io.Writer) *slog.Logger { return slog.New(NewHandler(w, slog.LevelDebug)) }
