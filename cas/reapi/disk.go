package reapi

import (
	"context"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/disk"
)

// OnDisk makes the Store of this package of one on disk.
func OnDisk(s *disk.Store) Store { return onDisk{s} }

type onDisk struct{ *disk.Store }

func (s onDisk) PutBatch(ctx context.Context, blobs []Blob) []error {
	on := make([]disk.Blob, len(blobs))
	for i, b := range blobs {
		on[i] = disk.Blob(b)
	}
	return s.Store.PutBatch(ctx, on)
}

func (s onDisk) Upload(ctx context.Context, d cas.Digest, id string) (Upload, error) {
	up, err := s.Store.Upload(ctx, d, id)
	if err != nil {
		return nil, err
	}
	return up, nil
}

func (s onDisk) UploadOffset(d cas.Digest, id string) int64 {
	n, _, _ := s.Store.UploadOffset(d, id)
	return n
}
