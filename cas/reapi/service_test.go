package reapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
)

// clients of a service on a socket.
type clients struct {
	caps  repb.CapabilitiesClient
	cas   repb.ContentAddressableStorageClient
	bytes bspb.ByteStreamClient
	conn  *grpc.ClientConn
}

func dial(t testing.TB, o Options, opts ...grpc.DialOption) *clients {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := New(o).GRPC()
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient(l.Addr().String(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &clients{repb.NewCapabilitiesClient(conn), repb.NewContentAddressableStorageClient(conn), bspb.NewByteStreamClient(conn), conn}
}

func (c *clients) read(ctx context.Context, req *bspb.ReadRequest) ([]byte, error) {
	s, err := c.bytes.Read(ctx, req)
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, m.Data...)
	}
}

func (c *clients) write(ctx context.Context, reqs ...*bspb.WriteRequest) (int64, error) {
	s, err := c.bytes.Write(ctx)
	if err != nil {
		return 0, err
	}
	for _, r := range reqs {
		if err := s.Send(r); err == io.EOF {
			break
		} else if err != nil {
			return 0, err
		}
	}
	resp, err := s.CloseAndRecv()
	return resp.GetCommittedSize(), err
}

func pack(t testing.TB, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(b, nil)
}

func unpackAll(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := d.DecodeAll(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCapabilities(t *testing.T) {
	c := dial(t, Options{Store: newMemory()})
	got, err := c.caps.GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{InstanceName: "any/where"})
	if err != nil {
		t.Fatal(err)
	}
	cc := got.CacheCapabilities
	if cc.MaxBatchTotalSizeBytes < 3<<20 || cc.MaxBatchTotalSizeBytes >= 4<<20 {
		t.Errorf("max_batch_total_size_bytes is %d, want a little below 4 MiB", cc.MaxBatchTotalSizeBytes)
	}
	if diff := cmp.Diff([]repb.DigestFunction_Value{repb.DigestFunction_SHA256}, cc.DigestFunctions); diff != "" {
		t.Error(diff)
	}
}

func TestRoundTrips(t *testing.T) {
	for _, size := range []int{1, 100, chunk - 1, chunk, chunk + 1, 3<<20 + 17} {
		for _, instance := range []string{"", "instance/", "projects/skep/instances/default/"} {
			for _, zip := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %q zstd %v", size, instance, zip), func(t *testing.T) {
					ctx := t.Context()
					c := dial(t, Options{Store: newMemory()})
					blob := pattern(size)
					d := cas.Sum(blob)
					kind, sent := "blobs", blob
					if zip {
						kind, sent = "compressed-blobs/zstd", pack(t, blob)
					}
					name := instance + "uploads/3fa85f64-5717-4562-b3fc-2c963f66afa6/" + kind + "/" + d.String() + "/name.txt"
					var reqs []*bspb.WriteRequest
					const piece = 100_000
					for at := 0; at < len(sent); at += piece {
						end := min(at+piece, len(sent))
						reqs = append(reqs, &bspb.WriteRequest{WriteOffset: int64(at), Data: sent[at:end], FinishWrite: end == len(sent)})
					}
					reqs[0].ResourceName = name
					n, err := c.write(ctx, reqs...)
					if err != nil || n != d.Size {
						t.Fatalf("write: %d %v, want committed_size %d, the uncompressed size", n, err, d.Size)
					}
					st, err := c.bytes.QueryWriteStatus(ctx, &bspb.QueryWriteStatusRequest{ResourceName: name})
					if err != nil || !st.Complete || st.CommittedSize != d.Size {
						t.Errorf("status: %v %v", st, err)
					}
					got, err := c.read(ctx, &bspb.ReadRequest{ResourceName: instance + kind + "/" + d.String(), ReadOffset: 0})
					if err != nil {
						t.Fatal(err)
					}
					if zip {
						got = unpackAll(t, got)
					}
					if !bytes.Equal(got, blob) {
						t.Error("other bytes came back")
					}
					got, err = c.read(ctx, &bspb.ReadRequest{ResourceName: instance + kind + "/" + d.String(), ReadOffset: int64(size / 2)})
					if err != nil {
						t.Fatal(err)
					}
					if zip {
						got = unpackAll(t, got)
					}
					if !bytes.Equal(got, blob[size/2:]) {
						t.Error("other bytes came back from the middle on")
					}
				})
			}
		}
	}
}

func TestPresentBlobIsAnsweredEarly(t *testing.T) {
	blob := pattern(1000)
	d := cas.Sum(blob)
	c := dial(t, Options{Store: newMemory(blob)})
	for _, tc := range []struct {
		name   string
		zip    bool
		finish bool
		want   int64
	}{
		{"plain", false, false, d.Size},
		{"plain, all in one", false, true, d.Size},
		{"compressed", true, false, -1},
		{"compressed, all in one", true, true, d.Size},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kind, sent := "blobs", blob
			if tc.zip {
				kind, sent = "compressed-blobs/zstd", pack(t, blob)
			}
			s, err := c.bytes.Write(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !tc.finish {
				sent = sent[:len(sent)/2]
			}
			if err := s.Send(&bspb.WriteRequest{ResourceName: "uploads/x/" + kind + "/" + d.String(), Data: sent, FinishWrite: tc.finish}); err != nil {
				t.Fatal(err)
			}
			var resp bspb.WriteResponse
			if err := s.RecvMsg(&resp); err != nil { // without ending the stream
				t.Fatal(err)
			}
			if resp.CommittedSize != tc.want {
				t.Errorf("committed_size %d, want %d", resp.CommittedSize, tc.want)
			}
		})
	}
}

func TestResume(t *testing.T) {
	for _, zip := range []bool{false, true} {
		t.Run(fmt.Sprint("zstd ", zip), func(t *testing.T) {
			ctx := t.Context()
			blob := pattern(2 << 20)
			d := cas.Sum(blob)
			c := dial(t, Options{Store: newMemory()})
			name := "uploads/u1/blobs/" + d.String()
			half := blob[:1<<20]
			if zip {
				name = "uploads/u1/compressed-blobs/zstd/" + d.String()
				half = pack(t, half)
			}
			if _, err := c.write(ctx, &bspb.WriteRequest{ResourceName: name, Data: half}); status.Code(err) != codes.InvalidArgument {
				t.Fatalf("a stream that was cut off: %v", err)
			}
			st, err := c.bytes.QueryWriteStatus(ctx, &bspb.QueryWriteStatusRequest{ResourceName: name})
			if err != nil || st.Complete || st.CommittedSize != 1<<20 {
				t.Fatalf("status: %v %v, want %d bytes", st, err, 1<<20)
			}
			if _, err := c.write(ctx, &bspb.WriteRequest{ResourceName: name, Data: blob[:1], WriteOffset: 1<<20 + 1}); status.Code(err) != codes.OutOfRange {
				t.Errorf("a gap: %v, want OUT_OF_RANGE", err)
			}
			rest := blob[st.CommittedSize:]
			if zip {
				rest = pack(t, rest)
			}
			n, err := c.write(ctx, &bspb.WriteRequest{ResourceName: name, WriteOffset: st.CommittedSize, Data: rest, FinishWrite: true})
			if err != nil || n != d.Size {
				t.Errorf("resumed: %d %v", n, err)
			}
		})
	}
	t.Run("again from the start", func(t *testing.T) {
		blob := pattern(1000)
		d := cas.Sum(blob)
		c := dial(t, Options{Store: newMemory()})
		name := "uploads/u1/blobs/" + d.String()
		_, _ = c.write(t.Context(), &bspb.WriteRequest{ResourceName: name, Data: blob[:600]})
		n, err := c.write(t.Context(), &bspb.WriteRequest{ResourceName: name, Data: blob[:300]}, &bspb.WriteRequest{WriteOffset: 300, Data: blob[300:], FinishWrite: true})
		if err != nil || n != d.Size {
			t.Errorf("%d %v", n, err)
		}
	})
}

func TestBatches(t *testing.T) {
	ctx := t.Context()
	c := dial(t, Options{Store: newMemory()})
	a, b := pattern(2000), []byte("b")
	lost := cas.Sum([]byte("lost"))
	find := &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{digestPB(cas.Sum(a)), digestPB(cas.Empty), digestPB(cas.Sum(b))}}
	missing, err := c.cas.FindMissingBlobs(ctx, find)
	if err != nil || len(missing.MissingBlobDigests) != 2 {
		t.Fatalf("%v %v, want two missing", missing, err)
	}
	up, err := c.cas.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
		{Digest: digestPB(cas.Sum(a)), Data: pack(t, a), Compressor: repb.Compressor_ZSTD},
		{Digest: digestPB(cas.Sum(b)), Data: b},
		{Digest: digestPB(cas.Sum(b)), Data: b},
		{Digest: digestPB(cas.Empty)},
		{Digest: digestPB(lost), Data: []byte("LOST")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got []codes.Code
	for _, r := range up.Responses {
		got = append(got, codes.Code(r.Status.GetCode()))
	}
	if diff := cmp.Diff([]codes.Code{0, 0, 0, 0, codes.InvalidArgument}, got); diff != "" {
		t.Error(diff)
	}
	for _, zip := range []bool{false, true} {
		req := &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{digestPB(cas.Sum(a)), digestPB(lost), digestPB(cas.Sum(b)), digestPB(cas.Empty)}}
		if zip {
			req.AcceptableCompressors = []repb.Compressor_Value{repb.Compressor_ZSTD}
		}
		read, err := c.cas.BatchReadBlobs(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range [][]byte{a, nil, b, {}} {
			r := read.Responses[i]
			if want == nil {
				if codes.Code(r.Status.GetCode()) != codes.NotFound || !strings.Contains(r.Status.Message, lost.String()) {
					t.Errorf("a missing blob: %v, want NOT_FOUND with its digest", r.Status)
				}
				continue
			}
			data := r.Data
			if r.Compressor == repb.Compressor_ZSTD {
				if !zip {
					t.Error("compressed, which was not asked for")
				}
				data = unpackAll(t, data)
			}
			if !bytes.Equal(data, want) {
				t.Errorf("blob %d: other bytes", i)
			}
		}
	}
}

// tree returns the blobs of a tree of n directories, two files in each, and
// its root.
func tree(t testing.TB, m *memory, n int) (root cas.Digest, dirs []*repb.Directory) {
	t.Helper()
	at := &repb.Directory{}
	for i := range n {
		b, err := proto.Marshal(at)
		if err != nil {
			t.Fatal(err)
		}
		root = cas.Sum(b)
		m.blobs[root] = b
		dirs = append(dirs, at)
		at = &repb.Directory{
			Files:       []*repb.FileNode{{Name: fmt.Sprint("f", i), Digest: digestPB(cas.Sum(b))}},
			Directories: []*repb.DirectoryNode{{Name: "d", Digest: digestPB(root)}},
		}
	}
	return root, dirs
}

func (c *clients) tree(ctx context.Context, req *repb.GetTreeRequest) (out []*repb.Directory, next string, err error) {
	s, err := c.cas.GetTree(ctx, req)
	if err != nil {
		return nil, "", err
	}
	for {
		m, err := s.Recv()
		if err == io.EOF {
			return out, next, nil
		}
		if err != nil {
			return nil, "", err
		}
		out, next = append(out, m.Directories...), m.NextPageToken
	}
}

func TestGetTree(t *testing.T) {
	ctx := t.Context()
	m := newMemory()
	root, want := tree(t, m, 50)
	c := dial(t, Options{Store: m})
	got, next, err := c.tree(ctx, &repb.GetTreeRequest{RootDigest: digestPB(root)})
	if err != nil || next != "" || len(got) != 50 {
		t.Fatalf("%d directories, next %q, %v", len(got), next, err)
	}
	if diff := cmp.Diff(want[49], got[0], protocmp.Transform()); diff != "" {
		t.Errorf("the root comes first: %s", diff)
	}
	var paged []*repb.Directory
	token := ""
	for pages := 1; ; pages++ {
		page, next, err := c.tree(ctx, &repb.GetTreeRequest{RootDigest: digestPB(root), PageSize: 7, PageToken: token})
		if err != nil || len(page) > 7 {
			t.Fatal(len(page), err)
		}
		paged = append(paged, page...)
		if token = next; token == "" {
			if pages != 8 {
				t.Errorf("%d pages, want 8", pages)
			}
			break
		}
	}
	if diff := cmp.Diff(got, paged, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	delete(m.blobs, cas.Sum(mustMarshal(t, want[20])))
	if got, _, err = c.tree(ctx, &repb.GetTreeRequest{RootDigest: digestPB(root)}); err != nil || len(got) != 29 {
		t.Errorf("with a directory missing: %d, %v, want the 29 above it", len(got), err)
	}
	if got, _, err = c.tree(ctx, &repb.GetTreeRequest{RootDigest: digestPB(cas.Empty)}); err != nil || len(got) != 1 {
		t.Errorf("empty tree: %d, %v", len(got), err)
	}
}

func mustMarshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBadRequests(t *testing.T) {
	small := []byte("small")
	large := pattern(1 << 20)
	d, dl := cas.Sum(small), cas.Sum(large)
	m := newMemory(large)
	c := dial(t, Options{Store: m})
	ctx := t.Context()
	read := func(name string, offset, limit int64) func() error {
		return func() error {
			_, err := c.read(ctx, &bspb.ReadRequest{ResourceName: name, ReadOffset: offset, ReadLimit: limit})
			return err
		}
	}
	write := func(reqs ...*bspb.WriteRequest) func() error {
		return func() error { _, err := c.write(ctx, reqs...); return err }
	}
	up := "uploads/u/blobs/" + d.String()
	wrong := cas.Digest{Hash: cas.Sum([]byte("other")).Hash, Size: 5}
	bomb := pack(t, make([]byte, 64<<20))
	bombOf := cas.Digest{Hash: d.Hash, Size: 1000}
	tree := func(req *repb.GetTreeRequest) func() error {
		return func() error { _, _, err := c.tree(ctx, req); return err }
	}
	for _, tc := range []struct {
		name string
		do   func() error
		code codes.Code
		text string
	}{
		{"read: missing", read("blobs/"+d.String(), 0, 0), codes.NotFound, d.String()},
		{"read: missing, compressed", read("compressed-blobs/zstd/"+d.String(), 0, 0), codes.NotFound, d.String()},
		{"read: other size", read("blobs/"+cas.Digest{Hash: dl.Hash, Size: 7}.String(), 0, 0), codes.NotFound, dl.Hash.String()},
		{"read: offset beyond", read("blobs/"+dl.String(), dl.Size+1, 0), codes.OutOfRange, "read_offset"},
		{"read: negative offset", read("blobs/"+dl.String(), -1, 0), codes.OutOfRange, "read_offset"},
		{"read: negative limit", read("blobs/"+dl.String(), 0, -1), codes.InvalidArgument, "read_limit"},
		{"read: limit, compressed", read("compressed-blobs/zstd/"+dl.String(), 0, 5), codes.InvalidArgument, "read_limit"},
		{"read: no name", read("", 0, 0), codes.InvalidArgument, "not of the form"},
		{"read: name of a write", read(up, 0, 0), codes.InvalidArgument, "not of the form"},
		{"read: digest function", read("blobs/blake3/"+d.String(), 0, 0), codes.InvalidArgument, "digest function \"blake3\""},
		{"read: other compressor", read("compressed-blobs/deflate/"+d.String(), 0, 0), codes.InvalidArgument, "compressor \"deflate\""},
		{"read: short hash", read("blobs/abc/3", 0, 0), codes.InvalidArgument, "64 lowercase hex digits"},
		{"read: negative size", read("blobs/"+d.Hash.String()+"/-5", 0, 0), codes.InvalidArgument, "negative"},
		{"write: nothing at all", write(), codes.InvalidArgument, "resource_name"},
		{"write: wrong hash", write(&bspb.WriteRequest{ResourceName: "uploads/u/blobs/" + wrong.String(), Data: small, FinishWrite: true}), codes.InvalidArgument, wrong.String()},
		{"write: too little", write(&bspb.WriteRequest{ResourceName: up, Data: small[:3], FinishWrite: true}), codes.InvalidArgument, "ended after 3 bytes"},
		{"write: truncated stream", write(&bspb.WriteRequest{ResourceName: "uploads/v/blobs/" + d.String(), Data: small[:3]}), codes.InvalidArgument, "ended after 3 bytes"},
		{"write: too much", write(&bspb.WriteRequest{ResourceName: up, Data: append(small, 'x'), FinishWrite: true}), codes.InvalidArgument, "6 bytes"},
		{"write: a gap", write(&bspb.WriteRequest{ResourceName: "uploads/w/blobs/" + d.String(), Data: small[:2]}, &bspb.WriteRequest{WriteOffset: 3, Data: small[3:]}), codes.InvalidArgument, "write_offset"},
		{"write: negative offset", write(&bspb.WriteRequest{ResourceName: up, WriteOffset: -1}), codes.InvalidArgument, "write_offset"},
		{"write: offset beyond", write(&bspb.WriteRequest{ResourceName: "uploads/z/blobs/" + d.String(), WriteOffset: 9}), codes.OutOfRange, "write_offset"},
		{"write: name changes", write(&bspb.WriteRequest{ResourceName: "uploads/y/blobs/" + d.String(), Data: small[:1]}, &bspb.WriteRequest{ResourceName: "uploads/q/blobs/" + d.String(), WriteOffset: 1}), codes.InvalidArgument, "changes"},
		{"write: bomb", write(&bspb.WriteRequest{ResourceName: "uploads/u/compressed-blobs/zstd/" + bombOf.String(), Data: bomb, FinishWrite: true}), codes.InvalidArgument, "more than"},
		{"write: no zstd", write(&bspb.WriteRequest{ResourceName: "uploads/u/compressed-blobs/zstd/" + bombOf.String(), Data: small, FinishWrite: true}), codes.InvalidArgument, "zstd"},
		{"write: zstd cut off", write(&bspb.WriteRequest{ResourceName: "uploads/u2/compressed-blobs/zstd/" + cas.Digest{Hash: d.Hash, Size: 1 << 20}.String(), Data: pack(t, large)[:1000], FinishWrite: true}), codes.InvalidArgument, "zstd"},
		{"write: id with a slash", write(&bspb.WriteRequest{ResourceName: "uploads/../blobs/" + d.String(), Data: small}), codes.InvalidArgument, "not of the form"},
		{"write: too large a message", write(&bspb.WriteRequest{ResourceName: up, Data: make([]byte, 5<<20)}), codes.ResourceExhausted, "larger than max"},
		{"query: no name", func() error { _, err := c.bytes.QueryWriteStatus(ctx, &bspb.QueryWriteStatusRequest{}); return err }, codes.InvalidArgument, "not of the form"},
		{"find: digest function", func() error {
			_, err := c.cas.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{DigestFunction: repb.DigestFunction_BLAKE3})
			return err
		}, codes.InvalidArgument, "BLAKE3 is not served"},
		{"find: no digest", func() error {
			_, err := c.cas.FindMissingBlobs(ctx, &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{{Hash: "x"}}})
			return err
		}, codes.InvalidArgument, "64 lowercase hex"},
		{"update: huge batch", func() error {
			_, err := c.cas.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{{Digest: &repb.Digest{Hash: d.Hash.String(), SizeBytes: 1 << 40}}}})
			return err
		}, codes.InvalidArgument, "max_batch_total_size_bytes"},
		{"read batch: huge", func() error {
			_, err := c.cas.BatchReadBlobs(ctx, &repb.BatchReadBlobsRequest{Digests: []*repb.Digest{digestPB(dl), digestPB(dl), digestPB(dl), digestPB(dl)}})
			return err
		}, codes.InvalidArgument, "max_batch_total_size_bytes"},
		{"tree: missing root", tree(&repb.GetTreeRequest{RootDigest: digestPB(d)}), codes.NotFound, d.String()},
		{"tree: no directory", tree(&repb.GetTreeRequest{RootDigest: digestPB(dl)}), codes.InvalidArgument, "not a Directory"},
		{"tree: bad token", tree(&repb.GetTreeRequest{RootDigest: digestPB(cas.Empty), PageToken: "-1"}), codes.InvalidArgument, "page_token"},
		{"tree: no root", tree(&repb.GetTreeRequest{}), codes.InvalidArgument, "digest"},
		{"split", func() error { _, err := c.cas.SplitBlob(ctx, &repb.SplitBlobRequest{}); return err }, codes.Unimplemented, "keeps blobs whole"},
		{"splice", func() error { _, err := c.cas.SpliceBlob(ctx, &repb.SpliceBlobRequest{}); return err }, codes.Unimplemented, "keeps blobs whole"},
		{"execute", func() error {
			_, err := repb.NewActionCacheClient(c.conn).GetActionResult(ctx, &repb.GetActionResultRequest{})
			return err
		}, codes.Unimplemented, "ActionCache"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.do()
			if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.text) {
				t.Errorf("got %v, want %s with %q", err, tc.code, tc.text)
			}
		})
	}
	if len(m.blobs) != 1 {
		t.Errorf("the store has %d blobs now, want the 1 it had", len(m.blobs))
	}
	bad, err := c.cas.BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
		{Digest: digestPB(wrong), Data: small},
		{Digest: digestPB(d), Data: small[:2]},
		{Digest: digestPB(bombOf), Data: bomb, Compressor: repb.Compressor_ZSTD},
		{Digest: digestPB(d), Data: small, Compressor: repb.Compressor_DEFLATE},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range bad.Responses {
		if codes.Code(r.Status.GetCode()) != codes.InvalidArgument || !strings.Contains(r.Status.Message, r.Digest.Hash) {
			t.Errorf("blob %d: %v, want INVALID_ARGUMENT with its digest", i, r.Status)
		}
	}
}

func TestErrorsOfTheStore(t *testing.T) {
	m := newMemory()
	c := dial(t, Options{Store: m})
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{skep.Errorf(skep.Exhausted, "10 of 10 bytes are in use"), codes.ResourceExhausted, "10 of 10 bytes are in use"},
		{fmt.Errorf("disk on fire"), codes.Internal, "internal error"},
	} {
		m.fail = tc.err
		_, err := c.cas.FindMissingBlobs(t.Context(), &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{digestPB(cas.Sum([]byte("x")))}})
		if status.Code(err) != tc.code || status.Convert(err).Message() != tc.text {
			t.Errorf("got %v, want %s %q", err, tc.code, tc.text)
		}
	}
}

func TestAdmit(t *testing.T) {
	var authority, bearer string
	c := dial(t, Options{Store: newMemory(), Admit: func(_ context.Context, a, b string) error {
		if authority, bearer = a, b; b == "" {
			return skep.Errorf(skep.Unauthenticated, "bring a token")
		}
		return nil
	}}, grpc.WithAuthority("cas.example:443"))
	_, err := c.caps.GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{})
	if status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "bring a token" || authority != "cas.example:443" {
		t.Errorf("got %v, authority %q", err, authority)
	}
	_, err = c.caps.GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{}, grpc.PerRPCCredentials(bearerToken("t")))
	if err != nil || bearer != "Bearer t" {
		t.Errorf("%v %q", err, bearer)
	}
}

type bearerToken string

func (b bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}
func (bearerToken) RequireTransportSecurity() bool { return false }

func TestStalledStreamEnds(t *testing.T) {
	old := stallTime
	stallTime = 50 * time.Millisecond
	t.Cleanup(func() { stallTime = old })
	blob := pattern(64 << 20)
	m := newMemory(blob)
	c := dial(t, Options{Store: m})
	t.Run("write", func(t *testing.T) {
		s, err := c.bytes.Write(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&bspb.WriteRequest{ResourceName: "uploads/u/compressed-blobs/zstd/" + cas.Digest{Hash: cas.Sum(blob).Hash, Size: 1}.String(), Data: pack(t, []byte("x"))[:5]}); err != nil {
			t.Fatal(err)
		}
		var resp bspb.WriteResponse
		if err := s.RecvMsg(&resp); status.Code(err) != codes.Aborted {
			t.Errorf("got %v, want ABORTED", err)
		}
	})
	t.Run("read", func(t *testing.T) {
		s, err := c.bytes.Read(t.Context(), &bspb.ReadRequest{ResourceName: "blobs/" + cas.Sum(blob).String()})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		m.reading.Wait() // until the server has given up: nobody reads
		for {
			if _, err = s.Recv(); err != nil {
				break
			}
		}
		if status.Code(err) != codes.Aborted {
			t.Errorf("got %v, want ABORTED", err)
		}
	})
}

// What a batch unpacks to is within the budget of all batches.
func TestBatchesShareTheMemory(t *testing.T) {
	s := New(Options{Store: newMemory()})
	req := &repb.BatchUpdateBlobsRequest{Requests: []*repb.BatchUpdateBlobsRequest_Request{
		{Digest: digestPB(cas.Sum(pattern(2000))), Data: pack(t, pattern(2000)), Compressor: repb.Compressor_ZSTD},
	}}
	if err := s.memory.Acquire(t.Context(), maxMemory-1999); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.BatchUpdateBlobs(ctx, req); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("without memory: %v, want to wait", err)
	}
	s.memory.Release(1)
	if _, err := s.BatchUpdateBlobs(t.Context(), req); err != nil {
		t.Error(err)
	}
	if !s.memory.TryAcquire(2000) {
		t.Error("memory was not given back")
	}
}

// Their messages are read before a handler could wait, so that there are only
// so many.
func TestBatchesAtOnce(t *testing.T) {
	s := New(Options{Store: newMemory()})
	name := repb.ContentAddressableStorage_BatchUpdateBlobs_FullMethodName
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxBatches {
		if _, err := s.tap(ctx, &tap.Info{FullMethodName: name}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := s.tap(ctx, &tap.Info{FullMethodName: name}); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want Unavailable, which clients repeat", err)
		}
	}
	if _, err := s.tap(ctx, &tap.Info{FullMethodName: repb.ContentAddressableStorage_FindMissingBlobs_FullMethodName}); err != nil {
		t.Errorf("another method: %v", err)
	}
	cancel()
	for s.calls.Load() != 0 || s.batches.Load() != 0 { // the callbacks have goroutines of their own
		runtime.Gosched()
	}
}

func TestPlainTransfersAreTold(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		want int
	}{{Options{Store: newMemory()}, 1}, {Options{Elsewhere: "grpcs://example.com"}, 0}} {
		var header metadata.MD
		if _, err := dial(t, tc.o).caps.GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		if got := header.Get(PlainHeader); len(got) != tc.want {
			t.Errorf("got %q", got)
		}
		if got := strings.Join(header.Get(ElsewhereHeader), " "); got != tc.o.Elsewhere {
			t.Errorf("told to go to %q, want %q", got, tc.o.Elsewhere)
		}
	}
}
