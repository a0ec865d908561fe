package cas

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestPackSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOf(rapid.Int64Range(0, 1<<62)).Draw(t, "sizes")
		got, err := UnpackSizes(PackSizes(slices.Clone(sizes)))
		slices.Sort(sizes)
		if err != nil || !slices.Equal(got, sizes) {
			t.Fatalf("got %v, %v, want %v", got, err, sizes)
		}
	})
}

func FuzzUnpackSizes(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x78\x9c\x63\x00\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sizes, err := UnpackSizes(b)
		for i := 1; err == nil && i < len(sizes); i++ {
			if sizes[i] < sizes[i-1] {
				t.Errorf("sizes fall: %v", sizes[i-1:i+1])
			}
		}
	})
}
