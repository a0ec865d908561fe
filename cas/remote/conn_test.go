package remote

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// kernelCalls counts what reaches the kernel.
type kernelCalls struct {
	net.Conn
	writes, reads atomic.Int64
}

func (c *kernelCalls) Write(p []byte) (int, error) { c.writes.Add(1); return c.Conn.Write(p) }
func (c *kernelCalls) Read(p []byte) (int, error)  { c.reads.Add(1); return c.Conn.Read(p) }

// Frames come whole and in order, and many of them with one call.
func TestConnGathersFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		kernel := &kernelCalls{Conn: near}
		c := newConn(kernel)
		want := noise(3, 3<<20+17)
		first := make(chan struct{})
		var got []byte
		go func() {
			<-first
			got, _ = io.ReadAll(far)
		}()
		sizes := []int{9, 4096, 12288, 300 << 10, 100}
		n := 0
		for rest := want; len(rest) > 0; n++ {
			k := min(len(rest), sizes[n%len(sizes)])
			if n == 1 { // the far side reads only now
				close(first)
			}
			if n == 0 {
				k = 5000 // not sent by the caller itself, who would wait
			}
			if m, err := c.Write(rest[:k]); m != k || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[k:]
		}
		synctest.Wait() // all is written
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !bytes.Equal(got, want) {
			t.Errorf("%d bytes came, want %d and the same", len(got), len(want))
		}
		if calls := int(kernel.writes.Load()); calls >= n {
			t.Errorf("%d writes took %d calls", n, calls)
		}
	})
}

func TestConnTellsOfBrokenWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := newConn(near)
		if _, err := c.Write(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it waits for a reader
		far.Close()
		synctest.Wait()
		if _, err := c.Write(make([]byte, 10_000)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("after a write has failed: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a reader does not learn that writing has failed")
		}
	})
}

// Who waits for room is let go when the connection is closed.
func TestConnCloseEndsWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		c := newConn(near)
		ended := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 3*writeBehind)) // nobody reads
			ended <- err
		}()
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("the writer ended with %v, want %v", err, net.ErrClosed)
		}
	})
}

func TestConnReadsAhead(t *testing.T) {
	near, far := net.Pipe()
	kernel := &kernelCalls{Conn: near}
	c := newConn(kernel)
	defer c.Close()
	want := noise(4, 64<<10)
	go func() { _, _ = far.Write(want) }()
	got := make([]byte, len(want))
	for at := 0; at < len(got); {
		n, err := c.Read(got[at:min(len(got), at+9)])
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if calls := kernel.reads.Load(); !bytes.Equal(got, want) || calls != 1 {
		t.Errorf("the same %v, with %d calls", bytes.Equal(got, want), calls)
	}
}
