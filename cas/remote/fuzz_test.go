package remote

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	"google.golang.org/genproto/googleapis/bytestream"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skepdev/skep/cas"
)

// Whatever a storage answers, decoding neither panics nor keeps more than came.
func FuzzMessages(f *testing.F) {
	d := cas.Sum([]byte("x"))
	dp := &repb.Digest{Hash: d.Hash.String(), SizeBytes: 1}
	for _, m := range []proto.Message{
		&repb.ServerCapabilities{CacheCapabilities: newStorage().caps},
		&repb.FindMissingBlobsResponse{MissingBlobDigests: []*repb.Digest{dp}},
		&repb.BatchReadBlobsResponse{Responses: []*repb.BatchReadBlobsResponse_Response{{Digest: dp, Data: []byte("x"), Status: &rpcstatus.Status{Code: 5, Message: "no"}}}},
		&repb.GetTreeResponse{Directories: []*repb.Directory{{}}, NextPageToken: "t"},
		&bytestream.ReadResponse{Data: []byte("x")},
		&bytestream.QueryWriteStatusResponse{CommittedSize: 7, Complete: true},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = decodeCapabilities(b)
		if list, err := decodeMissing(b); err == nil {
			back, err := decodeMissing(encodeMissing("", list))
			if err != nil || len(back) != len(list) {
				t.Fatalf("%v, %v", back, err)
			}
		}
		_, _ = decodeBatch(b, 2)
		_, _ = decodeBatch(b, 3)
		_, _, _ = decodeTree(b)
		_, _ = decodeRead(b)
		_, _, _ = decodeWrite(b)
		_, _ = decodeStatus(b)
	})
}

// A stream of frames ends, whatever its headers say, and without much memory.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 'x'}, "0", "")
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff}, "13", "a%20b%zz%")
	f.Fuzz(func(t *testing.T, b []byte, code, text string) {
		s := &stream{
			resp:  &http.Response{Body: io.NopCloser(bytes.NewReader(b)), Trailer: http.Header{"Grpc-Status": {code}, "Grpc-Message": {text}}, Request: &http.Request{}},
			stop:  func(error) {},
			stall: time.NewTimer(time.Hour),
		}
		defer s.close()
		total := 0
		for {
			m, err := s.recv(nil, maxAnswer)
			if err != nil {
				break
			}
			total += len(m) + frameHeader
		}
		if total > len(b) {
			t.Fatalf("%d bytes from %d", total, len(b))
		}
	})
}
