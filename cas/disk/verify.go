package disk

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/skepdev/skep/cas"
)

// verifyAll holds blobs against their digests and returns their CRC-32C.
func verifyAll(blobs []Blob, errs []error) []uint32 {
	sums := make([]uint32, len(blobs))
	forAll(blobs, func(i int) {
		if errs[i] = verify(blobs[i]); errs[i] == nil {
			sums[i] = crc(blobs[i].Data)
		}
	})
	return sums
}

// nameAll gives blobs the digests of their content and returns their CRC-32C.
func nameAll(blobs []Blob) []uint32 {
	sums := make([]uint32, len(blobs))
	forAll(blobs, func(i int) {
		b := &blobs[i]
		b.Digest, sums[i] = cas.Sum(b.Data), crc(b.Data)
	})
	return sums
}

// forAll calls one for each blob, in parallel when there is enough of them.
func forAll(blobs []Blob, one func(i int)) {
	var total int
	for _, b := range blobs {
		total += len(b.Data)
	}
	workers := min(runtime.GOMAXPROCS(0), len(blobs), total/(64<<10)+1)
	if workers <= 1 {
		for i := range blobs {
			one(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(blobs); i = int(next.Add(1)) - 1 {
				one(i)
			}
		})
	}
	wg.Wait()
}
