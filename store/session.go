package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
)

// querier answers questions. Arguments are those of database/sql.
type querier interface {
	query(ctx context.Context, text string, args ...any) (rows, error)
	// row runs a query for at most one row and scans it; found tells whether
	// there was one.
	row(ctx context.Context, text string, args []any, dest ...any) (found bool, err error)
}

// rows is the answer; Close must be called and may be called twice.
type rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close() error
}

// session is the one connection that writes. It is used by one goroutine.
type session interface {
	querier

	// exec runs a statement and returns how many rows it changed.
	exec(ctx context.Context, text string, args ...any) (int64, error)

	// write runs a statement whose result nobody waits for. It may be put off
	// until the next exec, query or flush, and its error comes from there.
	write(ctx context.Context, text string, args ...any) error
	flush(ctx context.Context) error

	// begin starts a transaction. eager transactions put nothing off, so that
	// every error belongs to the statement that returns it.
	begin(ctx context.Context, eager bool) error
	commit(ctx context.Context) error
	rollback(ctx context.Context) error // takes back what was written; an error means that the session is of no use any more

	close() error
}

// exactlyOne scans the first row of rs, if there is one, and closes rs.
func exactlyOne(rs rows, dest []any) (found bool, err error) {
	defer rs.Close()
	if !rs.Next() {
		return false, rs.Err()
	}
	if err := rs.Scan(dest...); err != nil {
		return false, err
	}
	return true, rs.Close()
}

// plain turns an argument into one of the few types that every driver knows.
func plain(args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		switch a.(type) {
		case int64, string, []byte, float64, nil:
			out[i] = a
			continue
		}
		v, err := driver.DefaultParameterConverter.ConvertValue(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		out[i] = v
	}
	return out, nil
}

// flag scans a number as yes or no: the engines do not share a boolean type.
type flag struct{ to *bool }

// Scan reads what a driver returns for a BIGINT.
func (f flag) Scan(v any) error {
	n, ok := v.(int64)
	if !ok {
		return fmt.Errorf("want a number, got %T", v)
	}
	*f.to = n != 0
	return nil
}

var _ sql.Scanner = flag{}

// sqliteSession writes to SQLite, where nothing is gained by putting off.
type sqliteSession struct {
	conn  *sql.Conn
	stmts *statements
}

func openSQLiteSession(ctx context.Context, pool *sql.DB) (session, error) {
	conn, err := pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &sqliteSession{conn: conn, stmts: newStatements(conn.PrepareContext)}, nil
}

func (s *sqliteSession) query(ctx context.Context, text string, args ...any) (rows, error) {
	return s.stmts.query(ctx, text, args...)
}

func (s *sqliteSession) row(ctx context.Context, text string, args []any, dest ...any) (bool, error) {
	return s.stmts.row(ctx, text, args, dest...)
}

func (s *sqliteSession) exec(ctx context.Context, text string, args ...any) (int64, error) {
	res, err := s.stmts.exec(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (s *sqliteSession) write(ctx context.Context, text string, args ...any) error {
	_, err := s.stmts.exec(ctx, text, args...)
	return err
}

func (s *sqliteSession) flush(context.Context) error { return nil }

func (s *sqliteSession) begin(ctx context.Context, _ bool) error {
	return s.write(ctx, "BEGIN IMMEDIATE")
}
func (s *sqliteSession) commit(ctx context.Context) error   { return s.write(ctx, "COMMIT") }
func (s *sqliteSession) rollback(ctx context.Context) error { return s.write(ctx, "ROLLBACK") }

// close gives the connection up for good: it may be in any state.
func (s *sqliteSession) close() error {
	err := s.stmts.close()
	_ = s.conn.Raw(func(any) error { return driver.ErrBadConn }) // never reused
	return errors.Join(err, closed(s.conn.Close()))
}

func closed(err error) error {
	if errors.Is(err, sql.ErrConnDone) || errors.Is(err, driver.ErrBadConn) {
		return nil
	}
	return err
}
