package reapi

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"golang.org/x/sync/semaphore"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// Options of New.
type Options struct {
	Store Store
	// Elsewhere is the URL of the storage to use instead when Store is nil: every
	// call is told so.
	Elsewhere string
	Log       *slog.Logger // default: nothing is logged
	// Admit says whether a call may be made; its error is what the caller sees.
	// nil lets everybody in.
	Admit func(ctx context.Context, authority, authorization string) error
}

// Service answers REAPI calls.
type Service struct {
	repb.UnimplementedContentAddressableStorageServer
	bspb.UnimplementedByteStreamServer

	store     Store
	elsewhere string // URL of the storage that keeps the blobs; "" = this one does
	log       *slog.Logger
	admit     func(ctx context.Context, authority, authorization string) error
	memory    *semaphore.Weighted // bytes that batches may hold besides their messages
	coders    *semaphore.Weighted // zstd streams
	calls     atomic.Int64
	batches   atomic.Int64 // of calls, those of BatchUpdateBlobs
}

const (
	maxMemory  = 256 << 20 // bytes that all batches together may hold besides their messages
	maxCoders  = 32        // zstd streams at once; each may take a little more than maxWindow, and most take a tenth
	maxCalls   = 1024      // at once, all connections together
	maxBatches = 128       // BatchUpdateBlobs at once, each with a message of up to maxMessage bytes
	maxStreams = 128       // at once in one connection
)

// New returns a service.
func New(o Options) *Service {
	if o.Store != nil {
		o.Elsewhere = ""
	} else {
		o.Store = elsewhere(o.Elsewhere)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{store: o.Store, elsewhere: o.Elsewhere, log: o.Log, admit: o.Admit, memory: semaphore.NewWeighted(maxMemory), coders: semaphore.NewWeighted(maxCoders)}
}

// GRPC returns a gRPC server with the three services, ready to Serve.
func (s *Service) GRPC() *grpc.Server {
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		// Windows so large that a stream is never waiting for permission to send
		// on; fixed, as measuring the line costs pings. ADR 16.
		grpc.StaticStreamWindowSize(2<<20),
		grpc.StaticConnWindowSize(8<<20),
		grpc.ReadBufferSize(128<<10),
		grpc.WriteBufferSize(128<<10),
		experimental.BufferPool(&frames),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(20*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.InTapHandle(s.tap),
	)
	repb.RegisterCapabilitiesServer(g, capabilities{elsewhere: s.elsewhere})
	repb.RegisterContentAddressableStorageServer(g, s)
	bspb.RegisterByteStreamServer(g, s)
	return g
}

// tap looks at a call before anything of it is read: it lets in who may come,
// and as many as there is room for.
func (s *Service) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if s.admit != nil {
		one := func(key string) string {
			if v := info.Header.Get(key); len(v) > 0 {
				return v[0]
			}
			return ""
		}
		if err := s.admit(ctx, one(":authority"), one("authorization")); err != nil {
			return ctx, s.status(ctx, err, "")
		}
	}
	if s.calls.Add(1) > maxCalls {
		s.calls.Add(-1)
		return ctx, status.Errorf(codes.ResourceExhausted, "the server is answering %d calls; try again", maxCalls)
	}
	isBatch := info.FullMethodName == repb.ContentAddressableStorage_BatchUpdateBlobs_FullMethodName
	if isBatch && s.batches.Add(1) > maxBatches { // its bytes are read before the handler could wait
		s.batches.Add(-1)
		s.calls.Add(-1)
		return ctx, status.Errorf(codes.Unavailable, "the server is taking %d batches; try again", maxBatches)
	}
	context.AfterFunc(ctx, func() {
		s.calls.Add(-1)
		if isBatch {
			s.batches.Add(-1)
		}
	})
	return ctx, nil
}
