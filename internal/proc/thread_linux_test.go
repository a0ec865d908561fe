package proc

import (
	"sync"
	"sync/atomic"
	"testing"
)

// What is done to a thread shows in /proc/self only when it is the first.
func TestOnThreadSparesTheFirst(t *testing.T) {
	const n = 200
	var first atomic.Int32
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for range n { // more than there are threads, so that the first would be one of them
		wg.Add(1)
		onThread(func() {
			defer wg.Done()
			if firstThread() {
				first.Add(1)
			}
			<-gate
		})
	}
	close(gate)
	wg.Wait()
	if got := first.Load(); got != 0 {
		t.Errorf("%d of %d took the first thread", got, n)
	}
}
