package reapi

import "testing"

func TestFramePoolGivesWhatIsAskedFor(t *testing.T) {
	for _, n := range []int{0, 1, 1023, 1024, 1025, 16 << 10, 16<<10 + 1, maxMessage, maxMessage + 1, 9 << 20} {
		for range 3 {
			b := frames.Get(n)
			if len(*b) != n {
				t.Fatalf("asked for %d bytes, got %d", n, len(*b))
			}
			frames.Put(b)
		}
	}
	odd := make([]byte, 0, 3000) // not of this pool: the next of 2,048 must not be shorter
	frames.Put(&odd)
	if b := frames.Get(2048); len(*b) != 2048 || cap(*b) != 2048 {
		t.Fatal(len(*b), cap(*b))
	}
}
