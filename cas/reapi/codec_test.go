package reapi

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// FuzzCodec holds the messages that we read and write by hand against the
// generated ones.
func FuzzCodec(f *testing.F) {
	b, err := proto.Marshal(&bspb.WriteRequest{ResourceName: "r", WriteOffset: 5, FinishWrite: true, Data: []byte("data")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0x52, 0x80})
	c := newCodec()
	f.Fuzz(func(t *testing.T, b []byte) {
		want := &bspb.WriteRequest{}
		wantErr := proto.Unmarshal(b, want)
		got := &writeChunk{}
		err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, got)
		if err != nil && wantErr == nil {
			t.Fatalf("%x: %v, the generated code reads it", b, err)
		}
		if err == nil && wantErr == nil {
			want.ProtoReflect().SetUnknown(nil)
			if diff := cmp.Diff(want, &got.WriteRequest, protocmp.Transform()); diff != "" {
				t.Fatal(diff)
			}
		}
		got.free()

		out, err := c.Marshal(&readChunk{mem.SliceBuffer(b)})
		if err != nil {
			t.Fatal(err)
		}
		resp := &bspb.ReadResponse{}
		if err := proto.Unmarshal(out.Materialize(), resp); err != nil || string(resp.Data) != string(b) {
			t.Fatalf("%x: %v, %x came back", b, err, resp.Data)
		}
	})
}
