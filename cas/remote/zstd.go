package remote

import (
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// codec makes encoders and decoders when they are needed first: most processes
// never need one, since compression does not pay on loopback.
type codec struct {
	enc sync.Once
	e   *zstd.Encoder
}

// Sizes from which compressing is worth its calls, and of the window that both
// sides keep in memory.
const (
	compressFrom = 1 << 10
	zstdWindow   = 1 << 20
)

// pays reports whether a blob of this size is worth compressing: on loopback
// nothing is, since moving bytes is cheaper there than looking at them.
func (c *Client) pays(size int64) bool { return !c.loopback && size >= compressFrom }

// small compresses a blob that lies in memory; nil when it does not get at
// least an eighth smaller.
func (z *codec) small(data []byte) []byte {
	z.enc.Do(func() {
		z.e, _ = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow))
	})
	out := z.e.EncodeAll(data, make([]byte, 0, len(data)/2))
	if len(out) > len(data)-len(data)/8 {
		return nil
	}
	return out
}

// decode feeds the pieces of a compressed stream through a decoder to w. stop
// ends pieces.
func (z *codec) decode(w io.Writer, stop func(), pieces func(func([]byte) error) error) error {
	r, pw := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		err := pieces(func(p []byte) error { _, err := pw.Write(p); return err })
		pw.CloseWithError(err) // nil is io.EOF
		fed <- err
	}()
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		r.CloseWithError(err)
		stop()
		return permanentError{errors.Join(err, <-fed)}
	}
	_, err = d.WriteTo(w)
	d.Close()
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		stop()
	}
	feed := <-fed
	switch {
	case err == nil:
		return nil
	case feed != nil && !errors.Is(feed, io.ErrClosedPipe): // the stream's own end says more
		return feed
	}
	var permanent permanentError
	if errors.As(err, &permanent) {
		return err
	}
	return statusf(dataLoss, "compressed stream: %v", err)
}
