package reapi

import (
	"context"
	"io"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

func FuzzResourceName(f *testing.F) {
	for _, s := range []string{
		"blobs/" + cas.Empty.String(), "i/compressed-blobs/zstd/" + cas.Empty.String(), "uploads/u/blobs/" + cas.Empty.String() + "/x/y",
		"projects/p/instances/i/uploads/u/compressed-blobs/zstd/" + cas.Empty.String(), "blobs/blake3/" + cas.Empty.String(), "blobs/blobs/uploads/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for kind, parse := range map[string]func(string) (Resource, error){"read": ParseRead, "write": ParseWrite} {
			r, err := parse(name)
			if err != nil {
				if skep.KindOf(err) != skep.Invalid {
					t.Errorf("%s %q: %v, want an Invalid error", kind, name, err)
				}
				continue
			}
			// What was understood is in the name, in this order.
			want := r.Digest.String()
			if r.Instance != "" && !strings.HasPrefix(name, r.Instance+"/") || (kind == "write") != (r.Upload != "") || !strings.Contains(name, r.Digest.Hash.String()) {
				t.Errorf("%s %q: %+v", kind, name, r)
			}
			if again, err := ParseRead("blobs/" + want); err != nil || again.Digest != r.Digest {
				t.Errorf("%s %q: digest %s: %v", kind, name, want, err)
			}
		}
	})
}

// stream is the server's side of any stream.
type stream struct {
	grpc.ServerStream
	ctx  context.Context
	reqs []*bspb.WriteRequest
	sent int
}

func (s *stream) Context() context.Context          { return s.ctx }
func (s *stream) Recv() (*bspb.WriteRequest, error) { panic("not called") }
func (s *stream) RecvMsg(v any) error {
	if len(s.reqs) == 0 {
		return io.EOF
	}
	b, err := proto.Marshal(s.reqs[0])
	if err != nil {
		return err
	}
	s.reqs = s.reqs[1:]
	return newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, v)
}
func (s *stream) SendAndClose(*bspb.WriteResponse) error { s.sent++; return nil }

type readStream struct{ stream }

func (s *readStream) Send(*bspb.ReadResponse) error { panic("not called") }
func (s *readStream) SendMsg(v any) error {
	b, err := newCodec().Marshal(v)
	b.Free()
	s.sent++
	return err
}

type treeStream struct{ stream }

func (s *treeStream) Send(*repb.GetTreeResponse) error { s.sent++; return nil }

// FuzzMessages gives every method messages of any bytes: whatever comes, the
// answer is one that a client can understand.
func FuzzMessages(f *testing.F) {
	small := []byte("small")
	m := newMemory(small)
	root, _ := tree(f, m, 3)
	s := New(Options{Store: m})
	d, dirs := digestPB(cas.Sum(small)), digestPB(root)
	for i, msg := range []proto.Message{
		&repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{d, {Hash: "x"}}},
		&repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{{Digest: d, Data: small}, {Digest: d, Data: pack(f, small), Compressor: repb.Compressor_ZSTD}}},
		&repb.BatchReadBlobsRequest{Digests: []*repb.Digest{d, dirs}, AcceptableCompressors: []repb.Compressor_Value{repb.Compressor_ZSTD}},
		&repb.GetTreeRequest{RootDigest: dirs, PageSize: 2, PageToken: "1"},
		&bspb.ReadRequest{ResourceName: "blobs/" + cas.Sum(small).String(), ReadOffset: 1, ReadLimit: 2},
		&bspb.QueryWriteStatusRequest{ResourceName: "uploads/u/blobs/" + cas.Sum(small).String()},
		&bspb.WriteRequest{ResourceName: "uploads/u/blobs/" + cas.Digest{Hash: cas.Sum(small).Hash, Size: 9}.String(), Data: small, FinishWrite: true},
		&bspb.WriteRequest{ResourceName: "uploads/u/compressed-blobs/zstd/" + cas.Digest{Hash: cas.Sum(small).Hash, Size: 9}.String(), Data: pack(f, small)},
	} {
		b, err := proto.Marshal(msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(min(i, 6)), b)
	}
	f.Fuzz(func(t *testing.T, method uint8, b []byte) {
		ctx := t.Context()
		is := func(msg proto.Message) bool { return proto.Unmarshal(b, msg) == nil }
		var err error
		switch method % 7 {
		case 0:
			if req := new(repb.FindMissingBlobsRequest); is(req) {
				_, err = s.FindMissingBlobs(ctx, req)
			}
		case 1:
			if req := new(repb.BatchUpdateBlobsRequest); is(req) {
				_, err = s.BatchUpdateBlobs(ctx, req)
			}
		case 2:
			if req := new(repb.BatchReadBlobsRequest); is(req) {
				var out *repb.BatchReadBlobsResponse
				if out, err = s.BatchReadBlobs(ctx, req); err == nil && proto.Size(out) > maxMessage {
					t.Errorf("an answer of %d bytes", proto.Size(out))
				}
			}
		case 3:
			if req := new(repb.GetTreeRequest); is(req) {
				err = s.GetTree(req, &treeStream{stream{ctx: ctx}})
			}
		case 4:
			if req := new(bspb.ReadRequest); is(req) {
				err = s.Read(req, &readStream{stream{ctx: ctx}})
			}
		case 5:
			if req := new(bspb.QueryWriteStatusRequest); is(req) {
				_, err = s.QueryWriteStatus(ctx, req)
			}
		case 6:
			if req := new(bspb.WriteRequest); is(req) {
				err = s.Write(&stream{ctx: ctx, reqs: []*bspb.WriteRequest{req, {Data: []byte("more"), WriteOffset: int64(len(req.Data)), FinishWrite: true}}})
			}
		}
		if c := status.Code(err); c == codes.Internal || c == codes.Unknown {
			t.Errorf("method %d: %v", method%7, err)
		}
	})
}
