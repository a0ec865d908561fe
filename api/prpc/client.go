package prpc

import (
	"bytes"
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/proto"
)

// MaxResponse is the largest answer that a Client accepts unless told otherwise: 32 MiB less 32 KiB.
const MaxResponse = 32<<20 - 32<<10

// DefaultUserAgent is what a Client calls itself unless told otherwise.
const DefaultUserAgent = "skep prpc"

// Client calls one server in the binary format. Set its fields before the first call; then many may use it at a time.
type Client struct {
	HTTP        *http.Client  // nil is http.DefaultClient
	BaseURL     string        // such as http://127.0.0.1:8900, without a path
	Token       func() string // bearer token, asked for at each attempt; nil or "" sends none
	UserAgent   string        // "" is DefaultUserAgent
	MaxResponse int64         // bytes before compression; 0 is MaxResponse
	Timeout     time.Duration // of one attempt; 0 is none but the context's
	ZipOver     int           // requests of more bytes are sent compressed; 0 is never
	Retry       Retry

	met atomic.Bool // some server has answered
}

// Call sends req to a method of a service, by full name, and reads the answer into resp. Failures that may pass are
// retried as c.Retry says, always within ctx. A failure is an *Error; where ctx ended it, errors.Is finds ctx's error.
func (c *Client) Call(ctx context.Context, service, method string, req, resp proto.Message) error {
	body, err := proto.Marshal(req)
	if err != nil {
		return Errorf(code.Code_INTERNAL, "encoding the request of %s: %w", method, err)
	}
	zip := c.ZipOver > 0 && len(body) > c.ZipOver
	if zip {
		var small bytes.Buffer
		compress(&small, body)
		body = small.Bytes()
	}
	pause := c.Retry.start()
	for {
		failure, last := c.attempt(ctx, service+"/"+method, body, zip, resp)
		if failure == nil {
			return nil
		}
		if last || !pause.wait(ctx, failure, !c.met.Load()) {
			if err := ctx.Err(); err != nil {
				failure.causes = append(failure.causes, err)
			}
			return failure
		}
	}
}

// attempt makes one request. last says that another one would not help.
func (c *Client) attempt(ctx context.Context, name string, body []byte, zip bool, resp proto.Message) (failure *Error, last bool) {
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL+Prefix+name, bytes.NewReader(body))
	if err != nil {
		return Errorf(code.Code_INVALID_ARGUMENT, "server address %s: %w", c.BaseURL, err), true
	}
	c.setHeaders(ctx, r, zip)
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	answer, err := client.Do(r)
	if err != nil {
		return connectionError(c.BaseURL, err)
	}
	defer answer.Body.Close()
	c.met.Store(true)
	return readAnswer(answer, c.maxResponse(), resp)
}

// metadataKey is that of what WithMetadata adds.
type metadataKey struct{}

// WithMetadata returns a context whose calls send one entry of metadata. A second one replaces the first.
func WithMetadata(ctx context.Context, key, value string) context.Context {
	return context.WithValue(ctx, metadataKey{}, [2]string{key, value})
}

func (c *Client) setHeaders(ctx context.Context, r *http.Request, zip bool) {
	h := r.Header
	if kv, ok := ctx.Value(metadataKey{}).([2]string); ok {
		h.Set(kv[0], kv[1])
	}
	h.Set("Content-Type", mediaTypes[Binary])
	h.Set("Accept", mediaTypes[Binary])
	h.Set("User-Agent", DefaultUserAgent)
	if c.UserAgent != "" {
		h.Set("User-Agent", c.UserAgent)
	}
	if zip {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set(headerMaxResponse, strconv.FormatInt(c.maxResponse(), 10))
	if end, ok := ctx.Deadline(); ok {
		h.Set(headerTimeout, formatTimeout(time.Until(end)))
	}
	if c.Token != nil {
		if token := c.Token(); token != "" {
			h.Set("Authorization", "Bearer "+token)
		}
	}
}

func (c *Client) maxResponse() int64 {
	if c.MaxResponse > 0 {
		return c.MaxResponse
	}
	return MaxResponse
}
