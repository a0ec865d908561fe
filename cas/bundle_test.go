package cas

import (
	"bytes"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skepdev/skep"
)

// What was put into a bundle, and not dropped, is what comes out of it.
func TestBundle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Bundle
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			b.Reset()
			var want [][]byte
			for range rapid.IntRange(0, 20).Draw(t, "blobs") {
				blob := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "blob")
				if !b.Fits(int64(len(blob))) {
					t.Fatal("no room")
				}
				room := b.Append(len(blob))
				copy(room[:cap(room)], append(blob[:len(blob):len(blob)], 0xee)) // as who looks whether a file ends here
				if rapid.Bool().Draw(t, "drop") {
					b.Drop()
					continue
				}
				want = append(want, blob)
			}
			got, err := DecodeBundle(b.Wire())
			if err != nil || got.Len() != len(want) || b.Len() != len(want) {
				t.Fatalf("%d and %d blobs, want %d, %v", b.Len(), got.Len(), len(want), err)
			}
			for i := range want {
				if !bytes.Equal(b.Blob(i), want[i]) || !bytes.Equal(got.Blob(i), want[i]) {
					t.Errorf("blob %d: %x, %x, want %x", i, b.Blob(i), got.Blob(i), want[i])
				}
			}
		}
	})
}

func TestBundleFits(t *testing.T) {
	var b Bundle
	if b.Fits(MaxBundled+1) || !b.Fits(MaxBundled) {
		t.Error("a blob that is too large fits, or one that is not does not")
	}
	for range MaxBundleBlobs {
		if !b.Fits(0) {
			t.Fatal("fewer blobs fit than may be")
		}
		b.Append(0)
	}
	if b.Fits(0) {
		t.Error("more blobs fit than may be")
	}
	b.Reset()
	for range 3 {
		b.Append(MaxBundled)
	}
	last := int64(MaxBundle - 3*(MaxBundled+BundleHead) - BundleHead)
	if b.Fits(last+1) || !b.Fits(last) {
		t.Error("more than a bundle may have fits, or what it may have does not")
	}
}

func TestBundleThatIsBroken(t *testing.T) {
	for _, tt := range []struct{ name, wire, want string }{
		{"within a length", "\x00\x00\x00\x01a\x00\x00", "within the length of its blob 1"},
		{"within a blob", "\x00\x00\x00\x01a\x00\x00\x00\x03bc", "blob 1: 2 of 3"},
		{"too large a blob", "\x00\x10\x00\x01a", "blob 0 of the bundle has 1048577 bytes"},
		{"too many", strings.Repeat("\x00\x00\x00\x00", MaxBundleBlobs+1), "more than 16384 blobs"},
		{"none of it", "\xff\xff\xff\xff", "blob 0 of the bundle has 4294967295 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeBundle([]byte(tt.wire))
			if skep.KindOf(err) != skep.Invalid || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzDecodeBundle(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x02bc"))
	f.Add([]byte("\x00\x00\x00\x05abc"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		b, err := DecodeBundle(wire)
		if err != nil {
			return
		}
		n := 0
		for i := range b.Len() {
			n += BundleHead + len(b.Blob(i))
		}
		if n != len(wire) || !bytes.Equal(b.Wire(), wire) {
			t.Errorf("%d of %d bytes", n, len(wire))
		}
	})
}
