package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pgSession writes to PostgreSQL. Statements whose result nobody waits for
// travel with the next one that somebody does wait for: what counts is the
// number of round trips, not of statements.
type pgSession struct {
	conn    *pgx.Conn
	pending *pgx.Batch
	eager   bool
}

func openPGSession(ctx context.Context, config *pgx.ConnConfig) (session, error) {
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &pgSession{conn: conn, pending: &pgx.Batch{}}, nil
}

func (s *pgSession) write(ctx context.Context, text string, args ...any) error {
	if s.eager {
		_, err := s.exec(ctx, text, args...)
		return err
	}
	args, err := plain(args)
	if err != nil {
		return err
	}
	s.pending.Queue(text, args...)
	return nil
}

// send sends what is pending, and reads all answers but those of the last
// `mine` statements.
func (s *pgSession) send(ctx context.Context, mine int) (pgx.BatchResults, error) {
	b := s.pending
	s.pending = &pgx.Batch{}
	res := s.conn.SendBatch(ctx, b)
	for range b.Len() - mine {
		if _, err := res.Exec(); err != nil {
			_ = res.Close() // repeats the error
			return nil, err
		}
	}
	return res, nil
}

func (s *pgSession) exec(ctx context.Context, text string, args ...any) (int64, error) {
	args, err := plain(args)
	if err != nil {
		return 0, err
	}
	if s.pending.Len() == 0 {
		tag, err := s.conn.Exec(ctx, text, args...)
		return tag.RowsAffected(), err
	}
	s.pending.Queue(text, args...)
	res, err := s.send(ctx, 1)
	if err != nil {
		return 0, err
	}
	tag, err := res.Exec()
	return tag.RowsAffected(), errors.Join(err, res.Close())
}

func (s *pgSession) query(ctx context.Context, text string, args ...any) (rows, error) {
	args, err := plain(args)
	if err != nil {
		return nil, err
	}
	if s.pending.Len() == 0 {
		rs, err := s.conn.Query(ctx, text, args...)
		return &pgRows{Rows: rs}, err
	}
	s.pending.Queue(text, args...)
	res, err := s.send(ctx, 1)
	if err != nil {
		return nil, err
	}
	rs, err := res.Query()
	if err != nil {
		_ = res.Close()
		return nil, err
	}
	return &pgRows{Rows: rs, batch: res}, nil
}

func (s *pgSession) row(ctx context.Context, text string, args []any, dest ...any) (bool, error) {
	rs, err := s.query(ctx, text, args...)
	if err != nil {
		return false, err
	}
	return exactlyOne(rs, dest)
}

func (s *pgSession) begin(ctx context.Context, eager bool) error {
	s.eager, s.pending = eager, &pgx.Batch{}
	return s.write(ctx, "BEGIN")
}

func (s *pgSession) commit(ctx context.Context) error {
	if s.eager {
		tag, err := s.conn.Exec(ctx, "COMMIT")
		return committed(tag, err)
	}
	s.pending.Queue("COMMIT")
	res, err := s.send(ctx, 1)
	if err != nil {
		return err
	}
	tag, err := res.Exec()
	return committed(tag, errors.Join(err, res.Close()))
}

// committed looks at the answer to COMMIT: of a transaction that had failed it
// is ROLLBACK, and no error.
func committed(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.String() != "COMMIT" {
		return fmt.Errorf("the engine answered COMMIT with %q: the transaction had failed before", tag.String())
	}
	return err
}

func (s *pgSession) rollback(ctx context.Context) error {
	s.pending = &pgx.Batch{}
	if s.conn.IsClosed() {
		return errors.New("the connection is closed")
	}
	_, err := s.conn.Exec(ctx, "ROLLBACK")
	return err
}

func (s *pgSession) close() error { return s.conn.Close(context.Background()) }

// pgRows are rows of pgx, perhaps the last ones of a batch.
type pgRows struct {
	pgx.Rows
	batch pgx.BatchResults // nil when there is none
}

// Err says why there are no more rows, nil after the last.
func (r *pgRows) Err() error { return away(r.Rows.Err()) }

// Close ends the answer.
func (r *pgRows) Close() error {
	r.Rows.Close()
	err := r.Err()
	if b := r.batch; b != nil {
		r.batch = nil
		err = errors.Join(err, b.Close())
	}
	return err
}

// pgReads reads from PostgreSQL, on any connection of a pool.
type pgReads struct{ pool *pgxpool.Pool }

func (r pgReads) query(ctx context.Context, text string, args ...any) (rows, error) {
	args, err := plain(args)
	if err != nil {
		return nil, err
	}
	rs, err := r.pool.Query(ctx, text, args...)
	if err != nil {
		return nil, away(err)
	}
	return &pgRows{Rows: rs}, nil
}

func (r pgReads) row(ctx context.Context, text string, args []any, dest ...any) (bool, error) {
	rs, err := r.query(ctx, text, args...)
	if err != nil {
		return false, err
	}
	return exactlyOne(rs, dest)
}
