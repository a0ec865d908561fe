package gcesim

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
)

// Transport carries a client's calls to the Sim without a net, so that both may
// be in a bubble of testing/synctest.
func (s *Sim) Transport() http.RoundTripper { return transport{s} }

type transport struct{ s *Sim }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (res *http.Response, err error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	own := r.Clone(r.Context()) // what is routed gets values
	if own.Body == nil {
		own.Body = http.NoBody
	}
	defer own.Body.Close()
	w := &recorder{header: http.Header{}, code: http.StatusOK}
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler: // as net/http compares it
			if err = r.Context().Err(); err == nil {
				err = io.ErrUnexpectedEOF
			}
			res = nil
		default:
			panic(v)
		}
	}()
	t.s.ServeHTTP(w, own)
	return &http.Response{
		Status: strconv.Itoa(w.code) + " " + http.StatusText(w.code), StatusCode: w.code, Header: w.header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

type recorder struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header         { return w.header }
func (w *recorder) WriteHeader(code int)        { w.code = code }
func (w *recorder) Write(p []byte) (int, error) { return w.body.Write(p) }
