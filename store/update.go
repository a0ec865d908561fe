package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/skepdev/skep"
)

// maxBatch bounds how many changes one commit carries, and with it how long
// the first of them waits for the last.
const maxBatch = 256

// Tx is the inside of one Update.
type Tx struct {
	reads
	Now time.Time // one instant, so that rows written together agree

	ctx     context.Context
	s       session
	d       dialect
	batch   *batch
	known   *looks
	looks   []lookChange // for the records at hand, once it is committed
	forget  bool         // none of them can be relied on afterwards
	tags    *tagSets
	lastSeq *atomic.Int64 // the last event's name, see nextSeq
	after   []func()      // run once it is committed, before anybody is answered

	dirty bool  // it wrote something
	err   error // the first error of the engine; on PostgreSQL it spoils the transaction
}

// exec runs a statement that writes, and returns how many rows it changed.
func (tx *Tx) exec(query string, args ...any) (int64, error) {
	tx.dirty = true
	n, err := tx.s.exec(tx.ctx, query, args...)
	return n, tx.note(err)
}

// write runs a statement that writes, now or soon: an error that it returns
// may be that of an earlier one, and its own may come later. Either way it
// takes back the whole change.
func (tx *Tx) write(query string, args ...any) error {
	tx.dirty = true
	return tx.note(tx.s.write(tx.ctx, query, args...))
}

func (tx *Tx) note(err error) error {
	if err != nil && tx.err == nil {
		tx.err = err
	}
	return err
}

// txReads are the questions of a Tx. They last as long as the writer does,
// whatever context is given: a caller who leaves would take along what others
// wrote before, which travels with them. decisions.md 20. An error of the
// engine is the change's own, also where fn goes on in spite of it.
type txReads struct{ tx *Tx }

func (r txReads) query(_ context.Context, text string, args ...any) (rows, error) {
	rs, err := r.tx.s.query(r.tx.ctx, text, args...)
	return rs, r.tx.note(err)
}

func (r txReads) row(_ context.Context, text string, args []any, dest ...any) (bool, error) {
	found, err := r.tx.s.row(r.tx.ctx, text, args, dest...)
	return found, r.tx.note(err)
}

// Update runs fn inside a transaction and returns after its change is durable.
//
// fn may run twice and must have no effect but on its Tx. An error of fn takes
// back its own change only and is returned as it is. When ctx ends before fn's
// turn, fn does not run and the error says so; ctx does not interrupt it
// later. decisions.md 20.
//
// keys name rows that fn is going to ask for: a batch reads those of all its
// changes at once, and locks them in order. They are a hint and change nothing
// else.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error, keys ...Key) error {
	return s.writers.do(ctx, fn, keys...)
}

type change struct {
	ctx  context.Context
	fn   func(*Tx) error
	keys []Key
	err  error
	done chan struct{}
}

// writers are the only ones who write: each gathers what callers queued while
// its last commit ran and commits it together. SQLite has one. PostgreSQL has
// a few: while one waits for the disk, another one's statements run.
type writers struct {
	open    func(context.Context) (session, error)
	looks   *looks
	tags    *tagSets
	lastSeq atomic.Int64
	d       dialect
	now     func() time.Time
	queue   chan *change
	stop    chan struct{}
	ended   chan struct{} // all of them
	stats   commitStats
}

// writer is one of them.
type writer struct {
	*writers
	s    session // nil while the database cannot be reached
	kept map[skep.TaskID]*skep.Task
}

var errClosed = skep.Errorf(skep.Unavailable, "the server is shutting down; try again")

// start opens the connections and starts to write.
func (ws *writers) start(ctx context.Context) error {
	ws.queue, ws.stop, ws.ended = make(chan *change, maxBatch), make(chan struct{}), make(chan struct{})
	all := make([]*writer, ws.d.writers)
	for i := range all {
		all[i] = &writer{writers: ws, kept: map[skep.TaskID]*skep.Task{}}
		if err := all[i].connect(ctx); err != nil {
			for _, w := range all[:i] {
				w.disconnect()
			}
			return err
		}
	}
	var wg sync.WaitGroup
	for _, w := range all {
		wg.Go(w.run)
	}
	go func() {
		wg.Wait()
		close(ws.ended)
	}()
	return nil
}

// connect makes sure that there is a connection to write on.
func (w *writer) connect(ctx context.Context) error {
	if w.s != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := w.open(ctx)
	if err != nil {
		return skep.Errorf(skep.Unavailable, "the database cannot be reached; try again: %w", err)
	}
	w.s = s
	return nil
}

// disconnect gives up a connection in an unknown state. PostgreSQL takes back
// what was not committed when it goes.
func (w *writer) disconnect() {
	if w.s != nil {
		_ = w.s.close()
		w.s = nil
	}
}

func (w *writers) do(ctx context.Context, fn func(*Tx) error, keys ...Key) error {
	c := &change{ctx: ctx, fn: fn, keys: keys, done: make(chan struct{})}
	select {
	case <-w.stop:
		return errClosed
	default:
	}
	select {
	case w.queue <- c:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.stop:
		return errClosed
	}
	select {
	case <-c.done:
	case <-w.ended: // it may have been queued after the last batch was drawn
		select {
		case <-c.done:
		default:
			return errClosed
		}
	}
	return c.err
}

// close ends them after the changes queued so far.
func (w *writers) close() {
	close(w.stop)
	<-w.ended
}

func (w *writer) run() {
	defer w.disconnect()
	batch := make([]*change, 0, maxBatch)
	for {
		batch = batch[:0]
		select {
		case c := <-w.queue:
			batch = append(batch, c)
		case <-w.stop:
			for { // what was queued before the stop is still served
				select {
				case c := <-w.queue:
					batch = append(batch, c)
				default:
					w.commit(batch)
					return
				}
			}
		}
		batch = w.gather(batch)
		w.commit(batch)
	}
}

// gather adds to a batch what waits, and as long as there is more each time,
// what those bring who can run now: a commit costs the same for all of them.
func (w *writer) gather(batch []*change) []*change {
	for before := 1; ; before = len(batch) {
		for len(batch) < maxBatch && len(w.queue) > 0 {
			batch = append(batch, <-w.queue)
		}
		if len(batch) == before || len(batch) == maxBatch {
			return batch
		}
		runtime.Gosched()
	}
}

// commit runs a batch and answers everybody in it.
//
// The first try runs without savepoints, as nearly always nobody fails after
// having written. When somebody does, the batch starts again with a savepoint
// for each change, so that only the failing ones are taken back.
func (w *writer) commit(batch []*change) {
	if len(batch) == 0 {
		return
	}
	began := time.Now()
	err := w.try(batch, false)
	for attempt := 0; err != nil && attempt < 5 && (errors.Is(err, errSpoiled) || transient(err)); attempt++ {
		err = w.try(batch, true)
	}
	w.stats.note(began, len(batch), err)
	for _, c := range batch {
		if err != nil {
			c.err = unsettled(err)
		}
		close(c.done)
	}
}

// unsettled makes the error for changes whose transaction did not end well.
// They may be sent again: a repeated change finds what the first one left.
func unsettled(err error) error {
	if skep.KindOf(err) == skep.Unavailable {
		return err
	}
	return skep.Errorf(skep.Unavailable, "the database did not confirm the change; try again: %w", err)
}

var errSpoiled = errors.New("a change failed after it had written")

// transient reports whether the same transaction may succeed when run again:
// another server of the fleet was in the way.
func transient(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == "40001" || pg.Code == "40P01")
}

func (w *writer) try(changes []*change, savepoints bool) (err error) {
	if w.s == nil { // an earlier try lost it
		if err := w.connect(context.Background()); err != nil {
			return err
		}
	}
	ctx := context.Background()
	defer func() {
		if err != nil {
			clear(w.kept)
			if w.s.rollback(ctx) != nil {
				w.disconnect()
			}
		}
	}()
	if err := w.s.begin(ctx, savepoints); err != nil {
		return err
	}
	b := newBatch(!savepoints)
	if !savepoints && w.d.writers == 1 {
		b = soleBatch(w.kept)
	}
	if !savepoints {
		if err := b.read(ctx, w, changes); err != nil {
			return err
		}
	}
	wrote, forget := false, false
	var looks []lookChange
	var after []func()
	for _, c := range changes {
		c.err = nil
		if c.ctx.Err() != nil {
			c.err = c.ctx.Err()
			continue
		}
		if savepoints {
			if _, err := w.s.exec(ctx, "SAVEPOINT change"); err != nil {
				return err
			}
		}
		tx := &Tx{Now: w.now().UTC().Truncate(time.Microsecond), ctx: ctx, s: w.s, d: w.d, batch: b, known: w.looks, tags: w.tags, lastSeq: &w.lastSeq}
		tx.reads.q = txReads{tx}
		c.err = call(c.fn, tx)
		if c.err == nil {
			c.err = tx.err // an ignored error of the engine is still one
		}
		switch spoiled := c.err != nil && (tx.dirty || tx.err != nil); {
		case spoiled && !savepoints:
			return errSpoiled
		case spoiled:
			if _, err := w.s.exec(ctx, "ROLLBACK TO SAVEPOINT change"); err != nil {
				return err
			}
			if transient(c.err) {
				return c.err
			}
		default:
			looks, forget = append(looks, tx.looks...), forget || tx.forget
			after = append(after, tx.after...)
		}
		if savepoints {
			if _, err := w.s.exec(ctx, "RELEASE SAVEPOINT change"); err != nil {
				return err
			}
		}
		wrote = wrote || tx.dirty
	}
	if !wrote {
		return w.s.rollback(ctx)
	}
	err = w.s.commit(ctx)
	if err != nil || forget {
		w.looks.forget()
	} else {
		w.looks.apply(looks)
	}
	if err == nil {
		for _, f := range after {
			f()
		}
	}
	if err != nil && !savepoints && refused(err) {
		return errSpoiled // by a statement that was put off
	}
	return err
}

// refused reports whether the engine said no to a statement, and so is still
// there and has committed nothing.
func refused(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Severity == "ERROR" // not FATAL
}

// call runs fn; a panic ends only this change.
func call(fn func(*Tx) error, tx *Tx) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic in a change of the database: %v", r)
			tx.dirty = true
		}
	}()
	return fn(tx)
}
