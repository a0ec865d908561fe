package reapi

import (
	"context"
	"io"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// ElsewhereHeader is the metadata with which the answer of GetCapabilities names
// the storage to use instead of this server, as grpc(s)://HOST[:PORT][/INSTANCE].
// wire: docs/wire/cas.md#storage-elsewhere
const ElsewhereHeader = "skep-storage"

// elsewhere is the Store of a server that has none: the URL of the one to use.
type elsewhere string

func (e elsewhere) err() error {
	return skep.Errorf(skep.Precondition, "this server keeps no blobs; use the storage at %s", string(e))
}

func (e elsewhere) Missing(context.Context, []cas.Digest) ([]cas.Digest, error) { return nil, e.err() }

func (e elsewhere) PutBatch(_ context.Context, blobs []Blob) []error {
	errs := make([]error, len(blobs))
	for i := range errs {
		errs[i] = e.err()
	}
	return errs
}

func (e elsewhere) Get(context.Context, cas.Digest, int64) ([]byte, error) { return nil, e.err() }

func (e elsewhere) Open(context.Context, cas.Digest, int64) (io.ReadCloser, error) {
	return nil, e.err()
}

func (e elsewhere) Upload(context.Context, cas.Digest, string) (Upload, error) { return nil, e.err() }

func (e elsewhere) UploadOffset(cas.Digest, string) int64 { return 0 }
