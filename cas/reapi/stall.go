package reapi

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stallTime is how long a stream may go without a message in either direction.
// A caller that is there but says nothing must not hold a file and a coder for
// ever; one that is gone is found by keepalive.
var stallTime = 2 * time.Minute

// ticks counts the messages of a stream.
type ticks struct{ atomic.Int64 }

// guarded calls do, which counts its messages in t, and gives up when it
// stalls. Then the stream ends, and with it whatever do waits for.
func guarded(do func(t *ticks) error) error {
	var t ticks
	done := make(chan error, 1)
	go func() { done <- do(&t) }()
	look := time.NewTicker(stallTime)
	defer look.Stop()
	for last := int64(-1); ; {
		select {
		case err := <-done:
			return err
		case <-look.C:
			now := t.Load()
			if now == last {
				return status.Errorf(codes.Aborted, "the stream made no progress for %s; resume it", stallTime)
			}
			last = now
		}
	}
}
