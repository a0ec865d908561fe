package content

import (
	"context"
	"fmt"
	"io"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/skepdev/skep/cas"
)

// raw is a client that sends what it is told to, true or not: ours would
// refuse.
type raw struct {
	conn *grpc.ClientConn
	n    int
}

func dialRaw(addr string) (*raw, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return &raw{conn: conn}, err
}

func (w *raw) close() { _ = w.conn.Close() }

// batch writes one blob and returns what the server says.
func (w *raw) batch(ctx context.Context, d cas.Digest, data []byte) string {
	ans, err := repb.NewContentAddressableStorageClient(w.conn).BatchUpdateBlobs(ctx, &repb.BatchUpdateBlobsRequest{
		Requests: []*repb.BatchUpdateBlobsRequest_Request{{Digest: &repb.Digest{Hash: d.Hash.String(), SizeBytes: d.Size}, Data: data}},
	})
	if err != nil {
		return said(err)
	}
	if len(ans.Responses) != 1 {
		return fmt.Sprintf("%d answers", len(ans.Responses))
	}
	return said(status.FromProto(ans.Responses[0].Status).Err())
}

// stream writes one blob in pieces; without finish the call is given up in
// the middle.
func (w *raw) stream(ctx context.Context, d cas.Digest, data []byte, finish bool) string {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := bspb.NewByteStreamClient(w.conn).Write(ctx)
	if err != nil {
		return said(err)
	}
	w.n++
	name := fmt.Sprintf("uploads/%08d-0000-4000-8000-000000000000/blobs/%s", w.n, d)
	for at := 0; at < len(data) || at == 0; {
		n := min(len(data)-at, 256<<10)
		last := at+n == len(data)
		if err := s.Send(&bspb.WriteRequest{ResourceName: name, WriteOffset: int64(at), Data: data[at : at+n], FinishWrite: finish && last}); err != nil {
			if err == io.EOF { //nolint:errorlint // as grpc documents it; RecvMsg has the cause
				_, err = s.CloseAndRecv()
			}
			return said(err)
		}
		if at += n; last {
			break
		}
	}
	if !finish {
		cancel()
	}
	ans, err := s.CloseAndRecv()
	if err != nil {
		return said(err)
	}
	return fmt.Sprintf("OK, committed %d", ans.CommittedSize)
}

func said(err error) string {
	st := status.Convert(err)
	if err == nil {
		return "OK"
	}
	return st.Code().String() + ": " + st.Message()
}
