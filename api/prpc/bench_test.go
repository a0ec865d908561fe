package prpc

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// BenchmarkServe is the cost of a call without net/http.
func BenchmarkServe(b *testing.B) {
	for _, f := range []Format{Binary, JSON} {
		b.Run(f.String(), func(b *testing.B) {
			s := echoServer(b, Options{}, nil)
			body := encode(b, &pair{Key: "hello", Value: []string{"a", "b"}})
			if f == JSON {
				body = `{"key":"hello","value":["a","b"]}`
			}
			r := httptest.NewRequest(http.MethodPost, echoPath, nil)
			r.Header = requestHeaders(f)
			reader := strings.NewReader(body)
			r.Body, r.ContentLength = io.NopCloser(reader), int64(len(body))
			w := discard{h: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				reader.Reset(body)
				clear(w.h)
				s.ServeHTTP(w, r)
			}
		})
	}
}

func requestHeaders(f Format) http.Header {
	return http.Header{
		"User-Agent": {"swarming 0.5.3"}, "Content-Type": {f.MediaType()}, "Accept": {f.MediaType()},
		"X-Prpc-Grpc-Timeout": {"90000000u"}, "X-Prpc-Max-Response-Size": {"33521664"}, "Accept-Encoding": {"gzip"},
	}
}

// BenchmarkLoopback is the cost of a call over TCP, with a caller that does next to nothing, on as many connections as
// -cpu says. With -cpu 1 it is the time of one core, caller included.
func BenchmarkLoopback(b *testing.B) {
	server := httptest.NewServer(echoServer(b, Options{}, nil))
	defer server.Close()
	body := encode(b, &pair{Key: "hello", Value: []string{"a", "b"}})
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n", echoPath, len(body))
	if err := requestHeaders(Binary).Write(&request); err != nil {
		b.Fatal(err)
	}
	request.WriteString("\r\n" + body)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			b.Error(err)
			return
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		for p.Next() {
			if _, err := conn.Write(request.Bytes()); err != nil {
				b.Error(err)
				return
			}
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				b.Error(err)
				return
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || len(got) != len(body) || resp.StatusCode != 200 {
				b.Errorf("HTTP %d, %q, %v", resp.StatusCode, got, err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}
