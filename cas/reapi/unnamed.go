package reapi

import (
	"context"

	bspb "google.golang.org/genproto/googleapis/bytestream"

	"github.com/skepdev/skep"
)

// UnnamedHeader is the metadata with which the answer of GetCapabilities says
// that blobs may be written before their digest is known. Its value is the
// version of how, "1". wire: docs/wire/cas.md#unnamed-writes
const UnnamedHeader = "skep-unnamed-writes"

// writeUnnamed takes a blob in whose digest its writer computes while sending.
// The last message has it, in a name of the ordinary form. bad is what is wrong
// with the first name.
func (s *Service) writeUnnamed(ctx context.Context, in bspb.ByteStream_WriteServer, msg *writeChunk, r Resource, bad error) error {
	if bad != nil {
		msg.free()
		return s.status(ctx, bad, "")
	}
	err := guarded(func(t *ticks) error {
		defer msg.free()
		return s.takeUnnamed(ctx, r, &messages{in: in, t: t, msg: msg, fresh: true, name: msg.ResourceName, digest: r.Digest, unnamed: true})
	})
	if err != nil {
		return s.status(ctx, err, "")
	}
	return in.SendAndClose(&bspb.WriteResponse{CommittedSize: r.Digest.Size})
}

func (s *Service) takeUnnamed(ctx context.Context, r Resource, msgs *messages) error {
	up, err := s.store.UploadUnnamed(ctx, r.Digest.Size)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := msgs.copyTo(up); err != nil {
		return err
	}
	if msgs.last == "" {
		return skep.Errorf(skep.Invalid, "%s: the stream ended without a last message that names the blob", msgs.name)
	}
	is, err := ParseWrite(msgs.last)
	switch {
	case err != nil:
		return err
	case is.Instance != r.Instance || is.Upload != r.Upload || is.Zstd:
		return skep.Invalidf("resource_name", "the last message must name a blob of the same write, uncompressed")
	}
	return up.Commit(ctx, is.Digest)
}
