package reapi

import (
	"math/bits"
	"sync"
)

// framePool hands out the buffers that gRPC reads messages into, by powers of
// two. Its own pool clears each of them before it is filled, which costs a
// server that takes in a large blob as much as the copying; who uses a buffer
// here reads no further than was written.
type framePool struct{ sizes [maxFrameBits + 1]sync.Pool }

const (
	minFrameBits = 10
	maxFrameBits = 22 // a message
)

var frames framePool

func (p *framePool) Get(n int) *[]byte {
	class := max(minFrameBits, bits.Len(uint(max(1, n)-1)))
	if class > maxFrameBits {
		b := make([]byte, n)
		return &b
	}
	if b, ok := p.sizes[class].Get().(*[]byte); ok {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, 1<<class)
	return &b
}

func (p *framePool) Put(b *[]byte) {
	class := bits.Len(uint(cap(*b))) - 1
	if class >= minFrameBits && class <= maxFrameBits && cap(*b) == 1<<class {
		p.sizes[class].Put(b)
	}
}
