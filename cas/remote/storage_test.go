package remote

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/genproto/googleapis/bytestream"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	rpc "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep/cas"
)

// storage is a REAPI server in memory, made of grpc-go and the generated
// messages, which breaks where a test wants it to.
type storage struct {
	repb.UnimplementedCapabilitiesServer
	repb.UnimplementedContentAddressableStorageServer
	bytestream.UnimplementedByteStreamServer

	caps   *repb.CacheCapabilities
	noTree bool
	noCaps bool
	plain  bool                                           // it speaks HTTP/1.1, too
	wrong  func(cas.Digest, []byte) []byte                // what is handed out instead
	fail   func(ctx context.Context, method string) error // before a call
	count  bool                                           // compressed writes answer with the compressed size

	mu      sync.Mutex
	blobs   map[cas.Hash][]byte
	uploads map[string][]byte // by resource name, what came so far
	calls   map[string]int
	names   map[string]bool // instances
}

func newStorage() *storage {
	return &storage{
		blobs: map[cas.Hash][]byte{}, uploads: map[string][]byte{}, calls: map[string]int{}, names: map[string]bool{},
		caps: &repb.CacheCapabilities{
			DigestFunctions:                 []repb.DigestFunction_Value{repb.DigestFunction_SHA1, repb.DigestFunction_SHA256},
			MaxBatchTotalSizeBytes:          4<<20 - 64<<10,
			SupportedCompressors:            []repb.Compressor_Value{repb.Compressor_IDENTITY, repb.Compressor_ZSTD},
			SupportedBatchUpdateCompressors: []repb.Compressor_Value{repb.Compressor_IDENTITY, repb.Compressor_ZSTD},
		},
	}
}

// start serves s on loopback and returns its address.
func (s *storage) start(t testing.TB, wrap func(net.Listener) net.Listener) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := "grpc://" + l.Addr().String()
	if wrap != nil {
		l = wrap(l)
	}
	before := func(ctx context.Context, method string) error {
		s.mu.Lock()
		s.calls[method[strings.LastIndexByte(method, '/')+1:]]++
		s.mu.Unlock()
		if s.fail != nil {
			return s.fail(ctx, method)
		}
		return nil
	}
	g := grpc.NewServer(
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := before(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := before(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, ss)
		}),
	)
	repb.RegisterCapabilitiesServer(g, s)
	repb.RegisterContentAddressableStorageServer(g, s)
	bytestream.RegisterByteStreamServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return addr
}

// client connects to a storage.
func client(t testing.TB, url string, change ...func(*Options)) *Client {
	t.Helper()
	opt := Options{URL: url, Patience: 20 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, fn := range change {
		fn(&opt)
	}
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (s *storage) put(data []byte) cas.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := cas.Sum(data)
	s.blobs[d.Hash] = data
	return d
}

func (s *storage) get(d cas.Digest) ([]byte, bool) {
	s.mu.Lock()
	b, is := s.blobs[d.Hash]
	s.mu.Unlock()
	if is && s.wrong != nil {
		b = s.wrong(d, b)
	}
	return b, is || d == cas.Empty
}

func (s *storage) called(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

func (s *storage) GetCapabilities(ctx context.Context, req *repb.GetCapabilitiesRequest) (*repb.ServerCapabilities, error) {
	if s.noCaps {
		return nil, rpc.Error(codes.Unimplemented, "no capabilities here")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[req.InstanceName] = true
	if s.plain {
		if err := grpc.SetHeader(ctx, metadata.Pairs(plainHeader, "1", bundlesHeader, "1")); err != nil {
			return nil, err
		}
	}
	return &repb.ServerCapabilities{CacheCapabilities: s.caps}, nil
}

func digest(d *repb.Digest) cas.Digest {
	out, err := cas.NewDigest(d.GetHash(), d.GetSizeBytes())
	if err != nil {
		panic(err)
	}
	return out
}

func (s *storage) FindMissingBlobs(_ context.Context, req *repb.FindMissingBlobsRequest) (*repb.FindMissingBlobsResponse, error) {
	out := &repb.FindMissingBlobsResponse{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[req.InstanceName] = true
	for _, d := range req.BlobDigests {
		if _, is := s.blobs[digest(d).Hash]; !is {
			out.MissingBlobDigests = append(out.MissingBlobDigests, d)
		}
	}
	return out, nil
}

func (s *storage) BatchUpdateBlobs(_ context.Context, req *repb.BatchUpdateBlobsRequest) (*repb.BatchUpdateBlobsResponse, error) {
	if n := int64(proto.Size(req)); s.caps.MaxBatchTotalSizeBytes > 0 && n > s.caps.MaxBatchTotalSizeBytes {
		return nil, rpc.Errorf(codes.InvalidArgument, "batch of %d bytes", n)
	}
	out := &repb.BatchUpdateBlobsResponse{}
	for _, r := range req.Requests {
		data, st := r.Data, &rpcstatus.Status{}
		if r.Compressor == repb.Compressor_ZSTD {
			d, _ := zstd.NewReader(nil)
			var err error
			if data, err = d.DecodeAll(data, nil); err != nil {
				st = rpc.Convert(err).Proto()
			}
		}
		if cas.Sum(data) != digest(r.Digest) {
			st = rpc.New(codes.InvalidArgument, "other bytes").Proto()
		} else {
			s.put(data)
		}
		out.Responses = append(out.Responses, &repb.BatchUpdateBlobsResponse_Response{Digest: r.Digest, Status: st})
	}
	return out, nil
}

func (s *storage) BatchReadBlobs(_ context.Context, req *repb.BatchReadBlobsRequest) (*repb.BatchReadBlobsResponse, error) {
	out := &repb.BatchReadBlobsResponse{}
	for _, d := range req.Digests {
		r := &repb.BatchReadBlobsResponse_Response{Digest: d}
		data, is := s.get(digest(d))
		if r.Data = data; !is {
			r.Status = rpc.New(codes.NotFound, "no such blob").Proto()
		}
		out.Responses = append(out.Responses, r)
	}
	if n := int64(proto.Size(out)); s.caps.MaxBatchTotalSizeBytes > 0 && n > s.caps.MaxBatchTotalSizeBytes {
		return nil, rpc.Errorf(codes.InvalidArgument, "batch of %d bytes", n)
	}
	return out, nil
}

// GetTree gives pages of two directories, two to a message.
func (s *storage) GetTree(req *repb.GetTreeRequest, ss grpc.ServerStreamingServer[repb.GetTreeResponse]) error {
	if s.noTree {
		return rpc.Error(codes.Unimplemented, "no trees")
	}
	var all []*repb.Directory
	var walk func(d cas.Digest)
	seen := map[cas.Digest]bool{}
	walk = func(d cas.Digest) {
		b, is := s.get(d)
		if seen[d] || !is {
			return
		}
		seen[d] = true
		dir := &repb.Directory{}
		if proto.Unmarshal(b, dir) != nil {
			return
		}
		all = append(all, dir)
		for _, s := range dir.Directories {
			walk(digest(s.Digest))
		}
	}
	walk(digest(req.RootDigest))
	if len(all) == 0 {
		return rpc.Error(codes.NotFound, "no such root")
	}
	from, _ := strconv.Atoi(req.PageToken)
	for i := from; i < min(from+4, len(all)); i += 2 {
		next := ""
		if i+2 < len(all) {
			next = strconv.Itoa(i + 2)
		}
		if err := ss.Send(&repb.GetTreeResponse{Directories: all[i:min(i+2, len(all))], NextPageToken: next}); err != nil {
			return err
		}
	}
	return nil
}

// named takes a resource name apart.
func named(name string) (d cas.Digest, compressed bool, err error) {
	parts := strings.Split(name, "/")
	if len(parts) < 3 {
		return d, false, rpc.Errorf(codes.InvalidArgument, "name %q", name)
	}
	d, err = cas.ParseDigest(strings.Join(parts[len(parts)-2:], "/"))
	return d, strings.Contains(name, "compressed-blobs/zstd/"), err
}

func (s *storage) Read(req *bytestream.ReadRequest, ss bytestream.ByteStream_ReadServer) error {
	d, compressed, err := named(req.ResourceName)
	if err != nil {
		return err
	}
	data, is := s.get(d)
	if !is {
		return rpc.Errorf(codes.NotFound, "blob %s is not here", d)
	}
	if req.ReadOffset > int64(len(data)) {
		return rpc.Error(codes.OutOfRange, "offset")
	}
	data = data[req.ReadOffset:]
	if compressed {
		e, _ := zstd.NewWriter(nil)
		data = e.EncodeAll(data, nil)
	}
	for len(data) > 0 {
		n := min(len(data), 64<<10)
		if err := ss.Send(&bytestream.ReadResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

func (s *storage) Write(ss bytestream.ByteStream_WriteServer) error {
	var name string
	for {
		req, err := ss.Recv()
		if err == io.EOF {
			return rpc.Error(codes.InvalidArgument, "not finished")
		}
		if err != nil {
			return err
		}
		if name == "" {
			name = req.ResourceName
		}
		s.mu.Lock()
		have := s.uploads[name]
		if req.WriteOffset != int64(len(have)) {
			s.mu.Unlock()
			return rpc.Errorf(codes.InvalidArgument, "offset %d, not %d", req.WriteOffset, len(have))
		}
		have = append(have, req.Data...)
		s.uploads[name] = have
		s.mu.Unlock()
		if !req.FinishWrite {
			continue
		}
		d, compressed, err := named(name)
		if err != nil {
			return err
		}
		data := have
		if compressed {
			z, _ := zstd.NewReader(nil)
			if data, err = z.DecodeAll(have, nil); err != nil {
				return rpc.Errorf(codes.InvalidArgument, "zstd: %v", err)
			}
		}
		if cas.Sum(data) != d {
			return rpc.Errorf(codes.InvalidArgument, "other bytes than %s", d)
		}
		s.put(data)
		n := d.Size
		if compressed && s.count {
			n = int64(len(have))
		}
		return ss.SendAndClose(&bytestream.WriteResponse{CommittedSize: n})
	}
}

func (s *storage) QueryWriteStatus(_ context.Context, req *bytestream.QueryWriteStatusRequest) (*bytestream.QueryWriteStatusResponse, error) {
	d, _, err := named(req.ResourceName)
	if err != nil {
		return nil, err
	}
	if _, is := s.get(d); is {
		return &bytestream.QueryWriteStatusResponse{CommittedSize: d.Size, Complete: true}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have, is := s.uploads[req.ResourceName]
	if !is {
		return nil, rpc.Error(codes.NotFound, "no such upload")
	}
	return &bytestream.QueryWriteStatusResponse{CommittedSize: int64(len(have))}, nil
}

// flaky is a listener whose connections end after a number of bytes.
type flaky struct {
	net.Listener
	bytes func() int64 // of the next connection, both directions; < 0 = no end
}

func (f *flaky) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &flakyConn{Conn: c, left: f.bytes()}, nil
}

type flakyConn struct {
	net.Conn
	mu   sync.Mutex
	left int64
}

func (c *flakyConn) take(n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left < 0 {
		return nil
	}
	if c.left -= int64(n); c.left < 0 {
		c.left = 0
		_ = c.Close()
		return fmt.Errorf("cut")
	}
	return nil
}

func (c *flakyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if cut := c.take(n); cut != nil {
		return 0, cut
	}
	return n, err
}

func (c *flakyConn) Write(p []byte) (int, error) {
	if err := c.take(len(p)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// noise is n bytes that do not compress; text is n that do.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func text(seed uint64, n int) []byte {
	b := make([]byte, 0, n+64)
	for i := uint64(0); len(b) < n; i++ {
		b = append(b, "line "...)
		b = strconv.AppendUint(b, i, 10)
		b = append(b, " of blob "...)
		b = append(strconv.AppendUint(b, seed, 10), '\n')
	}
	return b[:n]
}
