package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/internal/atomicfile"
)

// Entry is what is, or may be, out there for a key: written before the step
// that makes it so, taken out when it is certainly gone. A start reads the
// entries and takes up, or clears away, what each names.
type Entry struct {
	Key        string          `json:"key"`
	Step       string          `json:"step"`                 // what was begun last, as its owner names it
	Generation uint64          `json:"generation,omitempty"` // of the thing under this key
	At         time.Time       `json:"at"`
	Note       json.RawMessage `json:"note,omitempty"` // the owner's
}

// Journal remembers entries over a kill -9. Its calls may be made by many at
// once, and may be repeated.
type Journal interface {
	// Begin writes e in place of what its key had, and returns when it is durable.
	Begin(ctx context.Context, e Entry) error
	// End takes out key's entry. When it returns, a crash may bring the entry
	// back: its owner finds then that nothing is there, and ends it again.
	End(ctx context.Context, key string) error
	// Entries returns what was begun and not ended, ordered by key.
	Entries(ctx context.Context) ([]Entry, error)
}

// FileJournal is a Journal in one file, a line a change, fsynced. Its owner
// sees to it that no other process has it open.
type FileJournal struct {
	path string

	mu      sync.Mutex
	file    *os.File
	entries map[string]Entry
	written int64 // bytes of the file
	live    int64 // of them in lines that count
	sizes   map[string]int64
	broken  error // a write failed: what the file holds is not known until it is written anew
}

// journalSlack is how many bytes of ended lines a file may hold besides as
// much again as it needs.
const journalSlack = 256 << 10

type journalLine struct {
	Begin *Entry `json:"begin,omitempty"`
	End   string `json:"end,omitempty"`
}

// OpenJournal opens or makes the journal at path. A last line that a power cut
// left unfinished was never acknowledged and is dropped; any other that cannot
// be read is an error that names it.
func OpenJournal(path string) (*FileJournal, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	j := &FileJournal{path: path, entries: map[string]Entry{}, sizes: map[string]int64{}}
	whole := b[:bytes.LastIndexByte(b, '\n')+1]
	n := 0
	for line := range bytes.Lines(whole) {
		n++
		var l journalLine
		if err := json.Unmarshal(line, &l); err != nil || (l.Begin == nil) == (l.End == "") {
			return nil, fmt.Errorf("%s:%d: not a line of a journal; move the file away to start without it: what it names is then found by its labels only", path, n)
		}
		j.apply(l, int64(len(line)))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.rewrite(); err != nil {
		return nil, err
	}
	return j, nil
}

// Begin implements Journal.
func (j *FileJournal) Begin(_ context.Context, e Entry) error {
	if e.Key == "" {
		return errors.New("an entry of a journal needs a key")
	}
	return j.write(journalLine{Begin: &e}, true)
}

// End implements Journal.
func (j *FileJournal) End(_ context.Context, key string) error {
	return j.write(journalLine{End: key}, false)
}

// Entries implements Journal.
func (j *FileJournal) Entries(context.Context) ([]Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.SortedFunc(maps.Values(j.entries), func(a, b Entry) int { return strings.Compare(a.Key, b.Key) }), nil
}

// Close closes the file.
func (j *FileJournal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}

func (j *FileJournal) write(l journalLine, durable bool) error {
	line, err := json.Marshal(l)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, known := j.entries[l.End]; l.End != "" && !known {
		return nil
	}
	if j.broken != nil {
		if err := j.rewrite(); err != nil {
			return err
		}
	}
	_, err = j.file.Write(line)
	if err == nil && durable {
		err = j.file.Sync()
	}
	if err != nil {
		j.broken = err
		return fmt.Errorf("journal: %w", err)
	}
	j.apply(l, int64(len(line)))
	if j.written > 2*j.live+journalSlack {
		return j.rewrite()
	}
	return nil
}

func (j *FileJournal) apply(l journalLine, size int64) {
	key := l.End
	if l.Begin != nil {
		key = l.Begin.Key
	}
	j.live -= j.sizes[key]
	delete(j.sizes, key)
	delete(j.entries, key)
	if l.Begin != nil {
		j.entries[key], j.sizes[key] = *l.Begin, size
		j.live += size
	}
	j.written += size
}

// rewrite makes the file hold what counts and nothing else.
func (j *FileJournal) rewrite() error {
	var b bytes.Buffer
	sizes := make(map[string]int64, len(j.entries))
	for _, key := range slices.Sorted(maps.Keys(j.entries)) {
		e := j.entries[key]
		line, err := json.Marshal(journalLine{Begin: &e})
		if err != nil {
			return err
		}
		sizes[key] = int64(len(line)) + 1
		b.Write(append(line, '\n'))
	}
	if err := atomicfile.Write(j.path, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.sizes, j.broken = f, sizes, nil
	j.written = int64(b.Len())
	j.live = j.written
	return nil
}
