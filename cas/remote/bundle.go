package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/skepdev/skep/cas"
)

// bundlesHeader is what a skep server that reads and takes bundles answers with its
// capabilities. wire: docs/wire/cas.md#bundles
const bundlesHeader = "skep-plain-bundles"

// TakesBundles reports whether HashBundle is worth a try.
func (u *Uploader) TakesBundles() bool {
	if !u.c.loopback {
		return false
	}
	limits, err := u.c.Limits(u.ctx) // Wait tells of err
	return err == nil && limits.Bundles
}

// HashBundle sends small blobs that are hashed where they come in, and returns
// their digests. It is for a storage that TakesBundles; the bytes are sent in vain
// when that has them already. The error is ErrNotTaken, and then nothing is known
// of them, or that of the upload's context. Many may call it at a time.
func (u *Uploader) HashBundle(b *cas.Bundle) ([]cas.Digest, error) {
	if err := u.c.hold(u.ctx); err != nil {
		return nil, err
	}
	defer u.c.release()
	list, had, err := u.c.sendBundle(u.ctx, b)
	if u.ctx.Err() != nil {
		return nil, context.Cause(u.ctx)
	}
	if err != nil {
		u.c.opt.Log.DebugContext(u.ctx, "files are hashed before they are sent", "err", err)
		return nil, ErrNotTaken
	}
	var all int64
	var hot, cold []int64
	u.mu.Lock()
	for i, d := range list {
		_, twice := u.seen[d] // or asked for, and told of there
		switch u.seen[d] = struct{}{}; {
		case twice, d == cas.Empty:
		case had[i]:
			hot = append(hot, d.Size)
		default:
			cold = append(cold, d.Size)
		}
		all += d.Size
	}
	u.mu.Unlock()
	u.progress(all)
	u.counting.Lock()
	defer u.counting.Unlock()
	u.stats.Hot, u.stats.Cold = append(u.stats.Hot, hot...), append(u.stats.Cold, cold...)
	return list, nil
}

// sendBundle sends blobs once. had says which the storage had before.
func (c *Client) sendBundle(ctx context.Context, b *cas.Bundle) (list []cas.Digest, had []bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, unaryDeadline)
	defer cancel()
	res, err := c.plainPost(ctx, "bundles", b.Wire())
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, int64(b.Len())*perBlob))
	if err != nil {
		return nil, nil, err
	}
	list, had = make([]cas.Digest, 0, b.Len()), make([]bool, 0, b.Len())
	for line := range strings.Lines(string(text)) {
		if len(list) == b.Len() {
			break
		}
		digest, has := strings.CutSuffix(strings.TrimSuffix(line, "\n"), " had")
		d, err := cas.ParseDigest(digest)
		if err != nil || d.Size != int64(len(b.Blob(len(list)))) {
			return nil, nil, errors.Join(err, fmt.Errorf("the storage speaks of other blobs, %.200q", line))
		}
		list, had = append(list, d), append(had, has)
	}
	if len(list) < b.Len() {
		return nil, nil, fmt.Errorf("the storage tells of %d of %d blobs", len(list), b.Len())
	}
	return list, had, nil
}

// plainPost sends a message, and returns an answer that is not a refusal.
func (c *Client) plainPost(ctx context.Context, path string, body []byte) (*http.Response, error) {
	res, err := c.plainCall(ctx, http.MethodPost, path, func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Type", "application/octet-stream")
	})
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		_ = res.Body.Close()
		return nil, fmt.Errorf("the storage answers %s: %.200q", res.Status, text)
	}
	return res, nil
}

// arriving are buffers for what comes: a blob that lies in one is not copied.
var arriving = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, cas.MaxBundled+64<<10) }}

// readBundle reads small blobs once, and takes those that came, or are not there,
// out of open. An error of each is a permanentError; after others the rest can be
// asked for by gRPC.
func (c *Client) readBundle(ctx context.Context, list []cas.Digest, open map[cas.Digest]bool, each func(cas.Digest, []byte) error, lost func(cas.Digest)) error {
	ctx, cancel := context.WithTimeout(ctx, unaryDeadline)
	defer cancel()
	ask := make([]byte, 0, 80*len(list))
	for _, d := range list {
		ask = append(append(ask, d.String()...), '\n')
	}
	res, err := c.plainPost(ctx, "blobs", ask)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	in := arriving.Get().(*bufio.Reader)
	defer arriving.Put(in)
	in.Reset(res.Body)
	defer in.Reset(nil)
	for _, d := range list {
		head, err := in.Peek(cas.BundleHead)
		if err != nil {
			return err
		}
		n := int64(binary.BigEndian.Uint32(head))
		_, _ = in.Discard(cas.BundleHead)
		if n == cas.NotInBundle {
			lost(d)
			delete(open, d)
			continue
		}
		if n != d.Size {
			return fmt.Errorf("blob %s comes with %d bytes", d, n)
		}
		data, err := in.Peek(int(n))
		if err != nil {
			return err
		}
		if cas.Sum(data) != d {
			return &CorruptError{d, cas.Sum(data)}
		}
		if err := each(d, data); err != nil {
			return permanentError{err}
		}
		_, _ = in.Discard(int(n))
		delete(open, d)
	}
	return nil
}
