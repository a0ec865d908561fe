package server

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// A client that asks and never reads is left after a while; the next request
// of one that reads has no deadline left over.
func TestSendingEnds(t *testing.T) {
	old := sendPatience
	sendPatience = 50 * time.Millisecond
	defer func() { sendPatience = old }()
	ended := make(chan error, 2)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/small" {
			done := sending(w, 1)
			_, err := w.Write([]byte("x"))
			done()
			ended <- err
			return
		}
		defer sending(w, 0)()
		var err error
		for chunk := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(chunk)
		}
		ended <- err
	}))
	defer h.Close()
	wait := func() error {
		select {
		case err := <-ended:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("the answer is still being sent")
			return nil
		}
	}
	c, err := net.Dial("tcp", h.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
	if err := wait(); err == nil {
		t.Error("it ended well")
	}
	for range 2 {
		res, err := h.Client().Get(h.URL + "/small")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if err := wait(); err != nil {
			t.Error(err)
		}
	}
}
