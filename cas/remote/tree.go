package remote

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// maxTreeBytes bounds the Directory messages of one tree.
const maxTreeBytes = 512 << 20

// Tree returns the directories below root and root's own by their hashes.
// Every one was verified, and package cas's limits hold for the whole as it
// would be on a disk: depth and entries, a directory that stands twice counting
// twice. Absent directories are a *cas.MissingError.
func (c *Client) Tree(ctx context.Context, root cas.Digest) (map[cas.Hash]*cas.Directory, error) {
	t := &tree{have: map[cas.Hash]*cas.Directory{}, raw: map[cas.Hash][]byte{}}
	if root != cas.Empty {
		if err := c.getTree(ctx, root, t); err != nil {
			return nil, err
		}
	}
	level := []cas.Digest{root}
	for depth := 0; len(level) > 0; depth++ {
		if depth > cas.MaxDepth {
			return nil, skep.Errorf(skep.Invalid, "tree %s is more than %d directories deep", root, cas.MaxDepth)
		}
		if err := c.directories(ctx, level, t); err != nil {
			return nil, err
		}
		level = t.below(level)
	}
	if _, err := t.count(root.Hash, map[cas.Hash]int{}); err != nil {
		return nil, skep.Errorf(skep.Invalid, "tree %s: %w", root, err)
	}
	return t.have, nil
}

// tree is what is known of one.
type tree struct {
	have  map[cas.Hash]*cas.Directory
	raw   map[cas.Hash][]byte // came with GetTree; not decoded yet
	bytes int64
}

// grow accounts for a message.
func (t *tree) grow(n int) error {
	if t.bytes += int64(n); t.bytes > maxTreeBytes {
		return skep.Errorf(skep.Invalid, "the directories of the tree have more than %d bytes", maxTreeBytes)
	}
	return nil
}

// below lists the directories in those of level that are not decoded yet.
func (t *tree) below(level []cas.Digest) (next []cas.Digest) {
	seen := map[cas.Digest]bool{}
	for _, d := range level {
		for _, s := range t.have[d.Hash].Dirs {
			if t.have[s.Digest.Hash] == nil && !seen[s.Digest] {
				seen[s.Digest] = true
				next = append(next, s.Digest)
			}
		}
	}
	return next
}

// count returns the entries below a directory as a disk would have them. A
// directory cannot hold itself: its hash would have to be known before it is.
func (t *tree) count(h cas.Hash, known map[cas.Hash]int) (int, error) {
	if n, ok := known[h]; ok {
		return n, nil
	}
	d := t.have[h]
	n := len(d.Files) + len(d.Dirs) + len(d.Symlinks)
	for _, s := range d.Dirs {
		k, err := t.count(s.Digest.Hash, known)
		if err != nil {
			return 0, err
		}
		if n += k; n > cas.MaxTreeEntries {
			return 0, skep.Errorf(skep.Invalid, "more than %d entries", cas.MaxTreeEntries)
		}
	}
	known[h] = n
	return n, nil
}

// directories decodes those of list, asking for what did not come with GetTree.
func (c *Client) directories(ctx context.Context, list []cas.Digest, t *tree) error {
	var ask []cas.Digest
	for _, d := range list {
		switch raw, came := t.raw[d.Hash]; {
		case d.Size > cas.MaxDirectory:
			return skep.Errorf(skep.Invalid, "directory %s: %d bytes are the limit", d, cas.MaxDirectory)
		case came && int64(len(raw)) == d.Size:
			if err := t.decode(d, raw); err != nil {
				return err
			}
			delete(t.raw, d.Hash)
		default:
			ask = append(ask, d)
		}
	}
	var mu sync.Mutex
	return c.ReadBatch(ctx, ask, func(d cas.Digest, b []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if err := t.grow(len(b)); err != nil {
			return err
		}
		return t.decode(d, b)
	})
}

func (t *tree) decode(d cas.Digest, b []byte) error {
	dir, err := cas.DecodeDirectory(b)
	if err != nil {
		return skep.Errorf(skep.Invalid, "directory %s: %w", d, err)
	}
	t.have[d.Hash] = dir
	return nil
}

// getTree gathers what one call gives. Whatever it lacks or garbles is asked
// for by digest afterwards, so most of its errors do not matter.
func (c *Client) getTree(ctx context.Context, root cas.Digest, t *tree) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	token := ""
	for {
		before, page := t.bytes, token
		err := c.retry(ctx, "get tree", func(ctx context.Context) (bool, error) { return c.getPage(ctx, root, t, &token) })
		var known *skep.Error
		switch errors.As(err, &known); {
		case err == nil && token != "" && token != page && t.bytes > before:
			continue
		case err == nil, ctx.Err() == nil && known != nil && (known.Kind == skep.Precondition || known.Kind == skep.NotFound):
			return nil
		case ctx.Err() == nil && known != nil && known.Kind == skep.Invalid && t.bytes <= maxTreeBytes:
			return nil
		}
		return err
	}
}

// getPage reads the messages of one call and leaves the next page's token.
func (c *Client) getPage(ctx context.Context, root cas.Digest, t *tree, token *string) (progress bool, err error) {
	msg := appendString(nil, 1, c.instance)
	msg = cas.AppendDigest(msg, 2, root)
	msg = appendString(msg, 4, *token)
	s, err := c.open(ctx, methodGetTree, one(msg), int64(len(msg)+frameHeader), 0)
	if err != nil {
		return false, err
	}
	defer s.close()
	for {
		m, err := s.recv(nil, maxAnswer)
		if errors.Is(err, io.EOF) {
			return progress, nil
		}
		if err != nil {
			return progress, err
		}
		dirs, next, err := decodeTree(m)
		if err != nil {
			return progress, malformed("get tree", err)
		}
		for _, raw := range dirs {
			h := cas.Sum(raw).Hash
			if t.raw[h] != nil {
				continue
			}
			if err := t.grow(len(raw)); err != nil {
				return progress, permanentError{err}
			}
			t.raw[h] = slices.Clip(raw)
			progress = true
		}
		*token = next
	}
}
