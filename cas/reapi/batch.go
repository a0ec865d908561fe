package reapi

import (
	"context"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// checkFunction refuses a digest function that is named and is not ours.
func checkFunction(f repb.DigestFunction_Value) error {
	if f == repb.DigestFunction_UNKNOWN || f == repb.DigestFunction_SHA256 {
		return nil
	}
	return skep.Invalidf("digest_function", "%s is not served; SHA256 is", f)
}

func digestOf(d *repb.Digest) (cas.Digest, error) {
	if d == nil {
		return cas.Digest{}, skep.Errorf(skep.Invalid, "a digest is missing in the request")
	}
	return cas.NewDigest(d.Hash, d.SizeBytes)
}

func digestPB(d cas.Digest) *repb.Digest {
	return &repb.Digest{Hash: d.Hash.String(), SizeBytes: d.Size}
}

// FindMissingBlobs says which of the blobs are not here; those that are stay
// for an hour at least (decisions.md 25).
func (s *Service) FindMissingBlobs(ctx context.Context, req *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	if err := checkFunction(req.DigestFunction); err != nil {
		return nil, s.status(ctx, err, "")
	}
	ask := make([]cas.Digest, 0, len(req.BlobDigests))
	for _, d := range req.BlobDigests {
		cd, err := digestOf(d)
		if err != nil {
			return nil, s.status(ctx, err, "")
		}
		if cd != cas.Empty {
			ask = append(ask, cd)
		}
	}
	out := &repb.FindMissingBlobsResponse{}
	if len(ask) == 0 {
		return out, nil
	}
	missing, err := s.store.Missing(ctx, ask)
	if err != nil {
		return nil, s.status(ctx, err, "")
	}
	for _, d := range missing {
		out.MissingBlobDigests = append(out.MissingBlobDigests, digestPB(d))
	}
	return out, nil
}

// BatchUpdateBlobs writes small blobs. Each has a status of its own; they share
// one commit.
func (s *Service) BatchUpdateBlobs(ctx context.Context, req *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	if err := checkFunction(req.DigestFunction); err != nil {
		return nil, s.status(ctx, err, "")
	}
	digests := make([]cas.Digest, len(req.Requests))
	var total int64
	for i, r := range req.Requests {
		var err error
		if digests[i], err = digestOf(r.Digest); err != nil {
			return nil, s.status(ctx, err, "")
		}
		if total += digests[i].Size; digests[i].Size > maxBatch || total > maxBatch {
			return nil, s.status(ctx, tooLarge("written"), "")
		}
	}
	if err := s.memory.Acquire(ctx, total); err != nil {
		return nil, s.status(ctx, err, "")
	}
	defer s.memory.Release(total)
	errs := make(map[cas.Digest]error, len(digests))
	blobs := make([]Blob, 0, len(digests))
	for i, r := range req.Requests {
		d := digests[i]
		if _, seen := errs[d]; seen {
			continue
		}
		data, err := plain(d, r)
		errs[d] = err
		if err == nil {
			blobs = append(blobs, Blob{d, data})
		}
	}
	for i, err := range s.store.PutBatch(ctx, blobs) {
		errs[blobs[i].Digest] = err
	}
	out := &repb.BatchUpdateBlobsResponse{Responses: make([]*repb.BatchUpdateBlobsResponse_Response, len(digests))}
	for i, d := range digests {
		out.Responses[i] = &repb.BatchUpdateBlobsResponse_Response{Digest: req.Requests[i].Digest, Status: s.statusPB(ctx, errs[d], d)}
	}
	return out, nil
}

// plain returns the bytes of one blob of a batch.
func plain(d cas.Digest, r *repb.BatchUpdateBlobsRequest_Request) ([]byte, error) {
	switch r.Compressor {
	case repb.Compressor_IDENTITY:
		if int64(len(r.Data)) != d.Size {
			return nil, skep.Errorf(skep.Invalid, "blob %s: %d bytes were sent", d, len(r.Data))
		}
		return r.Data, nil
	case repb.Compressor_ZSTD:
		return unpack(d, r.Data)
	default:
		return nil, skep.Errorf(skep.Invalid, "blob %s: compressor %s is not served; ZSTD and IDENTITY are", d, r.Compressor)
	}
}

func tooLarge(verb string) error {
	return skep.Errorf(skep.Invalid, "the blobs of the batch have more than %d bytes (max_batch_total_size_bytes); larger ones are %s with ByteStream", maxBatch, verb)
}

// statusPB is status inside of an answer.
func (s *Service) statusPB(ctx context.Context, err error, d cas.Digest) *spb.Status {
	if err == nil {
		return nil // OK
	}
	return status.Convert(s.status(ctx, err, d.String())).Proto()
}

// shareOfBlob is what a blob takes of a BatchReadBlobsResponse besides its
// bytes and the text of its status, rounded up: digest, tags and lengths.
const shareOfBlob = 96

// maxDigests bounds the blobs of one BatchReadBlobs: their digests alone take
// half of the answer.
const maxDigests = maxMessage / 2 / shareOfBlob

// BatchReadBlobs reads small blobs. Each has a status of its own.
func (s *Service) BatchReadBlobs(ctx context.Context, req *repb.BatchReadBlobsRequest) (*repb.BatchReadBlobsResponse, error) {
	if err := checkFunction(req.DigestFunction); err != nil {
		return nil, s.status(ctx, err, "")
	}
	zstd := false
	for _, c := range req.AcceptableCompressors {
		zstd = zstd || c == repb.Compressor_ZSTD
	}
	if len(req.Digests) > maxDigests {
		return nil, s.status(ctx, skep.Invalidf("digests", "has %d entries, want %d at most", len(req.Digests), maxDigests), "")
	}
	digests := make([]cas.Digest, len(req.Digests))
	var total int64
	for i, d := range req.Digests {
		var err error
		if digests[i], err = digestOf(d); err != nil {
			return nil, s.status(ctx, err, "")
		}
		if total += digests[i].Size; digests[i].Size > maxBatch || total > maxBatch {
			return nil, s.status(ctx, tooLarge("read"), "")
		}
	}
	if err := s.memory.Acquire(ctx, total); err != nil {
		return nil, s.status(ctx, err, "")
	}
	defer s.memory.Release(total)
	out := &repb.BatchReadBlobsResponse{Responses: make([]*repb.BatchReadBlobsResponse_Response, len(digests))}
	room := maxMessage - shareOfBlob*len(digests)
	for i, d := range digests {
		r := &repb.BatchReadBlobsResponse_Response{Digest: req.Digests[i]}
		out.Responses[i] = r
		if int(d.Size) > room {
			r.Status = &spb.Status{Code: int32(codes.ResourceExhausted)}
			if len(answerFull) <= room {
				r.Status.Message, room = answerFull, room-len(answerFull)
			}
			continue
		}
		data, err := s.get(ctx, d, maxBatch)
		if err != nil {
			if ctx.Err() != nil {
				return nil, s.status(ctx, err, "")
			}
			if r.Status = s.statusPB(ctx, err, d); len(r.Status.Message) > room {
				r.Status.Message = ""
			}
			room -= len(r.Status.Message)
			continue
		}
		if zstd && len(data) >= worthPacking {
			if packed := batchEncoder().EncodeAll(data, nil); len(packed) < len(data) {
				data, r.Compressor = packed, repb.Compressor_ZSTD
			}
		}
		r.Data = data
		room -= len(data)
	}
	return out, nil
}

const answerFull = "the answer is full; ask for this blob again"

// worthPacking is the size from which a blob of a batch is compressed.
const worthPacking = 512

// get returns a whole blob; the empty one is always there.
func (s *Service) get(ctx context.Context, d cas.Digest, limit int64) ([]byte, error) {
	if d == cas.Empty {
		return nil, nil
	}
	return s.store.Get(ctx, d, limit)
}

// SplitBlob is not offered: blobs are kept whole.
func (s *Service) SplitBlob(context.Context, *repb.SplitBlobRequest) (*repb.SplitBlobResponse, error) {
	return nil, errChunks
}

// SpliceBlob is not offered: blobs are kept whole.
func (s *Service) SpliceBlob(context.Context, *repb.SpliceBlobRequest) (*repb.SpliceBlobResponse, error) {
	return nil, errChunks
}

// GetChunkMapping is not offered: blobs are kept whole.
func (s *Service) GetChunkMapping(*repb.GetChunkMappingRequest, grpc.ServerStreamingServer[repb.GetChunkMappingResponse]) error {
	return errChunks
}

// RegisterChunkMapping is not offered: blobs are kept whole.
func (s *Service) RegisterChunkMapping(grpc.ClientStreamingServer[repb.RegisterChunkMappingRequest, repb.RegisterChunkMappingResponse]) error {
	return errChunks
}

var errChunks = status.Error(codes.Unimplemented, "this server keeps blobs whole and neither splits nor splices them; use ByteStream")
