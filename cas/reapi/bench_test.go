package reapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/oneport"
)

// ways are the ways tried to serve gRPC and HTTP/1 on one port. ADR 16.
var ways = []struct {
	name  string
	serve func(testing.TB, *grpc.Server, net.Listener)
}{
	{"direct", func(t testing.TB, g *grpc.Server, l net.Listener) {
		go func() { _ = g.Serve(l) }()
		t.Cleanup(g.Stop)
	}},
	{"sniffed", func(t testing.TB, g *grpc.Server, l net.Listener) {
		p := oneport.New(l, nil)
		go func() { _ = p.Serve() }()
		go func() { _ = g.Serve(p.HTTP2) }()
		t.Cleanup(func() { p.Close(); g.Stop() })
	}},
	{"ServeHTTP", func(t testing.TB, g *grpc.Server, l net.Listener) {
		var ps http.Protocols
		ps.SetHTTP1(true)
		ps.SetUnencryptedHTTP2(true)
		h := &http.Server{Handler: g, Protocols: &ps, HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerConnection: 8 << 20, MaxReceiveBufferPerStream: 2 << 20, MaxConcurrentStreams: maxStreams,
		}}
		go func() { _ = h.Serve(l) }()
		t.Cleanup(func() { h.Close() })
	}},
}

func benchClients(b *testing.B, s Store, serve func(testing.TB, *grpc.Server, net.Listener)) *clients {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	serve(b, New(Options{Store: s}).GRPC(), l)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithInitialWindowSize(2<<20), grpc.WithInitialConnWindowSize(8<<20), grpc.WithReadBufferSize(128<<10))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	return &clients{repb.NewCapabilitiesClient(conn), repb.NewContentAddressableStorageClient(conn), bspb.NewByteStreamClient(conn), conn}
}

func BenchmarkRead(b *testing.B) {
	blob := pattern(256 << 20)
	d := cas.Sum(blob)
	m := newMemory(blob)
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			c := benchClients(b, m, w.serve)
			b.SetBytes(d.Size)
			for b.Loop() {
				s, err := c.bytes.Read(b.Context(), &bspb.ReadRequest{ResourceName: "blobs/" + d.String()})
				if err != nil {
					b.Fatal(err)
				}
				n := 0
				for {
					m, err := s.Recv()
					if err == io.EOF {
						break
					}
					if err != nil {
						b.Fatal(err)
					}
					n += len(m.Data)
				}
				if n != len(blob) {
					b.Fatal(n)
				}
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	blob := pattern(256 << 20)
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			c := benchClients(b, sink{newMemory()}, w.serve)
			b.SetBytes(int64(len(blob)))
			for b.Loop() {
				s, err := c.bytes.Write(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				for at := 0; at < len(blob); at += 256 << 10 {
					if err := s.Send(&bspb.WriteRequest{
						ResourceName: fmt.Sprintf("uploads/u/blobs/%s/%d", cas.Empty.Hash, len(blob)), WriteOffset: int64(at), Data: blob[at : at+256<<10], FinishWrite: at+256<<10 == len(blob),
					}); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := s.CloseAndRecv(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// sink takes every upload and keeps nothing.
type sink struct{ *memory }

func (s sink) Upload(context.Context, cas.Digest, string) (Upload, error) { return &sunk{}, nil }

type sunk struct{ n int64 }

func (u *sunk) Offset() int64                { return u.n }
func (u *sunk) Write(p []byte) (int, error)  { u.n += int64(len(p)); return len(p), nil }
func (u *sunk) Commit(context.Context) error { return nil }
func (u *sunk) Close() error                 { return nil }

// BenchmarkBatchRead reads 10,000 blobs of 4 KiB in full batches.
func BenchmarkBatchRead(b *testing.B) {
	m := newMemory()
	var digests []*repb.Digest
	for i := range 10_000 {
		blob := pattern(4096)
		copy(blob, fmt.Sprint(i))
		m.blobs[cas.Sum(blob)] = blob
		digests = append(digests, digestPB(cas.Sum(blob)))
	}
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			c := benchClients(b, m, w.serve)
			for b.Loop() {
				n := 0
				for at := 0; at < len(digests); at += 900 {
					r, err := c.cas.BatchReadBlobs(b.Context(), &repb.BatchReadBlobsRequest{Digests: digests[at:min(at+900, len(digests))]})
					if err != nil {
						b.Fatal(err)
					}
					for _, r := range r.Responses {
						if len(r.Data) == 4096 {
							n++
						}
					}
				}
				if n != len(digests) {
					b.Fatal(n)
				}
			}
			b.ReportMetric(float64(len(digests))*float64(b.N)/b.Elapsed().Seconds(), "blobs/s")
		})
	}
}

// BenchmarkFind is one small call.
func BenchmarkFind(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			c := benchClients(b, newMemory(), w.serve)
			req := &repb.FindMissingBlobsRequest{BlobDigests: []*repb.Digest{digestPB(cas.Sum([]byte("x")))}}
			for b.Loop() {
				if _, err := c.cas.FindMissingBlobs(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
