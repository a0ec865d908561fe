package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"

	sqlite3 "modernc.org/sqlite"
)

// sqliteSession writes to SQLite, where nothing is gained by putting off. It
// speaks to the driver itself: there is one connection, used by one goroutine,
// and what database/sql does for pools is a tenth of its work.
type sqliteSession struct {
	conn  driver.Conn
	stmts map[string]sqliteStmt
	args  []driver.NamedValue // of the statement under way
}

type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func openSQLiteSession(dsn string) (session, error) {
	conn, err := (&sqlite3.Driver{}).Open(dsn)
	if err != nil {
		return nil, err
	}
	return &sqliteSession{conn: conn, stmts: map[string]sqliteStmt{}}, nil
}

// prepare returns the statement and its arguments as the driver takes them,
// valid until the next call.
func (s *sqliteSession) prepare(text string, args []any) (sqliteStmt, []driver.NamedValue, error) {
	st := s.stmts[text]
	if st == nil {
		prepared, err := s.conn.Prepare(text)
		if err != nil {
			return nil, nil, err
		}
		var ok bool
		if st, ok = prepared.(sqliteStmt); !ok {
			return nil, nil, errors.Join(fmt.Errorf("the driver's %T takes no context", prepared), prepared.Close())
		}
		s.stmts[text] = st
	}
	s.args = s.args[:0]
	for i, a := range args {
		v, err := plainValue(a)
		if err != nil {
			return nil, nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return st, s.args, nil
}

func (s *sqliteSession) query(ctx context.Context, text string, args ...any) (rows, error) {
	st, values, err := s.prepare(text, args)
	if err != nil {
		return nil, err
	}
	rs, err := st.QueryContext(ctx, values)
	if err != nil {
		return nil, err
	}
	return &sqliteRows{rows: rs, row: make([]driver.Value, len(rs.Columns()))}, nil
}

func (s *sqliteSession) row(ctx context.Context, text string, args []any, dest ...any) (bool, error) {
	rs, err := s.query(ctx, text, args...)
	if err != nil {
		return false, err
	}
	return exactlyOne(rs, dest)
}

func (s *sqliteSession) exec(ctx context.Context, text string, args ...any) (int64, error) {
	st, values, err := s.prepare(text, args)
	if err != nil {
		return 0, err
	}
	res, err := st.ExecContext(ctx, values)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (s *sqliteSession) write(ctx context.Context, text string, args ...any) error {
	st, values, err := s.prepare(text, args)
	if err != nil {
		return err
	}
	_, err = st.ExecContext(ctx, values)
	return err
}

func (s *sqliteSession) begin(ctx context.Context, _ bool) error {
	return s.write(ctx, "BEGIN IMMEDIATE")
}
func (s *sqliteSession) commit(ctx context.Context) error   { return s.write(ctx, "COMMIT") }
func (s *sqliteSession) rollback(ctx context.Context) error { return s.write(ctx, "ROLLBACK") }

func (s *sqliteSession) close() error {
	var errs []error
	for _, st := range s.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, s.conn.Close())...)
}

// sqliteRows are rows as the driver gives them.
type sqliteRows struct {
	rows driver.Rows // nil once closed
	row  []driver.Value
	err  error
}

// Next reads the next row.
func (r *sqliteRows) Next() bool {
	if r.rows == nil || r.err != nil {
		return false
	}
	if err := r.rows.Next(r.row); err != nil {
		if !errors.Is(err, io.EOF) {
			r.err = err
		}
		_ = r.Close()
		return false
	}
	return true
}

// Scan copies the row's columns.
func (r *sqliteRows) Scan(dest ...any) error {
	if len(dest) != len(r.row) {
		return fmt.Errorf("%d columns, scanned into %d", len(r.row), len(dest))
	}
	for i, v := range r.row {
		if err := assign(dest[i], v); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}

// Err returns why Next ended early.
func (r *sqliteRows) Err() error { return r.err }

// Close ends the answer.
func (r *sqliteRows) Close() error {
	if r.rows == nil {
		return r.err
	}
	err := r.rows.Close()
	r.rows = nil
	return errors.Join(r.err, err)
}

// assign stores a column: SQLite has numbers, texts and bytes.
func assign(dest any, v driver.Value) error {
	switch d := dest.(type) {
	case *string:
		if s, ok := v.(string); ok {
			*d = s
			return nil
		}
	case *int64:
		if n, ok := v.(int64); ok {
			*d = n
			return nil
		}
	case *[]byte:
		switch b := v.(type) {
		case []byte:
			*d = b
			return nil
		case nil:
			*d = nil
			return nil
		}
	case sql.Scanner:
		return d.Scan(v)
	}
	to := reflect.ValueOf(dest).Elem()
	switch v := v.(type) {
	case int64:
		switch {
		case to.CanInt() && !to.OverflowInt(v):
			to.SetInt(v)
			return nil
		case to.CanFloat():
			to.SetFloat(float64(v))
			return nil
		case to.Kind() == reflect.String: // what a PRAGMA says
			to.SetString(fmt.Sprint(v))
			return nil
		}
	case float64:
		if to.CanFloat() {
			to.SetFloat(v)
			return nil
		}
	case string:
		if to.Kind() == reflect.String {
			to.SetString(v)
			return nil
		}
	}
	return fmt.Errorf("%T does not fit into %T", v, dest)
}
