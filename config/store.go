package config

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options of Open. Zero values mean the defaults given here.
type Options struct {
	Log    *slog.Logger     // default: nothing is logged
	Now    func() time.Time // default time.Now
	Resync time.Duration    // how often it looks although nothing told it to; default 30 s
	Settle time.Duration    // how long a change must stay as it is before it is taken; default 50 ms

	// Keep is a directory that gets a copy of every good file. A Store that
	// opens while a file is bad begins with the copy. "" = none: then it does
	// not open.
	Keep string
}

// Store keeps the newest good configuration of a directory. A bad change is
// refused file by file: of each file the last good one stays. Its methods may
// be called at once by many.
type Store struct {
	dir string
	o   Options

	current atomic.Pointer[Snapshot]
	refused atomic.Pointer[[]Refusal]

	mu    sync.Mutex
	seen  Files // what the last look found
	since map[string]time.Time
	subs  map[chan struct{}]bool
}

// Refusal is a change of one file that was not taken.
type Refusal struct {
	File   string
	Since  time.Time // when it was first refused
	Faults Faults    // why; all are about this file, or about it and others
}

// Error returns one line per fault.
func (r Refusal) Error() string { return r.Faults.Error() }

// Open reads the configuration in dir. Faults are returned as Faults, unless
// Options.Keep has a good copy of what is bad.
func Open(dir string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Resync == 0 {
		o.Resync = 30 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 50 * time.Millisecond
	}
	s := &Store{dir: dir, o: o, since: map[string]time.Time{}, subs: map[chan struct{}]bool{}}
	files, faults, err := load(dir)
	if err != nil {
		return nil, err
	}
	snap, newErr := New(files)
	if newErr == nil && len(faults) == 0 {
		s.current.Store(snap)
		s.seen = files
		s.keep(snap)
		return s, nil
	}
	var more Faults
	errors.As(newErr, &more)
	all := append(faults, more...)
	all.sort()
	kept, ok := s.kept()
	if !ok { // an entry of vms.cfg that is broken keeps no server from starting
		usable := maps.Clone(files)
		_ = keepEntries(Empty(), usable) // told below
		if kept, newErr = New(usable); newErr != nil || len(faults) > 0 {
			return nil, all
		}
	}
	s.current.Store(kept)
	s.take(files, faults)
	return s, nil
}

// kept returns the configuration of Options.Keep, if there is a good one.
func (s *Store) kept() (*Snapshot, bool) {
	if s.o.Keep == "" {
		return nil, false
	}
	for _, dir := range []string{s.o.Keep, s.o.Keep + ".old"} { // the second between two renames
		files, faults, err := load(dir)
		if err != nil || len(faults) > 0 || len(files) == 0 {
			continue
		}
		if snap, err := New(files); err == nil {
			return snap, true
		}
	}
	return nil, false
}

// keep writes the files of a good configuration to Options.Keep. The copy is
// replaced whole, so that it is always of one moment.
func (s *Store) keep(snap *Snapshot) {
	if s.o.Keep == "" {
		return
	}
	if err := writeCopy(s.o.Keep, snap.files); err != nil {
		s.o.Log.Warn("no copy of the configuration is kept", "dir", s.o.Keep, "err", err)
	}
}

func writeCopy(dir string, files Files) error {
	next, old := dir+".new", dir+".old"
	for _, d := range []string{next, old} {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(next, scriptDir), 0o700); err != nil {
		return err
	}
	for name, content := range files {
		path := filepath.Join(next, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
	}
	if err := os.Rename(dir, old); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(next, dir); err != nil {
		return err
	}
	return os.RemoveAll(old)
}

// Snapshot returns the newest good configuration.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// Refusals returns the changes that are not taken, by file; none means that
// Snapshot is what the directory says.
func (s *Store) Refusals() []Refusal {
	if r := s.refused.Load(); r != nil {
		return *r
	}
	return nil
}

// Subscribe returns a channel that gets a value after each change of Snapshot
// or Refusals; several changes may be one value. stop ends it.
func (s *Store) Subscribe() (changed <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, c)
	}
}

// Run takes changes of the directory until ctx ends. It looks when the file
// system tells of a change, and every Options.Resync.
func (s *Store) Run(ctx context.Context) error {
	w, err := newWatcher(s.dir)
	if err != nil {
		s.o.Log.WarnContext(ctx, "changes of the configuration are noticed late", "within", s.o.Resync, "err", err)
		w = &watcher{}
	}
	defer w.close()
	tick := time.NewTicker(s.o.Resync)
	defer tick.Stop()
	for {
		if err := s.look(ctx); err != nil {
			return err
		}
		w.follow(s.Snapshot().dirs()) // a directory may be another one now
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.events():
		case <-tick.C:
		}
	}
}

// look takes what the directory says once it has stayed the same for a moment:
// an editor or a sync may be in the middle of writing. It fails only when ctx
// ends.
func (s *Store) look(ctx context.Context) error {
	files, faults, err := load(s.dir)
	for range 100 {
		if s.unchanged(files, faults, err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.o.Settle):
		}
		again, faultsAgain, errAgain := load(s.dir)
		if maps.Equal(files, again) && (err == nil) == (errAgain == nil) && len(faults) == len(faultsAgain) {
			files, faults, err = again, faultsAgain, errAgain
			break
		}
		files, faults, err = again, faultsAgain, errAgain
	}
	if err != nil { // every file is gone
		files, faults = Files{}, nil
	}
	s.take(files, faults)
	return nil
}

// unchanged reports whether the last look found the same.
func (s *Store) unchanged(files Files, faults Faults, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return err == nil && len(faults) == 0 && s.seen != nil && maps.Equal(s.seen, files)
}

// take makes the newest good configuration of what the directory says.
func (s *Store) take(files Files, unreadable Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.current.Load()
	next, refused := merge(old, files, unreadable)
	s.seen = files
	if len(unreadable) > 0 {
		s.seen = nil // look again
	}
	changed := next.Digest() != old.Digest()
	list := s.refusals(refused)
	told := changed || !slices.EqualFunc(list, s.Refusals(), func(a, b Refusal) bool { return a.File == b.File && a.Error() == b.Error() })
	s.refused.Store(&list)
	if !maps.Equal(next.files, old.files) { // also when only comments changed
		s.current.Store(next)
		s.keep(next)
	}
	if changed {
		s.o.Log.Info("configuration changed", "digest", next.Digest())
	}
	if !told {
		return
	}
	for _, r := range list {
		s.o.Log.Error("a change of the configuration is refused; the last good one stays", "file", r.File, "err", r.Error())
	}
	for c := range s.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// refusals adds to what is refused since when that is so.
func (s *Store) refusals(refused map[string]Faults) []Refusal {
	maps.DeleteFunc(s.since, func(file string, _ time.Time) bool { return refused[file] == nil })
	var list []Refusal
	for _, file := range slices.Sorted(maps.Keys(refused)) {
		if s.since[file].IsZero() {
			s.since[file] = s.o.Now()
		}
		list = append(list, Refusal{File: file, Since: s.since[file], Faults: refused[file]})
	}
	return list
}

// merge returns the best configuration that can be made of files, where those
// that are bad, or do not fit, are as in old, which is good. refused says which
// and why. Of a vms.cfg each entry stands for itself. A .cfg that was there and is gone is refused as well: without
// pools.cfg every pool exists, which nobody asks for by accident.
func merge(old *Snapshot, files Files, unreadable Faults) (next *Snapshot, refused map[string]Faults) {
	refused = map[string]Faults{}
	files = maps.Clone(files)
	goBack := func(file string, why ...Fault) {
		refused[file] = append(refused[file], why...)
		if content, ok := old.files[file]; ok {
			files[file] = content
		} else {
			delete(files, file)
		}
		if file == fileMachines {
			for _, name := range metadataFiles(old.files[file]) {
				files[name] = old.files[name]
			}
		}
	}
	for _, f := range unreadable {
		goBack(f.File, f)
	}
	for name := range old.files {
		if _, ok := files[name]; !ok && slices.Contains(cfgFiles, name) {
			goBack(name, Fault{File: name, Text: "is gone; the last good one stays until the server is started anew"})
		}
	}
	if why := keepEntries(old, files); why != nil { // entry by entry
		refused[fileMachines] = append(refused[fileMachines], why...)
	}
	for {
		snap, err := New(files)
		if err == nil {
			return snap, refused
		}
		var faults Faults
		if !errors.As(err, &faults) {
			return old, refused
		}
		changed := func(file string) bool {
			a, hasA := files[file]
			b, hasB := old.files[file]
			return a != b || hasA != hasB
		}
		back := map[string]Faults{}
		for _, f := range faults { // what is wrong by itself first: the rest may be due to it
			if len(f.Other) == 0 && changed(f.File) {
				back[f.File] = append(back[f.File], f)
			}
		}
		if len(back) == 0 {
			for _, f := range faults {
				for _, file := range append([]string{f.File}, f.Other...) {
					if changed(file) {
						back[file] = append(back[file], f)
					}
				}
			}
		}
		if len(back) == 0 { // cannot be: old is good
			for _, f := range faults {
				refused[f.File] = append(refused[f.File], f)
			}
			return old, refused
		}
		for file, why := range back {
			goBack(file, why...)
		}
	}
}

// dirs are the directories that files are in, and scripts/, which may come.
func (s *Snapshot) dirs() []string {
	all := map[string]bool{".": true, scriptDir: true}
	for name := range s.files {
		all[path.Dir(name)] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// watcher tells of changes in a directory and its scripts.
type watcher struct {
	fs   *fsnotify.Watcher
	dir  string
	wake chan struct{}
	done chan struct{}
}

func newWatcher(dir string) (*watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &watcher{fs: fs, dir: dir, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if err := fs.Add(dir); err != nil {
		_ = fs.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	go func() {
		defer close(w.done)
		for {
			select {
			case _, ok := <-fs.Events:
				if !ok {
					return
				}
			case _, ok := <-fs.Errors: // as too many events: something changed
				if !ok {
					return
				}
			}
			w.tell()
		}
	}()
	return w, nil
}

// follow watches the directories that the names, below its own, lead to now.
// What is watched already is not watched twice; a directory that is gone forgets
// itself. What is new is looked at once more: something may have changed in it
// before it was watched.
func (w *watcher) follow(dirs []string) {
	if w.fs == nil {
		return
	}
	before := len(w.fs.WatchList())
	for _, dir := range dirs {
		dir = filepath.Join(w.dir, filepath.FromSlash(dir))
		_ = w.fs.Add(dir) // without it the resync finds out
		if real, err := filepath.EvalSymlinks(dir); err == nil && real != dir {
			_ = w.fs.Add(real)
		}
	}
	if len(w.fs.WatchList()) > before {
		w.tell()
	}
}

func (w *watcher) tell() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *watcher) events() <-chan struct{} { return w.wake }

func (w *watcher) close() {
	if w.fs != nil {
		_ = w.fs.Close()
		<-w.done
	}
}
