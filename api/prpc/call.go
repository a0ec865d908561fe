package prpc

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Call is what is known of a call besides its message.
type Call struct {
	Service string // full name, such as swarming.v2.Tasks
	Method  string
	Request *http.Request // its body belongs to the server

	out Metadata
}

// Metadata are the headers of a call that are not the protocol's own: keys in lower case, the values of keys that end
// in -bin decoded (spec/prpc.md §3).
type Metadata map[string][]string

// Get returns the first value of key, in any case, or "".
func (m Metadata) Get(key string) string {
	if v := m[strings.ToLower(key)]; len(v) > 0 {
		return v[0]
	}
	return ""
}

type callKey struct{}

// callContext is a context that carries a Call without an allocation of its own.
type callContext struct {
	context.Context
	call Call
}

func (c *callContext) Value(key any) any {
	if _, ok := key.(callKey); ok {
		return &c.call
	}
	return c.Context.Value(key)
}

// CallFrom returns the Call that a handler's context belongs to, nil for any other context.
func CallFrom(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

// Metadata returns the metadata of the request, made anew at each call. Keys host and :authority name the host that
// was asked for.
func (c *Call) Metadata() Metadata {
	m, _ := metadata(c.Request) // the server has refused requests for which this fails
	return m
}

// SetHeader adds values to the header key of the answer; those of a key that ends in -bin are sent as base64. The
// protocol's own headers cannot be set: that is an error of the program, and panics.
func (c *Call) SetHeader(key string, values ...string) {
	name := http.CanonicalHeaderKey(key)
	if reserved(name) {
		panic(fmt.Sprintf("prpc: header %s is set by the protocol", name))
	}
	if c.out == nil {
		c.out = Metadata{}
	}
	for _, v := range values {
		if isBinary(name) {
			v = base64.StdEncoding.EncodeToString([]byte(v))
		}
		c.out[name] = append(c.out[name], v)
	}
}

// protocolHeaders never become metadata and cannot be set by handlers, nor can those of reserved.
var protocolHeaders = []string{
	"Accept", "Accept-Encoding", "Content-Encoding", "Content-Length", "Content-Type", "Vary", "X-Content-Type-Options",
}

// reserved says whether the header of this canonical name is the protocol's own.
func reserved(name string) bool {
	return slices.Contains(protocolHeaders, name) ||
		strings.HasPrefix(name, "X-Prpc-") || strings.HasPrefix(name, "Access-Control-")
}

func isBinary(name string) bool { return strings.HasSuffix(name, "-Bin") }

// metadata makes the metadata of a request, or says which header is malformed.
func metadata(r *http.Request) (Metadata, error) {
	m := make(Metadata, len(r.Header)+2)
	for name, values := range r.Header {
		if reserved(name) {
			continue
		}
		if isBinary(name) {
			var err error
			if values, err = decodeBinary(name, values); err != nil {
				return nil, err
			}
		}
		m[strings.ToLower(name)] = values
	}
	m["host"] = []string{r.Host}
	m[":authority"] = []string{r.Host}
	return m, nil
}

// checkMetadata is metadata without the map: it finds what is malformed.
func checkMetadata(h http.Header) error {
	for name, values := range h {
		if isBinary(name) && !reserved(name) {
			if _, err := decodeBinary(name, values); err != nil {
				return err
			}
		}
	}
	return nil
}

// decodeBinary decodes header values that are base64, each perhaps a list with commas.
func decodeBinary(name string, values []string) ([]string, error) {
	var out []string
	for _, v := range values {
		for item := range strings.SplitSeq(v, ",") {
			b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(item))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			out = append(out, string(b))
		}
	}
	return out, nil
}
