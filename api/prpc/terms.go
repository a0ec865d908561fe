package prpc

import (
	"net/http"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
)

// terms is what the headers of a request ask for (spec/prpc.md §3).
type terms struct {
	in, out     Format
	gzip        bool  // the answer may be compressed
	maxResponse int64 // bytes before compression; 0 = no limit
	timeout     time.Duration
	timed       bool // there is a timeout
}

// readTerms reads the headers of a request. Whatever it returns, out can be used to answer.
func readTerms(h http.Header) (t terms, f *failure) {
	out, ok, err := responseFormat(h["Accept"])
	if err != nil {
		return t, refuse(code.Code_INVALID_ARGUMENT, "header Accept: %v", err)
	}
	if !ok {
		f := refuse(code.Code_INVALID_ARGUMENT, "header Accept: none of %q can be written; ask for %s or %s",
			h["Accept"], mediaTypes[Binary], mediaTypes[JSON])
		f.http = http.StatusNotAcceptable
		return t, f
	}
	t.out = out
	if t.in, ok = requestFormat(h.Get("Content-Type")); !ok {
		f := refuse(code.Code_INVALID_ARGUMENT, "header Content-Type: %q cannot be read; send %s or %s",
			h.Get("Content-Type"), mediaTypes[Binary], mediaTypes[JSON])
		f.http = http.StatusUnsupportedMediaType
		return t, f
	}
	if t.gzip, err = acceptsGzip(h["Accept-Encoding"]); err != nil {
		return t, refuse(code.Code_INVALID_ARGUMENT, "header Accept-Encoding: %v", err)
	}
	if v := h[headerMaxResponse]; len(v) > 0 {
		if t.maxResponse, err = parseSize(v[0]); err != nil {
			return t, refuse(code.Code_INVALID_ARGUMENT, "header %s: %q is not a positive number of bytes", headerMaxResponse, v[0])
		}
	}
	if v := h[headerTimeout]; len(v) > 0 {
		if t.timeout, err = parseTimeout(v[0]); err != nil {
			return t, refuse(code.Code_INVALID_ARGUMENT, "header %s: %v", headerTimeout, err)
		}
		t.timed = true
	}
	if err := checkMetadata(h); err != nil {
		return t, refuse(code.Code_INVALID_ARGUMENT, "bad request headers: %v", err)
	}
	return t, nil
}

// parseSize reads a positive decimal number.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return int64(n), err
}
