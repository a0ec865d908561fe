package remote

import (
	"context"

	"github.com/skepdev/skep"
)

// elsewhereHeader is where a skep server that keeps no blobs names the storage
// to use. wire: docs/wire/cas.md#storage-elsewhere
const elsewhereHeader = "skep-storage"

// Limits are what a storage takes: its capabilities.
type Limits struct {
	Batch     int64 // bytes of a batch's blobs and of what is around them; always set
	Blob      int64 // bytes of the largest blob; 0 = no limit known
	Zstd      bool  // streams may be compressed
	ZstdBatch bool  // blobs of a batched upload may be compressed
	Plain     bool  // large blobs also go by HTTP/1.1, and are hashed where they come in; a skep server's own
	Bundles   bool  // small ones, too, many together

	// Elsewhere is the URL of the storage to use instead, for a New of its own:
	// a skep server that keeps no blobs says so. "" = this one.
	Elsewhere string

	sha256, digests bool
}

// Limits asks the storage what it takes, once: later calls know.
func (c *Client) Limits(ctx context.Context) (Limits, error) {
	c.caps.Lock()
	defer c.caps.Unlock()
	if c.limits != nil {
		return *c.limits, nil
	}
	var l Limits
	const what = "capabilities"
	err := c.retry(ctx, what, func(ctx context.Context) (bool, error) {
		b, header, err := c.call(ctx, methodCapabilities, [][]byte{appendString(nil, 1, c.instance)}, nil)
		if codeOf(err) == unimplemented { // a storage without the service: the least that all take
			l, err = Limits{}, nil
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if l, err = decodeCapabilities(b); err != nil {
			return false, malformed(what, err)
		}
		l.Plain, l.Bundles = header.Get(plainHeader) == "1", header.Get(bundlesHeader) == "1"
		l.Elsewhere = header.Get(elsewhereHeader)
		return false, nil
	})
	if err != nil {
		return Limits{}, err
	}
	if l.digests && !l.sha256 {
		return Limits{}, skep.Errorf(skep.Precondition, "content-addressed storage at %s does not take SHA-256", c.base)
	}
	if l.Batch <= 0 || l.Batch > maxMessage-messageSlack {
		l.Batch = maxMessage - messageSlack // 0 = no limit of its own, then gRPC's
	}
	c.limits = &l
	return l, nil
}
