package cache

import (
	"encoding/binary"
	"errors"
	"path"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// plan is a tree laid out flat: what a directory is made from.
type plan struct {
	root  cas.Digest
	dirs  []planDir // parents stand before their children; the first is the root
	files []planFile
	links []planLink
	bytes int64

	entries []entry // what it is made from, each once, in the order of files
}

// entry is a file of the cache that a plan needs.
type entry struct {
	key  key
	size int64
	twin bool // an entry before it has the same content and the other mode
}

type planDir struct {
	parent      int
	name        string
	first, last int // its files
}

type planFile struct {
	dir  int
	name string
	key  key
}

type planLink struct {
	dir          int
	name, target string
}

// newPlan lays out the tree of root, or says why no directory can be made of
// it. Nothing has been written then.
func newPlan(root cas.Digest, tree map[cas.Hash]*cas.Directory) (*plan, error) {
	entries, err := measure(root, tree)
	if err != nil {
		return nil, err
	}
	p := &plan{root: root, files: make([]planFile, 0, entries)}
	add := p.indexer(entries)
	var paths []string
	var walk func(parent int, name, at string, d *cas.Directory) error
	walk = func(parent int, name, at string, d *cas.Directory) error {
		self := len(p.dirs)
		p.dirs = append(p.dirs, planDir{parent: parent, name: name, first: len(p.files), last: len(p.files) + len(d.Files)})
		paths = append(paths, at)
		for _, f := range d.Files {
			if f.Digest.Size < 0 || p.bytes > 1<<62-f.Digest.Size {
				return skep.Errorf(skep.Invalid, "input tree %s: %s has a size of %d bytes", root, path.Join(at, f.Name), f.Digest.Size)
			}
			p.bytes += f.Digest.Size
			k := key{f.Digest.Hash, f.Executable}
			p.files = append(p.files, planFile{self, f.Name, k})
			if err := add(k, f.Digest.Size); err != nil {
				return err
			}
		}
		for _, l := range d.Symlinks {
			if cas.Escapes(at, l.Target) {
				return skep.Errorf(skep.Invalid, "input tree %s: symlink %s points to %.200q, outside of the tree", root, path.Join(at, l.Name), l.Target)
			}
			p.links = append(p.links, planLink{self, l.Name, l.Target})
		}
		for _, s := range d.Dirs {
			if err := walk(self, s.Name, path.Join(at, s.Name), directory(tree, s.Digest)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(-1, "", "", directory(tree, root)); err != nil {
		return nil, err
	}
	if err := p.checkLinks(paths); err != nil {
		return nil, err
	}
	return p, nil
}

func directory(tree map[cas.Hash]*cas.Directory, d cas.Digest) *cas.Directory {
	if d.Size == 0 {
		return &cas.Directory{}
	}
	return tree[d.Hash]
}

// measure returns how many entries a tree has. It refuses one that is too
// deep, too large or not whole, without walking what it unfolds to: a few
// directories can name each other a million times.
func measure(root cas.Digest, tree map[cas.Hash]*cas.Directory) (entries int, err error) {
	type extent struct{ entries, depth int }
	seen := map[cas.Hash]extent{}
	var missing []cas.Digest
	var walk func(d cas.Digest, depth int) (extent, error)
	walk = func(d cas.Digest, depth int) (extent, error) {
		if e, ok := seen[d.Hash]; ok {
			return e, nil
		}
		if depth > cas.MaxDepth {
			return extent{}, skep.Errorf(skep.Invalid, "input tree %s is more than %d directories deep", root, cas.MaxDepth)
		}
		dir := directory(tree, d)
		if dir == nil {
			missing = append(missing, d)
			return extent{}, nil
		}
		e := extent{len(dir.Files) + len(dir.Symlinks) + len(dir.Dirs), 1}
		for _, s := range dir.Dirs {
			sub, err := walk(s.Digest, depth+1)
			if err != nil {
				return extent{}, err
			}
			e.entries, e.depth = min(e.entries+sub.entries, cas.MaxTreeEntries+1), max(e.depth, sub.depth+1)
		}
		seen[d.Hash] = e
		return e, nil
	}
	e, err := walk(root, 1)
	switch {
	case err != nil:
		return 0, err
	case len(missing) > 0:
		return 0, &cas.MissingError{Digests: missing}
	case e.depth > cas.MaxDepth:
		return 0, skep.Errorf(skep.Invalid, "input tree %s is more than %d directories deep", root, cas.MaxDepth)
	case e.entries > cas.MaxTreeEntries:
		return 0, skep.Errorf(skep.Invalid, "input tree %s has more than %d entries", root, cas.MaxTreeEntries)
	}
	return e.entries, nil
}

// indexer returns what notes the entry of a file, of about n. It refuses a
// tree that gives one hash two sizes: at most one of them can be had.
func (p *plan) indexer(n int) func(k key, size int64) error {
	p.entries = make([]entry, 0, n)
	first, twins := make(map[cas.Hash]int, n), map[cas.Hash]bool{}
	return func(k key, size int64) error {
		at, again := first[k.hash]
		if !again {
			first[k.hash] = len(p.entries)
			p.entries = append(p.entries, entry{key: k, size: size})
			return nil
		}
		if had := p.entries[at]; had.size != size {
			return skep.Errorf(skep.Invalid, "input tree %s: blob %s has %d and %d bytes", p.root, k.hash, had.size, size)
		} else if had.key == k || twins[k.hash] {
			return nil
		}
		twins[k.hash] = true
		p.entries = append(p.entries, entry{key: k, size: size, twin: true})
		return nil
	}
}

// checkLinks refuses links that leave the tree by way of others.
func (p *plan) checkLinks(paths []string) error {
	links := make(map[string]string, len(p.links))
	for _, l := range p.links {
		links[path.Join(paths[l.dir], l.name)] = l.target
	}
	if out := cas.LeavingLink(links); out != "" {
		return skep.Errorf(skep.Invalid, "input tree %s: symlink %s leaves the tree by way of another", p.root, out)
	}
	return nil
}

// encodeTree writes the Directory messages of a tree, each after its length.
func encodeTree(tree map[cas.Hash]*cas.Directory) []byte {
	var b []byte
	for _, d := range tree {
		m := d.Encode()
		b = binary.AppendUvarint(b, uint64(len(m)))
		b = append(b, m...)
	}
	return b
}

// decodeTree reads what encodeTree wrote. Names are by the content that was
// read: a damaged message is one that is missing.
func decodeTree(b []byte) (map[cas.Hash]*cas.Directory, error) {
	var list [][]byte
	for len(b) > 0 {
		n, skip := binary.Uvarint(b)
		if skip <= 0 || n > uint64(len(b)-skip) {
			return nil, errors.New("a message is cut off")
		}
		list = append(list, b[skip:skip+int(n)])
		b = b[skip+int(n):]
	}
	dirs, hashes := make([]*cas.Directory, len(list)), make([]cas.Hash, len(list))
	var g errgroup.Group
	part := len(list)/runtime.GOMAXPROCS(0) + 1
	for from := 0; from < len(list); from += part {
		g.Go(func() (err error) {
			for n := from; n < min(from+part, len(list)) && err == nil; n++ {
				hashes[n] = cas.Sum(list[n]).Hash
				dirs[n], err = cas.DecodeDirectory(list[n])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	tree := make(map[cas.Hash]*cas.Directory, len(list))
	for n, d := range dirs {
		tree[hashes[n]] = d
	}
	return tree, nil
}
