package disk

import (
	"context"
	"errors"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// mark walks the trees that must stay and marks their blobs with a new
// generation. What is missing or no directory is passed over: a task that
// needs it fails for that, not the store. Memory is that of the list of
// directories that were found and not read yet, each once. The caller has the
// token of room.
func (s *Store) mark(ctx context.Context) error {
	var roots []cas.Digest
	if s.o.Roots != nil {
		var err error
		if roots, err = s.o.Roots(ctx); err != nil {
			return skep.Errorf(skep.Unavailable, "the content-addressed storage is full, and which trees must stay is not known: %w", err)
		}
	}
	s.newGeneration()
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
