// Package readahead copies a stream while more of it is being read.
package readahead

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
)

// Pieces are small enough that what one stage had is in a processor's cache when
// the next one wants it, and large enough that waking the next one is no part of
// the time: a quarter of the size takes a tenth longer.
const (
	pieces = 6
	size   = 1 << 20
)

// Copy copies r, until it ends, through all stages, one after the other: a hash
// and a file, for example. Each works in a goroutine of its own, as does the
// reading, on its own piece: they take their time together. n is how much went
// through all of them: without an error of a stage all that was read, else perhaps
// less than that stage had.
// When a stage fails, Copy calls stop, which must end a Read of r that waits.
// Nothing goes on when it returns.
func Copy(r io.Reader, stop func(), stages ...io.Writer) (n int64, err error) {
	var (
		all     sync.WaitGroup
		failed  atomic.Bool
		once    sync.Once
		readErr error
	)
	free, in := make(chan []byte, pieces), make(chan []byte, pieces)
	for range pieces {
		free <- make([]byte, size)
	}
	first := in
	all.Go(func() {
		defer close(first)
		for readErr == nil {
			b, k := <-free, 0
			if failed.Load() {
				return
			}
			for k < size && readErr == nil {
				var m int
				m, readErr = r.Read(b[k:])
				k += m
			}
			first <- b[:k]
		}
	})
	for i, w := range stages {
		from, to, last := in, make(chan []byte, pieces), i == len(stages)-1
		if last {
			to = free
		}
		in = to
		all.Go(func() {
			for b := range from {
				if !failed.Load() {
					if _, e := w.Write(b); e != nil {
						once.Do(func() {
							err = e
							failed.Store(true)
							stop()
						})
					} else if last {
						n += int64(len(b))
					}
				}
				if last {
					b = b[:size]
				}
				to <- b
			}
			if !last {
				close(to)
			}
		})
	}
	all.Wait()
	if err == nil && !errors.Is(readErr, io.EOF) {
		err = readErr
	}
	return n, err
}
