package disk

import (
	"context"
	"io"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/readahead"
)

// Unnamed is the writing of one blob whose digest nobody knows before all of it
// is here: the store tells it. Nobody can go on with it: what ends before its
// Commit is forgotten. It is not for many goroutines at once.
type Unnamed struct{ up *Upload }

// UploadUnnamed starts writing a large blob of size bytes, more than a pack
// takes. It has the bounds and the life time of Upload; Close must be called.
func (s *Store) UploadUnnamed(ctx context.Context, size int64) (*Unnamed, error) {
	if size <= smallMax {
		return nil, skep.Errorf(skep.Invalid, "a blob of %d bytes is written under its digest; more than %d can be without", size, smallMax)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.expireUploads()
	d := cas.Digest{Size: size}
	u, err := s.newUpload(ctx, d, unnamedPrefix+randomName())
	if err != nil {
		return nil, err
	}
	up := &Upload{ctx: ctx, s: s, u: u, d: d}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.owner = up
	return &Unnamed{up}, nil
}

// unnamedPrefix is of ids that no caller of Upload has.
const unnamedPrefix = "\x00"

// Take appends all that r has; see readahead.Copy for stop. More bytes than
// were announced are an Invalid error; after any other all is gone.
func (n *Unnamed) Take(r io.Reader, stop func()) error {
	_, err := readahead.Copy(r, stop, &n.up.u.sum, (*unnamedFile)(n))
	return err
}

// unnamedFile is the file of an Unnamed, as a stage after the hash.
type unnamedFile Unnamed

func (n *unnamedFile) Write(p []byte) (int, error) {
	u := n.up.u
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := n.up.mayWrite(p); err != nil {
		return 0, err
	}
	if err := n.up.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Commit makes the blob durable, unless the store has it already, and returns
// its digest. Fewer bytes than were announced are an Invalid error. Whether it
// fails or not, the writing has ended.
func (n *Unnamed) Commit(ctx context.Context) (cas.Digest, error) {
	up := n.up
	u, s := up.u, up.s
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.owner != up || u.ended {
		return cas.Digest{}, errTakenOver
	}
	defer u.end(s)
	if u.came != u.digest.Size || u.sum.size != u.came {
		return cas.Digest{}, skep.Errorf(skep.Invalid, "blob %s: only %d came", u, u.came)
	}
	d := cas.Digest{Hash: cas.Hash(u.sum.hash.Sum(nil)), Size: u.came}
	missing, err := s.Missing(ctx, []cas.Digest{d})
	if err != nil || len(missing) == 0 {
		return d, err
	}
	return d, u.install(s, d)
}

// Close forgets what was not committed.
func (n *Unnamed) Close() error {
	n.up.u.mu.Lock()
	defer n.up.u.mu.Unlock()
	n.up.u.end(n.up.s)
	return nil
}
