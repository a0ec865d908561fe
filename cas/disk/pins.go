package disk

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// pins are the trees of tasks that are being accepted.
type pins struct {
	held     map[cas.Digest]int // by calls of Pin that were not ended
	evicting bool               // Roots was asked already: whoever comes now goes to arrived
	arrived  []cas.Digest
}

// Pin keeps trees while the tasks that need them are being accepted, until
// done is called: by then Roots tells of them. Nothing of them that is here at
// this moment goes, though an eviction be under way that asked Roots before; a
// root stays for Keep besides. decisions.md 25.
func (s *Store) Pin(roots ...cas.Digest) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range roots {
		if s.pins.held == nil {
			s.pins.held = map[cas.Digest]int{}
		}
		s.pins.held[d]++
		if r, ok := s.find(d); ok {
			s.touch(r, true)
		}
	}
	if s.pins.evicting {
		s.pins.arrived = append(s.pins.arrived, roots...)
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range roots {
			if s.pins.held[d]--; s.pins.held[d] <= 0 {
				delete(s.pins.held, d)
			}
		}
	}
}

// mark walks the trees that must stay and marks their blobs with a new
// generation. The caller has the token of room; when it evicts, it calls
// unmark afterwards.
func (s *Store) mark(ctx context.Context) error {
	s.newGeneration()
	s.mu.Lock()
	s.pins.evicting, s.pins.arrived = true, nil
	s.mu.Unlock()
	return s.remark(ctx)
}

func (s *Store) unmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins.evicting, s.pins.arrived = false, nil
}

func (s *Store) pinsArrived() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pins.arrived) > 0
}

// remark marks what Roots tells of now and did not before, and the trees of
// tasks that are being accepted.
func (s *Store) remark(ctx context.Context) error {
	s.mu.Lock()
	roots := slices.Concat(slices.Collect(maps.Keys(s.pins.held)), s.pins.arrived)
	s.pins.arrived = nil
	s.mu.Unlock()
	if s.o.Roots != nil {
		of, err := s.o.Roots(ctx)
		if err != nil {
			return skep.Errorf(skep.Unavailable, "the content-addressed storage is full, and which trees must stay is not known: %w", err)
		}
		roots = append(roots, of...)
	}
	return s.markTrees(ctx, roots)
}

// markTrees marks the blobs of trees with the present generation. What is
// missing or no directory is passed over: a task that needs it fails for that,
// not the store. Memory is that of the list of directories that were found and
// not read yet, each once.
func (s *Store) markTrees(ctx context.Context, roots []cas.Digest) error {
	stack := s.markAll(nil, roots, nil)
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		b, err := s.get(ctx, d, cas.MaxDirectory, false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if _, gone := errors.AsType[*cas.MissingError](err); !gone && skep.KindOf(err) != skep.Invalid {
				return err
			}
			continue
		}
		if dir, err := cas.DecodeDirectory(b); err == nil {
			sub := make([]cas.Digest, len(dir.Dirs))
			for i, e := range dir.Dirs {
				sub[i] = e.Digest
			}
			stack = s.markAll(stack, sub, dir.Files)
		}
	}
	return nil
}

// markAll marks directories and files and appends the directories that were
// not found before.
func (s *Store) markAll(stack, dirs []cas.Digest, files []cas.File) []cas.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range dirs {
		if r, ok := s.find(d); ok {
			if _, flags := s.stamps(r); *flags&genMask != s.gen || *flags&flagWalked == 0 {
				*flags = *flags&flagPromised | flagWalked | s.gen
				stack = append(stack, d)
			}
		}
	}
	for _, f := range files {
		if r, ok := s.find(f.Digest); ok {
			if _, flags := s.stamps(r); *flags&genMask != s.gen {
				*flags = *flags&flagPromised | s.gen
			}
		}
	}
	return stack
}

func (s *Store) newGeneration() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen++; s.gen <= genMask {
		return
	}
	s.gen = 1
	for i := range s.files {
		s.files[i].flags &= flagPromised
	}
	for _, p := range s.packs {
		for i := range p.flags {
			p.flags[i] &= flagPromised
		}
	}
}
