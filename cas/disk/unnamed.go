package disk

import (
	"context"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// Unnamed is the writing of one blob whose digest is told at its end, so that
// the writer hashes while we do. Nobody can go on with it: what ends before
// its Commit is forgotten. It is not for many goroutines at once.
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

// Write appends to the content. More bytes than announced are an Invalid error
// that changes nothing; after any other error all is gone.
func (n *Unnamed) Write(p []byte) (int, error) { return n.up.Write(p) }

// Commit checks the content against d and makes the blob durable, unless the
// store has it already. Content that differs is an Invalid error. Whether it
// fails or not, the writing has ended.
func (n *Unnamed) Commit(ctx context.Context, d cas.Digest) error {
	up := n.up
	u, s := up.u, up.s
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.owner != up || u.ended {
		return errTakenOver
	}
	defer u.end(s)
	if err := u.check(d); err != nil {
		return err
	}
	missing, err := s.Missing(ctx, []cas.Digest{d})
	if err != nil || len(missing) == 0 {
		return err
	}
	return u.install(s, d)
}

// Close forgets what was not committed.
func (n *Unnamed) Close() error {
	n.up.u.mu.Lock()
	defer n.up.u.mu.Unlock()
	n.up.u.end(n.up.s)
	return nil
}
