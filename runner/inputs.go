package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
	"github.com/skepdev/skep/cas"
	"github.com/skepdev/skep/cas/cache"
	"github.com/skepdev/skep/cas/remote"
)

func (j *isolatedJob) wantsInputs() bool { return j.CAS != nil && j.CAS.Root != "" }

func openStorage(s Storage, log *slog.Logger) (*cache.Cache, error) {
	return cache.Open(cache.Options{Dir: s.Cache, MaxBytes: s.MaxBytes, MaxItems: s.MaxItems, MinFree: s.MinFree, Trusted: s.Trusted, Log: log})
}

// storage connects to where inputs and outputs are.
func (r *isolatedRun) storage() (*remote.Client, error) {
	if r.client != nil {
		return r.client, nil
	}
	j := r.job.CAS
	c, err := remote.New(remote.Options{URL: j.URL, Instance: j.Instance, Headers: r.casHeaders, RootCAs: pool(j.RootCAs), Patience: patience, Log: r.log})
	if err != nil {
		return nil, err
	}
	r.client = c
	return c, nil
}

// casHeaders are the newest that task_runner gave us.
func (r *isolatedRun) casHeaders() map[string]string {
	if h := r.headers.Load(); h != nil {
		return *h
	}
	return r.job.CAS.Headers
}

var errStopped = errors.New("the task was told to stop")

// untilStopped returns a context that ends when the task is told to stop, or
// nobody is left to report to. done must be called.
func (r *isolatedRun) untilStopped() (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	over := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		select {
		case <-r.stop:
			r.requestStop() // whoever comes next must know too
			cancel(errStopped)
		case <-r.parentGone:
			r.parentGone <- struct{}{}
			cancel(errStopped)
		case <-over:
		}
	}()
	return ctx, func() {
		close(over)
		<-gone
		cancel(nil)
	}
}

// fetchInputs fills the run directory and puts the named caches into it. A
// tree that is not there, or that must not be written, is the requester's
// fault: the result says so.
func (r *isolatedRun) fetchInputs() error {
	j := r.job.CAS
	root, err := cas.ParseDigest(j.Root)
	if err != nil {
		return r.missing("digest_invalid", err, j.Root)
	}
	from, err := r.storage()
	if err != nil {
		return err
	}
	how := cache.How{Method: r.Storage.Method, UID: -1, Trusted: j.Trusted, Place: r.placeCaches}
	if r.User != nil {
		how.UID, how.GID = int(r.User.UID), int(r.User.GID)
	}
	if how.Scratch, err = os.MkdirTemp(r.Dir, "iu"); err != nil {
		return err
	}
	r.dirs.scratch = how.Scratch
	defer allProcessors()()
	ctx, done := r.untilStopped()
	defer done()
	in, err := r.cas.Materialise(ctx, from, root, r.dirs.run, how)
	if context.Cause(ctx) != nil {
		return errors.Join(errStopped, err)
	}
	if m, ok := errors.AsType[*cas.MissingError](err); ok {
		var list []string
		for _, d := range m.Digests[:min(len(m.Digests), maxMissing)] {
			list = append(list, d.String())
		}
		return r.missing("missing", err, list...)
	}
	if skep.KindOf(err) == skep.Invalid {
		return r.missing("digest_invalid", err, j.Root)
	}
	if err != nil {
		return fmt.Errorf("inputs: %w", err)
	}
	r.inputs = in
	if in.Method == cache.Overlay {
		// The seat was taken before there was a mount to see.
		r.seat.Leave()
		r.seat = nil
	}
	r.log.Info("inputs are there", "task", r.job.TaskID, "method", string(in.Method), "files", in.Files,
		"cold", len(in.Cold), "hot", len(in.Hot), "took", in.Duration)
	r.res.Stats.Isolated.Download = &botapi.TransferStats{
		Duration: in.Duration.Seconds(), InitialNumberItems: int32(min(in.Items, 1<<31-1)), InitialSize: in.Bytes,
		ItemsCold: cas.PackSizes(in.Cold), ItemsHot: cas.PackSizes(in.Hot),
	}
	return nil
}

// allProcessors lets a transfer have them all: this process otherwise makes do
// with one, which starts faster.
func allProcessors() (restore func()) {
	before := runtime.GOMAXPROCS(runtime.NumCPU())
	return func() { runtime.GOMAXPROCS(before) }
}

// maxMissing bounds the missing blobs that a result names.
const maxMissing = 20

// missing notes what the requester of the task must put right.
func (r *isolatedRun) missing(status string, err error, digests ...string) error {
	for _, d := range digests {
		if !strings.Contains(d, "/") {
			d += "/0"
		}
		r.res.MissingCAS = append(r.res.MissingCAS, botapi.MissingCAS{Status: status, Digest: d, Instance: r.job.CAS.Instance})
	}
	return fmt.Errorf("inputs: %w", err)
}

// endInputs ends what is mounted: from then on the run directory holds what
// the task wrote and nothing of its inputs.
func (r *isolatedRun) endInputs() {
	if r.inputs == nil {
		return
	}
	if err := r.inputs.Undo(); err != nil {
		r.log.Error("inputs not unmounted", "task", r.job.TaskID, "err", err)
	}
}
