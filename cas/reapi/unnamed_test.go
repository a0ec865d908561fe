package reapi

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	repb "github.com/bazelbuild/remote-apis/build/bazel/remote/execution/v2"
	bspb "google.golang.org/genproto/googleapis/bytestream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/skepdev/skep/cas"
)

func TestUnnamedWrites(t *testing.T) {
	data := pattern(300_000)
	d := cas.Sum(data)
	other := cas.Sum([]byte("other"))
	first := fmt.Sprintf("some/where/uploads/u-1/skep-unnamed/%d", d.Size)
	last := "some/where/uploads/u-1/blobs/" + d.String()
	half := int64(100_000)
	write := func(first, last string) []*bspb.WriteRequest {
		return []*bspb.WriteRequest{
			{ResourceName: first, Data: data[:half]},
			{ResourceName: last, WriteOffset: half, Data: data[half:], FinishWrite: true},
		}
	}
	for _, tc := range []struct {
		name string
		reqs []*bspb.WriteRequest
		want codes.Code
	}{
		{"as it should be", write(first, last), codes.OK},
		{"in one message", []*bspb.WriteRequest{{ResourceName: first, Data: data}, {ResourceName: last, WriteOffset: d.Size, FinishWrite: true}}, codes.OK},
		{"another hash", write(first, "some/where/uploads/u-1/blobs/"+cas.Digest{Hash: other.Hash, Size: d.Size}.String()), codes.InvalidArgument},
		{"another size", write(first, "some/where/uploads/u-1/blobs/"+other.String()), codes.InvalidArgument},
		{"another upload", write(first, "some/where/uploads/u-2/blobs/"+d.String()), codes.InvalidArgument},
		{"another instance", write(first, "uploads/u-1/blobs/"+d.String()), codes.InvalidArgument},
		{"compressed at the end", write(first, "some/where/uploads/u-1/compressed-blobs/zstd/"+d.String()), codes.InvalidArgument},
		{"no name at the end", write(first, ""), codes.InvalidArgument},
		{"name in between", []*bspb.WriteRequest{
			{ResourceName: first, Data: data[:half]},
			{ResourceName: last, WriteOffset: half, Data: data[half:]},
		}, codes.InvalidArgument},
		{"not finished", []*bspb.WriteRequest{{ResourceName: first, Data: data}}, codes.InvalidArgument},
		{"too short", []*bspb.WriteRequest{{ResourceName: first, Data: data[:half]}, {ResourceName: last, WriteOffset: half, FinishWrite: true}}, codes.InvalidArgument},
		{"too long", []*bspb.WriteRequest{{ResourceName: first, Data: append(data[:len(data):len(data)], 0)}}, codes.InvalidArgument},
		{"a gap", []*bspb.WriteRequest{{ResourceName: first, Data: data[:half]}, {ResourceName: last, WriteOffset: half + 1, Data: data[half+1:], FinishWrite: true}}, codes.InvalidArgument},
		{"no size", write("uploads/u-1/skep-unnamed", last), codes.InvalidArgument},
		{"bad size", write("uploads/u-1/skep-unnamed/-3", last), codes.InvalidArgument},
		{"more after the size", write(first+"/x", last), codes.InvalidArgument},
		{"bad id", write("uploads/../skep-unnamed/300000", last), codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMemory()
			n, err := dial(t, Options{Store: m}).write(t.Context(), tc.reqs...)
			if status.Code(err) != tc.want {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.unnamed != 0 {
				t.Error("the write stays open")
			}
			if tc.want != codes.OK {
				if len(m.blobs) > 0 {
					t.Error("a blob stays")
				}
			} else if n != d.Size || !bytes.Equal(m.blobs[d], data) {
				t.Errorf("committed %d, kept %d bytes", n, len(m.blobs[d]))
			}
		})
	}
}

func TestUnnamedWritesAreTold(t *testing.T) {
	for _, tc := range []struct {
		o    Options
		want int
	}{{Options{Store: newMemory()}, 1}, {Options{Elsewhere: "grpcs://example.com"}, 0}} {
		var header metadata.MD
		if _, err := dial(t, tc.o).caps.GetCapabilities(t.Context(), &repb.GetCapabilitiesRequest{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		if got := header.Get(UnnamedHeader); len(got) != tc.want {
			t.Errorf("got %q", got)
		}
		if got := strings.Join(header.Get(ElsewhereHeader), " "); got != tc.o.Elsewhere {
			t.Errorf("told to go to %q, want %q", got, tc.o.Elsewhere)
		}
	}
}
