package cas

import (
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/skepdev/skep"
)

// Limits of a tree. A tree beyond them is refused, whoever made it: the walk
// of one stays bounded. (REAPI sets none.)
const (
	MaxDepth        = 256       // directories from the root to a file
	MaxDirectory    = 32 << 20  // bytes of one Directory message
	MaxTreeEntries  = 4_000_000 // files, links and directories of a tree
	maxNameBytes    = 255
	maxSymlinkBytes = 4096
)

// Directory is one directory of a tree (REAPI Directory): entries by kind,
// each list sorted by name, no name twice.
type Directory struct {
	Files    []File
	Dirs     []Dir
	Symlinks []Symlink
}

// File is a FileNode.
type File struct {
	Name       string
	Digest     Digest
	Executable bool
}

// Dir is a DirectoryNode.
type Dir struct {
	Name   string
	Digest Digest
}

// Symlink is a SymlinkNode; Target uses slashes.
type Symlink struct {
	Name   string
	Target string
}

// Field numbers of the REAPI messages.
const (
	dirFiles, dirDirs, dirSymlinks   = 1, 2, 3
	nodeName, nodeDigest, nodeIsExec = 1, 2, 4
	linkTarget                       = 2
	digestHash, digestSize           = 1, 2
)

// perEntry is what an entry takes in a message beside names, or a little less.
const perEntry = 88

// Encode returns the canonical message of a directory, sorting its entries.
func (d *Directory) Encode() []byte {
	slices.SortFunc(d.Files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Dirs, func(a, b Dir) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(d.Symlinks, func(a, b Symlink) int { return strings.Compare(a.Name, b.Name) })
	size := 0
	for _, f := range d.Files {
		size += perEntry + len(f.Name)
	}
	for _, s := range d.Dirs {
		size += perEntry + len(s.Name)
	}
	for _, l := range d.Symlinks {
		size += perEntry + len(l.Name) + len(l.Target)
	}
	out, node := make([]byte, 0, size), make([]byte, 0, 2*perEntry)
	add := func(field protowire.Number) {
		out = protowire.AppendTag(out, field, protowire.BytesType)
		out = protowire.AppendBytes(out, node)
	}
	for _, f := range d.Files {
		node = appendText(node[:0], nodeName, f.Name)
		node = AppendDigest(node, nodeDigest, f.Digest)
		if f.Executable {
			node = protowire.AppendVarint(protowire.AppendTag(node, nodeIsExec, protowire.VarintType), 1)
		}
		add(dirFiles)
	}
	for _, s := range d.Dirs {
		node = appendText(node[:0], nodeName, s.Name)
		node = AppendDigest(node, nodeDigest, s.Digest)
		add(dirDirs)
	}
	for _, l := range d.Symlinks {
		node = appendText(node[:0], nodeName, l.Name)
		node = appendText(node, linkTarget, l.Target)
		add(dirSymlinks)
	}
	return out
}

func appendText(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// AppendDigest appends a digest as the field of a message.
func AppendDigest(b []byte, field protowire.Number, d Digest) []byte {
	var buf [96]byte
	m := protowire.AppendVarint(protowire.AppendTag(buf[:0], digestHash, protowire.BytesType), uint64(2*len(d.Hash)))
	m = hex.AppendEncode(m, d.Hash[:])
	if d.Size != 0 {
		m = protowire.AppendVarint(protowire.AppendTag(m, digestSize, protowire.VarintType), uint64(d.Size))
	}
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
}

// DecodeDirectory reads a Directory message and checks it: names are single
// path elements and stand once and in order, digests are well formed. Fields
// that it does not know, such as node properties, are skipped. Any fault is an
// Invalid error that names it.
func DecodeDirectory(b []byte) (*Directory, error) {
	if len(b) > MaxDirectory {
		return nil, skep.Errorf(skep.Invalid, "directory message of %d bytes, want %d at most", len(b), MaxDirectory)
	}
	var d Directory
	err := Fields(b, func(field protowire.Number, f Field) error {
		switch field { //nolint:exhaustive // numbers of fields
		case dirFiles:
			n, err := decodeNode(f.Bytes)
			d.Files = append(d.Files, File{n.name, n.digest, n.exec})
			return err
		case dirDirs:
			n, err := decodeNode(f.Bytes)
			d.Dirs = append(d.Dirs, Dir{n.name, n.digest})
			return err
		case dirSymlinks:
			var l Symlink
			err := Fields(f.Bytes, func(field protowire.Number, f Field) error {
				switch field { //nolint:exhaustive // numbers of fields
				case nodeName:
					l.Name = string(f.Bytes)
				case linkTarget:
					l.Target = string(f.Bytes)
				}
				return nil
			})
			d.Symlinks = append(d.Symlinks, l)
			return err
		}
		return nil
	})
	if err == nil {
		err = d.check()
	}
	if err != nil {
		return nil, skep.Errorf(skep.Invalid, "directory message: %w", err)
	}
	return &d, nil
}

type node struct {
	name   string
	digest Digest
	exec   bool
}

func decodeNode(b []byte) (n node, err error) {
	var seen bool
	err = Fields(b, func(field protowire.Number, f Field) (err error) {
		switch field { //nolint:exhaustive // numbers of fields
		case nodeName:
			n.name = string(f.Bytes)
		case nodeDigest:
			seen = true
			n.digest, err = DecodeDigest(f.Bytes)
		case nodeIsExec:
			n.exec = f.Varint != 0
		}
		return err
	})
	if err == nil && !seen {
		err = fmt.Errorf("%.80q has no digest", n.name)
	}
	return n, err
}

// DecodeDigest reads a Digest message.
func DecodeDigest(b []byte) (Digest, error) {
	var (
		hash string
		size int64
	)
	err := Fields(b, func(field protowire.Number, f Field) error {
		switch field { //nolint:exhaustive // numbers of fields
		case digestHash:
			hash = string(f.Bytes)
		case digestSize:
			size = int64(f.Varint)
		}
		return nil
	})
	if err != nil {
		return Digest{}, err
	}
	return NewDigest(hash, size)
}

// Field is the value of a field: Bytes of a length-delimited one, Varint of a
// number.
type Field struct {
	Bytes  []byte
	Varint uint64
}

// Fields calls fn for the length-delimited and varint fields of a message in
// their order and skips those of other types.
func Fields(b []byte, fn func(protowire.Number, Field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("malformed message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		var f Field
		switch typ {
		case protowire.BytesType:
			f.Bytes, n = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			f.Varint, n = protowire.ConsumeVarint(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("malformed message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if typ == protowire.BytesType || typ == protowire.VarintType {
			if err := fn(num, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// check holds a decoded directory against the rules of REAPI and of a file
// system that must not be left.
func (d *Directory) check() error {
	names := make(map[string]bool, len(d.Files)+len(d.Dirs)+len(d.Symlinks))
	var last string
	one := func(i int, name string) error {
		if err := CheckName(name); err != nil {
			return err
		}
		if names[name] {
			return fmt.Errorf("name %q stands twice", name)
		}
		if i > 0 && name < last {
			return fmt.Errorf("name %q stands after %q: entries are sorted", name, last)
		}
		names[name], last = true, name
		return nil
	}
	for i, f := range d.Files {
		if err := one(i, f.Name); err != nil {
			return err
		}
	}
	for i, s := range d.Dirs {
		if err := one(i, s.Name); err != nil {
			return err
		}
	}
	for i, l := range d.Symlinks {
		if err := one(i, l.Name); err != nil {
			return err
		}
		if l.Target == "" || len(l.Target) > maxSymlinkBytes || strings.ContainsRune(l.Target, 0) {
			return fmt.Errorf("symlink %q has no usable target", l.Name)
		}
	}
	return nil
}

// CheckName returns what is wrong with a name of an entry: it must be one
// element of a path on every platform.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is no name of a file", name)
	case len(name) > maxNameBytes:
		return fmt.Errorf("name %.40q… has %d bytes, want %d at most", name, len(name), maxNameBytes)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("name %.80q holds a slash or a zero byte", name)
	case !utf8.ValidString(name):
		return fmt.Errorf("name %.80q is not UTF-8", name)
	}
	return nil
}

// Escapes reports whether a symlink in dir, a slash-separated path below the
// root of a tree ("" is the root), points outside of the tree.
func Escapes(dir, target string) bool {
	if path.IsAbs(target) || strings.HasPrefix(target, `\`) || (len(target) > 1 && target[1] == ':') {
		return true
	}
	at := path.Join(dir, target)
	return at == ".." || strings.HasPrefix(at, "../")
}
