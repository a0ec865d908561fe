package remote

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/skepdev/skep/cas"
)

// missingBatch is how many digests one question has: about 300 KB.
const missingBatch = 4096

// Missing returns those of list that the storage does not have, in the order
// of list and each once. The others stay there for an hour at least where the
// storage is a skep server.
func (c *Client) Missing(ctx context.Context, list []cas.Digest) ([]cas.Digest, error) {
	var (
		mu     sync.Mutex
		absent = map[cas.Digest]bool{}
	)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opt.Parallel)
	for part := range slices.Chunk(list, missingBatch) {
		g.Go(func() error {
			found, err := c.missing(ctx, part)
			mu.Lock()
			defer mu.Unlock()
			for _, d := range found {
				absent[d] = true
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out []cas.Digest
	for _, d := range list {
		if absent[d] {
			out = append(out, d)
			delete(absent, d)
		}
	}
	return out, nil
}

// missing asks for one batch.
func (c *Client) missing(ctx context.Context, list []cas.Digest) (found []cas.Digest, err error) {
	const what = "find missing blobs"
	msg := [][]byte{encodeMissing(c.instance, list)}
	err = c.retry(ctx, what, func(ctx context.Context) (bool, error) {
		b, err := c.unary(ctx, methodMissing, msg, nil)
		if err != nil {
			return false, err
		}
		if found, err = decodeMissing(b); err != nil {
			return false, malformed(what, err)
		}
		return false, nil
	})
	return found, err
}
