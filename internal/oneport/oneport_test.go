package oneport

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// start serves l: HTTP/1 answers "one", the other side writes what it read.
func start(t *testing.T, l net.Listener, config *tls.Config) *Port {
	t.Helper()
	p := New(l, config)
	served := make(chan error, 1)
	go func() { served <- p.Serve() }()
	one := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "one %s %v", r.Proto, r.TLS != nil)
	})}
	go func() { _ = one.Serve(p.HTTP1) }()
	go func() {
		for {
			c, err := p.HTTP2.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, len(preface))
				io.ReadFull(c, b)
				fmt.Fprintf(c, "two %s", b)
			}()
		}
	}()
	t.Cleanup(func() {
		p.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		one.Close()
	})
	return p
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPlain(t *testing.T) {
	p := start(t, listen(t), nil)
	for _, tc := range []struct {
		name   string
		pieces []string
		want   string
	}{
		{"HTTP/1.1", []string{"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"}, "one HTTP/1.1 false"},
		{"HTTP/1.1 in single bytes", strings.Split("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", ""), "one HTTP/1.1 false"},
		{"a method like the preface", []string{"P", "RI / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"}, "one HTTP/1.1 false"},
		{"preface", []string{preface}, "two " + preface},
		{"preface in pieces", []string{preface[:1], preface[1:20], preface[20:]}, "two " + preface},
		{"preface broken at its end", []string{preface[:20], "XXXX\r\n\r\n"}, "one HTTP/2.0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := net.Dial("tcp", p.HTTP1.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, s := range tc.pieces {
				if _, err := io.WriteString(c, s); err != nil {
					t.Fatal(err)
				}
			}
			b, _ := io.ReadAll(c)
			if !strings.Contains(string(b), tc.want) {
				t.Errorf("got %q, want %q in it", b, tc.want)
			}
		})
	}
}

// pipes is a listener of pipes, which work in a bubble.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestSlowHTTP1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipes)
		start(t, l, nil)
		ours, theirs := net.Pipe()
		l <- theirs
		time.Sleep(2 * sniffTime) // says nothing for long
		go io.WriteString(ours, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(ours), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if got, want := string(b), "one HTTP/1.1 false"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		ours.Close()
	})
}

func TestCloseEndsSilentConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipes)
		p := New(l, nil)
		served := make(chan error, 1)
		go func() { served <- p.Serve() }()
		ours, theirs := net.Pipe()
		l <- theirs
		synctest.Wait()
		p.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := ours.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still open")
		}
	})
}

func TestTLS(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	config := cert.TLS.Clone()
	client := cert.Client().Transport.(*http.Transport).TLSClientConfig
	cert.Close()
	p := start(t, listen(t), config)
	for _, tc := range []struct {
		name  string
		offer []string
		want  string
	}{
		{"a browser", []string{"h2", "http/1.1"}, "http/1.1"},
		{"a gRPC client", []string{"h2"}, "h2"},
		{"an old client", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mine := client.Clone()
			mine.NextProtos = tc.offer
			d := tls.Dialer{Config: mine}
			conn, err := d.DialContext(context.Background(), "tcp", p.HTTP1.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if got := conn.(*tls.Conn).ConnectionState().NegotiatedProtocol; got != tc.want {
				t.Errorf("got protocol %q, want %q", got, tc.want)
			}
			want, send := "one HTTP/1.1 true", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
			if tc.want == "h2" {
				want, send = "two "+preface, preface
			}
			io.WriteString(conn, send)
			b, _ := io.ReadAll(conn)
			if !strings.Contains(string(b), want) {
				t.Errorf("got %q, want %q in it", b, want)
			}
		})
	}
	t.Run("Go's client", func(t *testing.T) {
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}}
		resp, err := h.Get("https://" + p.HTTP1.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, _ := io.ReadAll(resp.Body); string(b) != "one HTTP/1.1 true" {
			t.Errorf("got %q", b)
		}
		h.CloseIdleConnections()
	})
}
