package warm

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/host/room"
	"github.com/skepdev/skep/internal/debris"
)

// What an image may be; a bomb is none.
const (
	maxBaseBytes   = 64 << 30
	maxBaseEntries = 4 << 20
)

// Open returns the archive, whose end is an error if it has not the digest: for
// a runtime that keeps images of its own.
func (b *Base) Open() (io.ReadCloser, error) {
	f, err := os.Open(b.File)
	if err != nil {
		return nil, skep.Errorf(skep.Precondition, "the base image: %w", err)
	}
	return &verified{File: f, digest: sha256.New(), want: b.Digest}, nil
}

type verified struct {
	*os.File
	digest hash.Hash
	want   string
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.File.Read(p)
	v.digest.Write(p[:n])
	if err == io.EOF {
		if got := "sha256:" + hex.EncodeToString(v.digest.Sum(nil)); got != v.want {
			return n, skep.Errorf(skep.Precondition, "the base image %s has the digest %s, want %s; it is not used", v.Name(), got, v.want)
		}
	}
	return n, err
}

// prepare sees to it that the image lies unpacked below dir, for users from
// first on. One that was is not looked at again: its name is its digest.
func (b *Base) prepare(ctx context.Context, dir string, first, ids uint32) error {
	sum, ok := strings.CutPrefix(b.Digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size || sum != strings.ToLower(sum) {
		return skep.Errorf(skep.Invalid, "the digest of the base image is %q, want sha256:…; sha256sum %s prints one", b.Digest, b.File)
	}
	name := fmt.Sprintf("%s-%d", sum, first)
	b.root = filepath.Join(dir, name, "root")
	if _, err := os.Stat(b.root); err == nil {
		return nil
	}
	f, err := os.Open(b.File)
	if err != nil {
		return skep.Errorf(skep.Precondition, "the base image: %w", err)
	}
	defer f.Close()
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return skep.Errorf(skep.Precondition, "the base image: %w", err)
	}
	defer func() { _ = debris.Remove(tmp) }()
	if err := os.Chmod(tmp, 0o711); err != nil { //nolint:gosec // rooms' users pass through
		return err
	}
	root := filepath.Join(tmp, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	digest := sha256.New()
	all := io.TeeReader(contextReader{ctx, f}, digest)
	unpackErr := unpack(all, root, int(first), int(ids))
	if _, err := io.Copy(io.Discard, all); err != nil {
		return skep.Errorf(skep.Precondition, "read the base image: %w", err)
	}
	// A wrong digest explains a broken archive, and comes first.
	if got := hex.EncodeToString(digest.Sum(nil)); got != sum {
		return skep.Errorf(skep.Precondition, "the base image %s has the digest sha256:%s, want %s; it is not used", b.File, got, b.Digest)
	}
	if unpackErr != nil {
		return skep.Errorf(skep.Precondition, "unpack the base image %s: %w", b.File, unpackErr)
	}
	// Its name says that it is whole, after a crash of the host too.
	if err := syncFiles(root); err != nil {
		return skep.Errorf(skep.Precondition, "sync the base image: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return skep.Errorf(skep.Precondition, "the base image: %w", err)
	}
	if err := syncFiles(dir); err != nil {
		return skep.Errorf(skep.Precondition, "sync the base image: %w", err)
	}
	return nil
}

// syncFiles makes what was written to the file system of dir durable: one call
// for all files of an image, where a sync of each would take minutes. It is a
// variable for tests.
var syncFiles = func(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

func decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReader(r)
	magic, _ := br.Peek(4)
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(br)
	case len(magic) == 4 && string(magic) == "\x28\xb5\x2f\xfd":
		d, err := zstd.NewReader(br, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return br, nil
	}
}

// unpack writes an archive below dir and never outside. Users and groups are
// moved by first; device files are left out, as rooms have their own.
func unpack(r io.Reader, dir string, first, ids int) error {
	plain, err := decompress(r)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Lchown(".", first, first); err != nil {
		return err
	}
	type mode struct {
		name string
		mode fs.FileMode
	}
	var dirs []mode // get their rights at the end: one may be closed to writing
	tr := tar.NewReader(plain)
	var size int64
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if size += h.Size; size > maxBaseBytes || n > maxBaseEntries {
			return errors.New("it is too large for an image")
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			name = "."
		}
		if h.Uid < 0 || h.Gid < 0 || h.Uid >= ids || h.Gid >= ids {
			return fmt.Errorf("%s belongs to user %d and group %d, and rooms have ids below %d", h.Name, h.Uid, h.Gid, ids)
		}
		perm := h.FileInfo().Mode()
		if name != "." {
			if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
				return err
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			dirs = append(dirs, mode{name, perm})
		case tar.TypeReg:
			_ = root.Remove(name)
			f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, tr)
			if err = errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
		case tar.TypeSymlink:
			_ = root.Remove(name)
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
		case tar.TypeLink:
			_ = root.Remove(name)
			if err := root.Link(strings.TrimPrefix(path.Clean("/"+h.Linkname), "/"), name); err != nil {
				return err
			}
			continue
		case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
			continue
		default:
			return fmt.Errorf("%s has the unknown type %q", h.Name, h.Typeflag)
		}
		if err := root.Lchown(name, first+h.Uid, first+h.Gid); err != nil {
			return err
		}
		if h.Typeflag == tar.TypeReg {
			if err := root.Chmod(name, perm&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{"proc", "sys", "dev", "tmp", strings.TrimPrefix(room.Dir, "/")} {
		if err := root.Mkdir(name, 0o755); err == nil {
			if err := root.Lchown(name, first, first); err != nil {
				return err
			}
			if name == "tmp" {
				dirs = append(dirs, mode{name, fs.ModePerm | fs.ModeSticky})
			}
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := root.Chmod(d.name, d.mode&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky)); err != nil {
			return err
		}
	}
	return nil
}

// pruneBases removes images below dir that are not used, and half unpacked
// ones.
func pruneBases(dir string, used []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains(used, filepath.Join(dir, e.Name(), "root")) {
			if err := debris.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
