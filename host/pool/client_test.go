package pool

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/jsonfd"
)

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") //nolint:usetesting // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A service that refuses a connection and ends it is heard, however the first
// request fails.
func TestRefusedConnection(t *testing.T) {
	l := listen(t)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if uc, err := l.AcceptUnix(); err == nil {
			_ = jsonfd.NewConn(uc).Send(&Response{Error: Refusef(skep.Denied, ReasonDenied, "you may not")})
			_ = uc.Close()
		}
	}()
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: l.Addr().String(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	<-gone
	c := &Client{conn: jsonfd.NewConn(uc), calls: map[uint64]chan Response{}, done: make(chan struct{})}
	asked := make(chan error)
	go func() {
		_, err := c.Echo(t.Context(), "x") // cannot be sent
		asked <- err
	}()
	for sent := false; !sent; runtime.Gosched() { // what failed is forgotten
		c.mu.Lock()
		sent = c.last == 1 && len(c.calls) == 0
		c.mu.Unlock()
	}
	go c.receive()
	if err := <-asked; Reason(err) != ReasonDenied || skep.KindOf(err) != skep.Denied {
		t.Fatalf("Echo = %v, reason %q", err, Reason(err))
	}
	_ = c.Close()
}

// A message that cannot be sent ends neither the connection nor the rooms that
// hang on it.
func TestUnsentMessage(t *testing.T) {
	l := listen(t)
	go func() {
		uc, err := l.AcceptUnix()
		if err != nil {
			return
		}
		conn := jsonfd.NewConn(uc)
		defer conn.Close()
		for {
			line, err := conn.Receive()
			var r Request
			if err != nil || jsonfd.Decode(line, &r) != nil || conn.Send(&Response{ID: r.ID, Echo: r.Echo}) != nil {
				return
			}
		}
	}()
	c, err := Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	if err := c.Bind(t.Context(), Lease{}, closed, "/x", false); err == nil {
		t.Fatal("a closed file was sent")
	}
	if said, err := c.Echo(t.Context(), "still here"); err != nil || said != "still here" {
		t.Errorf("Echo = %q, %v", said, err)
	}
}
