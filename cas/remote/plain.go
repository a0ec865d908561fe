package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/internal/readahead"
)

// plainHeader is what a skep server that reads and takes blobs by HTTP/1.1, too,
// answers with its capabilities. wire: docs/wire/cas.md#plain-transfers
const plainHeader = "skep-plain-transfers"

const (
	plainFrom  = 16 << 20 // bytes of a blob from which it pays
	plainLeast = 1 << 20  // bytes a second, after stallDeadline: what is slower goes on by gRPC
)

// isPlain reports whether a blob of that size is moved by HTTP/1.1. Only
// loopback is so fast that the frames of HTTP/2 and the copies between them cost
// more than what they are for, and only large blobs show it.
func (c *Client) isPlain(l Limits, size int64) bool {
	return l.Plain && c.loopback && size >= plainFrom
}

func newPlainTransport(roots *x509.CertPool) *http.Transport {
	var p http.Protocols
	p.SetHTTP1(true)
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
		Protocols:           &p,

		ExpectContinueTimeout: time.Second,
	}
}

// plainCall makes a call about a path below the instance's.
func (c *Client) plainCall(ctx context.Context, method, path string, change func(*http.Request)) (*http.Response, error) {
	u, err := url.Parse(c.base)
	if err != nil {
		return nil, err
	}
	u.Path = "/" + strings.Join(append([]string{"cas"}, strings.FieldsFunc(c.instance+"/"+path, func(r rune) bool { return r == '/' })...), "/")
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "skep")
	if c.opt.Headers != nil {
		for k, v := range c.opt.Headers() {
			req.Header.Set(k, v)
		}
	}
	change(req)
	return c.plain.RoundTrip(req)
}

// readPlain reads a blob from where in stands.
func (c *Client) readPlain(ctx context.Context, in *incoming) error {
	left, want := in.want.Size-in.n, http.StatusOK
	ctx, cancel := context.WithTimeout(ctx, stallDeadline+time.Duration(left/plainLeast)*time.Second)
	defer cancel()
	res, err := c.plainCall(ctx, http.MethodGet, in.want.String(), func(r *http.Request) {
		if in.n > 0 {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", in.n))
			want = http.StatusPartialContent
		}
	})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != want || res.ContentLength != left {
		return fmt.Errorf("the storage answers %s with %d bytes", res.Status, res.ContentLength)
	}
	_, err = readahead.Copy(res.Body, cancel, in.hash, (*hashed)(in))
	if err == nil && in.n < in.want.Size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// hashed is a blob on its way to w, as a stage after its hash.
type hashed incoming

func (in *hashed) Write(p []byte) (int, error) { return (*incoming)(in).pass(p) }

// ErrNotTaken says that a file must be hashed and added to the upload in the
// ordinary way.
var ErrNotTaken = errors.New("the storage does not take this file without its digest")

// Hash sends a file of size bytes, which is hashed where it comes in: by a skep
// server on loopback. Only large ones are worth it: the bytes are sent in vain
// when the storage has them already. In all other cases, and when the storage
// fails, the error is ErrNotTaken. Other errors are those of unchanged, which is
// called when all was sent and whose error means that nothing is to be kept. The
// position of the file is anywhere after it. Many may call it at a time.
func (u *Uploader) Hash(file *os.File, size int64, unchanged func() error) (cas.Digest, error) {
	if !u.c.loopback || size < plainFrom {
		return cas.Digest{}, ErrNotTaken
	}
	limits, err := u.c.Limits(u.ctx)
	if err != nil || !u.c.isPlain(limits, size) || limits.Blob > 0 && size > limits.Blob {
		return cas.Digest{}, ErrNotTaken // Wait tells of err
	}
	if err := u.c.hold(u.ctx); err != nil {
		return cas.Digest{}, err
	}
	defer u.c.release()
	stop := u.follow(file, size)
	d, err := u.c.sendPlain(u.ctx, file, size)
	told := stop()
	if err == nil {
		if err := unchanged(); err != nil {
			return cas.Digest{}, err
		}
		u.progress(size - told)
		u.mu.Lock()
		u.seen[d] = struct{}{}
		u.mu.Unlock()
		u.counting.Lock()
		u.stats.Cold = append(u.stats.Cold, size)
		u.counting.Unlock()
		return d, nil
	}
	if u.ctx.Err() != nil {
		return cas.Digest{}, context.Cause(u.ctx)
	}
	u.counting.Lock()
	u.ahead += told
	u.counting.Unlock()
	u.c.opt.Log.DebugContext(u.ctx, "file is hashed before it is sent", "err", err)
	return cas.Digest{}, ErrNotTaken
}

// follow tells progress of a file that is being sent by its position, which
// moves with what the kernel has taken. stop returns how much was told.
func (u *Uploader) follow(file *os.File, size int64) (stop func() (told int64)) {
	var told int64
	var wg sync.WaitGroup
	quit := make(chan struct{})
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if at, err := file.Seek(0, io.SeekCurrent); err == nil && at > told && at <= size {
				u.progress(at - told)
				told = at
			}
		}
	})
	return func() int64 {
		close(quit)
		wg.Wait()
		return told
	}
}

// ownFile is a body that net/http sees is a file, which goes from kernel to
// kernel, and that it does not close.
type ownFile struct{ *os.File }

func (ownFile) Close() error { return nil }

// sendPlain sends a file once; what fails is done in the ordinary way, which
// resumes.
func (c *Client) sendPlain(ctx context.Context, file *os.File, size int64) (cas.Digest, error) {
	ctx, cancel := context.WithTimeout(ctx, stallDeadline+time.Duration(size/plainLeast)*time.Second)
	defer cancel()
	res, err := c.plainCall(ctx, http.MethodPost, "uploads", func(r *http.Request) {
		r.Body, r.ContentLength = ownFile{file}, size
		r.Header.Set("Content-Type", "application/octet-stream")
		r.Header.Set("Expect", "100-continue")
	})
	if err != nil {
		return cas.Digest{}, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	if err != nil || res.StatusCode != http.StatusOK {
		return cas.Digest{}, errors.Join(err, fmt.Errorf("the storage answers %s: %.200q", res.Status, text))
	}
	d, err := cas.ParseDigest(strings.TrimSpace(string(text)))
	if err != nil || d.Size != size {
		return cas.Digest{}, errors.Join(err, fmt.Errorf("the storage speaks of another blob, %.200q", text))
	}
	return d, nil
}
