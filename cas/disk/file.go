package disk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/skepdev/skep/cas"
)

// A large blob is the file blobs/XX/HASH: the content, and behind it a footer
// with a checksum for each MiB, so that a reader can trust a piece without
// having read the rest. All numbers are little endian.
//
//	content | CRC-32C of each piece, 4 each | "skep sums 1\n" | CRC-32C of the footer before 4
//
// Its size follows from the length of the file. A footer that is damaged is
// made anew when the whole content still has its SHA-256.
const (
	pieceLen    = 1 << 20
	footerMagic = "skep sums 1\n"
)

// pieces is the number of pieces of a blob.
func pieces(size int64) int64 { return (size + pieceLen - 1) / pieceLen }

func footerLen(size int64) int64 { return 4*pieces(size) + int64(len(footerMagic)) + 4 }

// fileLen is the length of a blob's file.
func fileLen(size int64) int64 { return size + footerLen(size) }

// contentLen is the size of the blob in a file of that length, -1 if there is
// none.
func contentLen(file int64) int64 {
	const fixed = int64(len(footerMagic)) + 4
	if file <= fixed {
		return -1
	}
	n := (file - fixed + pieceLen + 3) / (pieceLen + 4) // pieces
	size := file - fixed - 4*n
	if size <= 0 || fileLen(size) != file {
		return -1
	}
	return size
}

func appendFooter(b []byte, sums []uint32) []byte {
	at := len(b)
	for _, s := range sums {
		b = le.AppendUint32(b, s)
	}
	b = append(b, footerMagic...)
	return le.AppendUint32(b, crc(b[at:]))
}

// decodeFooter reads the footer of a blob of that size.
func decodeFooter(b []byte, size int64) ([]uint32, error) {
	if int64(len(b)) != footerLen(size) || crc(b[:len(b)-4]) != le.Uint32(b[len(b)-4:]) || string(b[len(b)-16:len(b)-4]) != footerMagic {
		return nil, errChecksum
	}
	sums := make([]uint32, pieces(size))
	for i := range sums {
		sums[i] = le.Uint32(b[4*i:])
	}
	return sums, nil
}

// summer computes what is known of content when it has passed: its SHA-256
// and the checksums of its pieces.
type summer struct {
	hash hash.Hash // nil: not wanted
	sums []uint32
	part uint32 // of the piece that is not complete
	size int64
}

func (s *summer) Write(p []byte) (int, error) {
	if s.hash != nil {
		s.hash.Write(p)
	}
	n := len(p)
	for len(p) > 0 {
		k := min(int64(len(p)), pieceLen-s.size%pieceLen)
		s.part = crc32.Update(s.part, castagnoli, p[:k])
		s.size += k
		p = p[k:]
		if s.size%pieceLen == 0 {
			s.sums, s.part = append(s.sums, s.part), 0
		}
	}
	return n, nil
}

// footer is the end of the file, when all has passed.
func (s *summer) footer() []byte {
	sums := s.sums
	if s.size%pieceLen != 0 {
		sums = append(sums[:len(sums):len(sums)], s.part)
	}
	return appendFooter(nil, sums)
}

func blobName(h cas.Hash) (dir, name string) {
	dir = fmt.Sprintf("%s/%02x", blobsDir, h[0])
	return dir, dir + "/" + h.String()
}

// putFiles stores the large ones among blobs, which were verified. Their
// renames share syncs of directories.
func (s *Store) putFiles(ctx context.Context, blobs []Blob, which []int, errs []error) {
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for _, i := range which {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = s.putFile(ctx, blobs[i])
		})
	}
	wg.Wait()
}

func (s *Store) putFile(ctx context.Context, b Blob) error {
	need := fileLen(b.Digest.Size)
	if err := s.reserve(ctx, need); err != nil {
		return err
	}
	defer s.release(need)
	err := s.tryFile(b)
	if isFull(err) {
		if _, e := s.makeRoom(ctx, need, true); e == nil {
			err = s.tryFile(b)
		}
		if isFull(err) {
			err = s.full(b.Digest.Size, err)
		}
	}
	return err
}

func (s *Store) tryFile(b Blob) error {
	f, temp, err := s.createTemp()
	if err != nil {
		return err
	}
	var sum summer
	_, _ = sum.Write(b.Data)
	if err = s.step("write file"); err == nil {
		_, err = f.Write(b.Data)
	}
	if err == nil {
		_, err = f.Write(sum.footer())
	}
	return s.install(f, temp, b.Digest, err)
}

func (s *Store) createTemp() (*os.File, string, error) {
	temp := tempDir + "/" + randomName()
	f, err := s.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("make a temporary file: %w", err)
	}
	return f, temp, nil
}

// install makes a complete temporary file the blob d, durably, and closes it.
// With an error, that of writing it, or of its own, the file is removed.
func (s *Store) install(f *os.File, temp string, d cas.Digest, err error) error {
	if err == nil {
		err = s.step("sync file")
	}
	if err == nil {
		err = syncData(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.rename(temp, d)
	}
	if err != nil {
		if e := s.root.Remove(temp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			s.o.Log.Warn("a temporary file stays until the next start", "file", temp, "err", e)
		}
		return fmt.Errorf("write blob %s: %w", d, err)
	}
	return nil
}

func (s *Store) rename(temp string, d cas.Digest) error {
	dir, name := blobName(d.Hash)
	lock := &s.names[d.Hash[0]]
	lock.Lock()
	defer lock.Unlock()
	err := s.step("rename file")
	if err == nil {
		err = s.root.Rename(temp, name)
	}
	if errors.Is(err, fs.ErrNotExist) { // the first of its directory
		if err = s.root.Mkdir(dir, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			if err = syncDir(s.root, blobsDir); err == nil {
				err = s.root.Rename(temp, name)
			}
		}
	}
	if err != nil {
		return err
	}
	if err = s.step("sync directory"); err == nil {
		err = syncDir(s.root, dir)
	}
	if err != nil {
		s.mu.Lock()
		_, ok := s.index[d.Hash]
		s.mu.Unlock()
		if !ok {
			_ = s.root.Remove(name)
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.find(d); ok { // somebody else was first; the content is the same
		s.touch(r, true)
		return nil
	}
	s.forgetOther(d)
	s.addFile(fileEntry{hash: d.Hash, size: d.Size, used: s.now(), flags: flagPromised})
	return nil
}

// footerOf returns the checksums of a file, after a look at all of it if its
// footer is damaged; then it is made anew. errChecksum means that the content
// is damaged, too.
func (s *Store) footerOf(ctx context.Context, f *os.File, d cas.Digest) ([]uint32, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() == fileLen(d.Size) {
		b := make([]byte, footerLen(d.Size))
		if _, err := f.ReadAt(b, d.Size); err == nil {
			if sums, err := decodeFooter(b, d.Size); err == nil {
				return sums, nil
			}
		}
	}
	sum, err := sumAll(ctx, f, d)
	if err != nil {
		return nil, err
	}
	s.o.Log.WarnContext(ctx, "the checksums of a blob were damaged and are made anew", "blob", d)
	s.mendFooter(d, sum.footer())
	return decodeFooter(sum.footer(), d.Size)
}

// sumAll reads a whole blob. errChecksum means that it is not d.
func sumAll(ctx context.Context, f *os.File, d cas.Digest) (*summer, error) {
	sum := &summer{hash: sha256.New()}
	buf := make([]byte, 256<<10)
	for sum.size < d.Size {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), d.Size-sum.size)], sum.size)
		_, _ = sum.Write(buf[:n])
		if errors.Is(err, io.EOF) || isUnreadable(err) {
			if sum.size < d.Size {
				return nil, errChecksum
			}
		} else if err != nil {
			return nil, err
		}
	}
	if cas.Hash(sum.hash.Sum(nil)) != d.Hash {
		return nil, errChecksum
	}
	return sum, nil
}

// mendFooter writes the footer of a blob whose content is good. A reader that
// sees half of it looks at all of the content itself.
func (s *Store) mendFooter(d cas.Digest, footer []byte) {
	lock := &s.names[d.Hash[0]]
	lock.Lock()
	defer lock.Unlock()
	_, name := blobName(d.Hash)
	f, err := s.root.OpenFile(name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(footer, d.Size)
		err = errors.Join(err, f.Truncate(fileLen(d.Size)), f.Sync(), f.Close())
	}
	if err != nil {
		s.o.Log.Warn("the checksums of a blob were not mended", "blob", d, "err", err)
	}
}
