package reapi

import (
	"context"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/bazelbuild/remote-apis/build/bazel/semver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const (
	// maxMessage bounds a message in both directions. It is what gRPC clients
	// accept unless told otherwise.
	maxMessage = 4 << 20
	// maxBatch is what blobs of a batch may have together: a message less the
	// digests and statuses of some two thousand of them.
	maxBatch = maxMessage - 192<<10
)

// PlainHeader is the metadata with which the answer of GetCapabilities says that
// large blobs may also be read and written by HTTP/1.1 at the same address. Its
// value is the version of how, "1". wire: docs/wire/cas.md#plain-transfers
const PlainHeader = "skep-plain-transfers"

// BundlesHeader says the same of small ones, many together. wire:
// docs/wire/cas.md#bundles
const BundlesHeader = "skep-plain-bundles"

type capabilities struct {
	repb.UnimplementedCapabilitiesServer
	elsewhere string // URL of the storage that keeps the blobs; "" = this one does, for plain transfers too
}

// GetCapabilities says what is served. A client that is not told
// max_batch_total_size_bytes takes it for zero and makes a call for each blob.
func (c capabilities) GetCapabilities(ctx context.Context, _ *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	header := metadata.Pairs(PlainHeader, "1", BundlesHeader, "1")
	if c.elsewhere != "" {
		header = metadata.Pairs(ElsewhereHeader, c.elsewhere)
	}
	_ = grpc.SetHeader(ctx, header) // who is not told does without
	zstd := []repb.Compressor_Value{repb.Compressor_ZSTD}
	return &repb.ServerCapabilities{
		CacheCapabilities: &repb.CacheCapabilities{
			DigestFunctions:                 []repb.DigestFunction_Value{repb.DigestFunction_SHA256},
			ActionCacheUpdateCapabilities:   &repb.ActionCacheUpdateCapabilities{UpdateEnabled: true},
			MaxBatchTotalSizeBytes:          maxBatch,
			SymlinkAbsolutePathStrategy:     repb.SymlinkAbsolutePathStrategy_DISALLOWED,
			SupportedCompressors:            zstd,
			SupportedBatchUpdateCompressors: zstd,
		},
		LowApiVersion:  &semver.SemVer{Major: 2, Minor: 0},
		HighApiVersion: &semver.SemVer{Major: 2, Minor: 3},
	}, nil
}
