package disk

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// verifyAll holds blobs against their digests, in parallel when there is
// enough of them, and returns their CRC-32C.
func verifyAll(blobs []Blob, errs []error) []uint32 {
	sums := make([]uint32, len(blobs))
	one := func(i int) {
		if errs[i] = verify(blobs[i]); errs[i] == nil {
			sums[i] = crc(blobs[i].Data)
		}
	}
	var total int
	for _, b := range blobs {
		total += len(b.Data)
	}
	workers := min(runtime.GOMAXPROCS(0), len(blobs), total/(64<<10)+1)
	if workers <= 1 {
		for i := range blobs {
			one(i)
		}
		return sums
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
	return sums
}
