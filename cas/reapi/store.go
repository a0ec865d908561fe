package reapi

import (
	"context"
	"io"

	"github.com/skepdev/skep/cas"
)

// Store keeps the blobs. Errors are those of package skep, Invalid for data
// that does not fit its digest and Exhausted when there is no room, or a
// *cas.MissingError. Methods may be called at once by many.
type Store interface {
	// Missing returns those blobs that the store lacks, each once. The others
	// stay for an hour at least.
	Missing(context.Context, []cas.Digest) ([]cas.Digest, error)
	// PutBatch keeps blobs after checking them; they are durable when it returns
	// nil in their place.
	PutBatch(context.Context, []Blob) []error
	// Get returns a whole blob of at most limit bytes.
	Get(ctx context.Context, d cas.Digest, limit int64) ([]byte, error)
	// Open reads a blob from offset on. No byte of a corrupt one is given out.
	Open(ctx context.Context, d cas.Digest, offset int64) (io.ReadCloser, error)
	// Upload begins to write a blob, or goes on where the last writer with the
	// same digest and id stopped.
	Upload(ctx context.Context, d cas.Digest, id string) (Upload, error)
	// UploadOffset says how many bytes of an unfinished upload are here.
	UploadOffset(d cas.Digest, id string) int64
}

// Blob is a blob and its digest, not yet compared.
type Blob struct {
	Digest cas.Digest
	Data   []byte
}

// Upload is one blob being written.
type Upload interface {
	Offset() int64 // bytes that are here
	Write([]byte) (int, error)
	Commit(context.Context) error // compares size and hash, then makes the blob durable
	Close() error                 // without Commit what is here stays for a while, to be resumed
}
