package machine

import (
	"context"
	"database/sql"
	"testing"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
	"github.com/skepdev/skep/provider"
	"github.com/skepdev/skep/store"
)

// other is a second server on a world's PostgreSQL: a connection on which a
// test holds rows.
type other struct {
	t   *testing.T
	db  *sql.DB
	tx  *sql.Tx
	pid int
}

func newOther(t *testing.T, dsn string) *other {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	o := &other{t: t, db: db}
	if o.tx, err = db.BeginTx(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.tx.Rollback() })
	if err := o.tx.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&o.pid); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *other) exec(query string, args ...any) {
	o.t.Helper()
	if _, err := o.tx.ExecContext(o.t.Context(), query, args...); err != nil {
		o.t.Fatal(err)
	}
}

// beside runs fn, returns when it waits for a row that o holds, and gives the
// function that waits for its end.
func (o *other) beside(fn func(context.Context) error) (wait func()) {
	o.t.Helper()
	done := make(chan error, 1)
	go func() { done <- fn(o.t.Context()) }()
	for waiting := 0; waiting == 0; {
		select {
		case err := <-done:
			o.t.Fatalf("it did not wait for the row: %v", err)
		default:
		}
		err := o.db.QueryRowContext(o.t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))`, o.pid).Scan(&waiting)
		if err != nil {
			o.t.Fatal(err)
		}
	}
	return func() {
		o.t.Helper()
		if err := <-done; err != nil {
			o.t.Error(err)
		}
	}
}

func (o *other) commit() {
	o.t.Helper()
	if err := o.tx.Commit(); err != nil {
		o.t.Fatal(err)
	}
}

// planned is a world on PostgreSQL with two plans of a pool, and the number of
// machines that it is to have then.
func planned(t *testing.T, then int) (*world, *other) {
	dsn := pgtest.DSN(t)
	w := newWorldOn(t, dsn)
	w.declare(fixed("a", 2))
	if _, err := w.r.RunStep(t.Context(), ExpandConfigs, "a"); err != nil {
		t.Fatal(err)
	}
	w.declare(fixed("a", then))
	return w, newOther(t, dsn)
}

// A pool that shrinks while a cloud is asked for one of its machines forgets
// neither that, nor brings back the record of one that is gone by then.
func TestPoolShrinksBesideItsMachines(t *testing.T) {
	w, o := planned(t, 0)
	o.exec(`UPDATE vms SET inserted_us = 7, url = 'u' WHERE id = 'a-0'`)
	o.exec(`DELETE FROM vms WHERE id = 'a-1'`)
	wait := o.beside(func(ctx context.Context) error {
		_, err := w.r.RunStep(ctx, ExpandConfigs, "a")
		return err
	})
	o.commit()
	wait()
	v, err := w.store.VM(t.Context(), "a-0")
	if err != nil || v.Inserted.UnixMicro() != 7 || v.URL != "u" || !v.Drained {
		t.Errorf("the machine that was asked for: %+v, %v", v, err)
	}
	if v, err := w.store.VM(t.Context(), "a-1"); skep.KindOf(err) != skep.NotFound {
		t.Errorf("the machine that was gone: %+v, %v", v, err)
	}
}

// A plan for what is declared no more is none any more once it is asked for.
func TestShapeChangesBesideAnInsert(t *testing.T) {
	w, o := planned(t, 2)
	c := fixed("a", 2)
	c.Attributes.MachineType = "bigger"
	w.declare(c)
	o.exec(`UPDATE vms SET inserted_us = 7 WHERE id = 'a-0'`)
	wait := o.beside(func(ctx context.Context) error {
		_, err := w.r.RunStep(ctx, ExpandConfigs, "a")
		return err
	})
	o.commit()
	wait()
	for id, drained := range map[string]bool{"a-0": false, "a-1": true} {
		if v, err := w.store.VM(t.Context(), id); err != nil || v.Drained != drained || v.Inserted.IsZero() != drained {
			t.Errorf("%s: %+v, %v", id, v, err)
		}
	}
}

// What changes a pool or its machines locks the pool first: two of them never
// wait for each other, nor do two transactions with many of them each.
func TestPoolIsLockedFirst(t *testing.T) {
	for name, step := range map[string]func(context.Context, *Reconciler, *store.VM) error{
		"exists": func(ctx context.Context, r *Reconciler, v *store.VM) error {
			return r.exists(ctx, v, provider.Instance{URL: "u"})
		},
		"note": func(ctx context.Context, r *Reconciler, v *store.VM) error {
			r.note(ctx, v, errLost, pausing{})
			return nil
		},
		"change": func(ctx context.Context, r *Reconciler, v *store.VM) error {
			_, err := r.Replace(ctx, v.ID)
			return err
		},
		"drain":   func(ctx context.Context, r *Reconciler, v *store.VM) error { return r.drainVM(ctx, v.ID) },
		"discard": func(ctx context.Context, r *Reconciler, v *store.VM) error { return r.discard(ctx, v) },
		"expand": func(ctx context.Context, r *Reconciler, _ *store.VM) error {
			_, err := r.RunStep(ctx, ExpandConfigs, "a")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, o := planned(t, 0)
			v, err := w.store.VM(t.Context(), "a-0")
			if err != nil {
				t.Fatal(err)
			}
			o.exec(`SELECT 1 FROM machine_pools WHERE prefix = 'a' FOR UPDATE`)
			wait := o.beside(func(ctx context.Context) error { return step(ctx, w.r, v) })
			o.exec(`SELECT 1 FROM vms FOR UPDATE NOWAIT`)
			o.commit()
			wait()
		})
	}
}
