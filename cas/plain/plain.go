// Package plain takes and gives blobs by plain HTTP/1.1, without the frames of
// gRPC: large ones as they are, small ones many together. The client is package
// remote. wire: docs/wire/cas.md#plain-transfers
package plain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/disk"
)

// Store keeps the blobs; *disk.Store is one. Errors are those of package skep, or
// a *cas.MissingError of Get.
type Store interface {
	Get(ctx context.Context, d cas.Digest, limit int64) ([]byte, error)
	UploadUnnamed(ctx context.Context, size int64) (*disk.Unnamed, error)
	PutUnnamed(ctx context.Context, blobs []disk.Blob) (had []bool, errs []error)
}

const (
	// callsAtOnce bounds their memory: 6 MiB each.
	callsAtOnce = 32
	// askedMax bounds the digests of one question for blobs, in bytes.
	askedMax = 2 << 20
	// patience is how long a body may stand still, and a bundle may take to be
	// taken.
	patience = 2 * time.Minute
)

// Transfers are those of one store.
type Transfers struct {
	store  Store
	places *semaphore.Weighted // of calls, whose memory they bound
}

// New returns the transfers of s.
func New(s Store) *Transfers {
	return &Transfers{store: s, places: semaphore.NewWeighted(callsAtOnce)}
}

// Post answers a POST, which the caller has let in; the last part of its path says
// what is wanted. An error, of a kind that skep.KindOf tells, was not answered.
func (t *Transfers) Post(w http.ResponseWriter, r *http.Request) error {
	switch ct := r.Header.Get("Content-Type"); {
	case ct != "application/octet-stream": // no page of another site can say so unasked
		return skep.Invalidf("Content-Type", "is %.80q, want application/octet-stream", ct)
	case r.Header.Get("Content-Encoding") != "":
		return skep.Invalidf("Content-Encoding", "must not be there: the bytes are stored as they come")
	case r.ContentLength < 0:
		return skep.Invalidf("Content-Length", "is required")
	}
	in := &body{r.Body, http.NewResponseController(w)}
	switch path.Base(r.URL.Path) {
	case "uploads":
		return t.upload(w, r, in)
	case "bundles":
		return t.bundle(w, r, in)
	case "blobs":
		return t.blobs(w, r, in)
	}
	return skep.Errorf(skep.NotFound, "want POST /cas/[INSTANCE/], and uploads, bundles or blobs")
}

// place gives one of the places, or does not wait.
func (t *Transfers) place() (release func(), err error) {
	if !t.places.TryAcquire(1) { // gRPC has room
		return nil, skep.Errorf(skep.Exhausted, "%d transfers are under way, which is the limit", callsAtOnce)
	}
	return func() { t.places.Release(1) }, nil
}

// upload takes a large blob in and answers with its digest.
func (t *Transfers) upload(w http.ResponseWriter, r *http.Request, in *body) error {
	release, err := t.place()
	if err != nil {
		return err
	}
	defer release()
	ctx := r.Context()
	up, err := t.store.UploadUnnamed(ctx, r.ContentLength)
	if err != nil {
		return err
	}
	defer up.Close()
	if err := up.Take(in, in.stop); err != nil {
		return err
	}
	d, err := up.Commit(ctx)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = fmt.Fprintln(w, d)
	return err
}

var bundles = sync.Pool{New: func() any { return new([cas.MaxBundle]byte) }}

// bundle takes small blobs in and answers with their digests, a line each.
func (t *Transfers) bundle(w http.ResponseWriter, r *http.Request, in *body) error {
	if r.ContentLength > cas.MaxBundle {
		return skep.Invalidf("Content-Length", "is %d, want %d at most for a bundle", r.ContentLength, cas.MaxBundle)
	}
	release, err := t.place()
	if err != nil {
		return err
	}
	defer release()
	buf := bundles.Get().(*[cas.MaxBundle]byte) //nolint:errcheck // only these are in it
	defer bundles.Put(buf)
	wire := buf[:r.ContentLength]
	if _, err := io.ReadFull(in, wire); err != nil {
		return err
	}
	b, err := cas.DecodeBundle(wire)
	if err != nil {
		return err
	}
	blobs := make([]disk.Blob, b.Len())
	for i := range blobs {
		blobs[i].Data = b.Blob(i)
	}
	had, errs := t.store.PutUnnamed(r.Context(), blobs)
	answer := make([]byte, 0, 80*len(blobs))
	for i := range blobs {
		if errs[i] != nil {
			return errs[i]
		}
		answer = append(answer, blobs[i].Digest.String()...)
		if had[i] {
			answer = append(answer, " had"...)
		}
		answer = append(answer, '\n')
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, err = w.Write(answer)
	return err
}

// blobs gives small blobs out, those of the digests in the lines of the body, in
// their order.
func (t *Transfers) blobs(w http.ResponseWriter, r *http.Request, in *body) error {
	if r.ContentLength > askedMax {
		return skep.Invalidf("Content-Length", "is %d, want %d at most for digests", r.ContentLength, askedMax)
	}
	release, err := t.place()
	if err != nil {
		return err
	}
	defer release()
	text := make([]byte, r.ContentLength)
	if _, err := io.ReadFull(in, text); err != nil {
		return err
	}
	asked, err := digests(string(text))
	if err != nil {
		return err
	}
	buf := bundles.Get().(*[cas.MaxBundle]byte) //nolint:errcheck // only these are in it
	defer bundles.Put(buf)
	out := buf[:0]
	for _, d := range asked {
		data, err := t.store.Get(r.Context(), d, cas.MaxBundled)
		if lost := (*cas.MissingError)(nil); errors.As(err, &lost) {
			out = binary.BigEndian.AppendUint32(out, cas.NotInBundle)
			continue
		}
		if err != nil {
			return err
		}
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(data))), data...)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_ = in.conn.SetWriteDeadline(time.Now().Add(patience)) // without one where the connection has none
	_, _ = w.Write(out)                                    // an error means that nobody reads it
	_ = in.conn.SetWriteDeadline(time.Time{})
	return nil
}

// digests reads a line for each blob that is asked for: what goes in one bundle.
func digests(text string) (list []cas.Digest, err error) {
	var total int64
	for line := range strings.Lines(text) {
		d, err := cas.ParseDigest(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		if d.Size > cas.MaxBundled {
			return nil, skep.Errorf(skep.Invalid, "blob %s goes alone: it has more than %d bytes", d, cas.MaxBundled)
		}
		list = append(list, d)
		if total += cas.BundleHead + d.Size; total > cas.MaxBundle || len(list) > cas.MaxBundleBlobs {
			return nil, skep.Errorf(skep.Invalid, "the blobs that are asked for are more than a bundle has, %d bytes or %d blobs", cas.MaxBundle, cas.MaxBundleBlobs)
		}
	}
	return list, nil
}

// body is one that may take any time, as long as it moves.
type body struct {
	io.Reader
	conn *http.ResponseController
}

func (b *body) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(patience)) // without one where the connection has none
	n, err := b.Reader.Read(p)
	switch {
	case errors.Is(err, io.EOF): // the connection is watched on, for a caller that goes
		_ = b.conn.SetReadDeadline(time.Time{})
	case err != nil:
		err = skep.Errorf(skep.Unavailable, "the body could not be read: %w", err)
	}
	return n, err
}

// stop ends a Read that waits.
func (b *body) stop() { _ = b.conn.SetReadDeadline(time.Unix(1, 0)) }
