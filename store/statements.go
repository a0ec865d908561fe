package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// statements prepares each query text once and keeps it.
type statements struct {
	prepare func(context.Context, string) (*sql.Stmt, error)
	byText  sync.Map // string → *sql.Stmt
}

func newStatements(prepare func(context.Context, string) (*sql.Stmt, error)) *statements {
	return &statements{prepare: prepare}
}

func (s *statements) get(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := s.byText.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := s.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	if prev, loaded := s.byText.LoadOrStore(query, st); loaded {
		return prev.(*sql.Stmt), st.Close()
	}
	return st, nil
}

func (s *statements) query(ctx context.Context, query string, args ...any) (rows, error) {
	st, err := s.get(ctx, query)
	if err != nil {
		return nil, err
	}
	rs, err := st.QueryContext(ctx, args...)
	if err != nil {
		return nil, err
	}
	return rs, nil
}

// row runs a query for at most one row and scans it; found tells whether there
// was one.
func (s *statements) row(ctx context.Context, query string, args []any, dest ...any) (found bool, err error) {
	st, err := s.get(ctx, query)
	if err != nil {
		return false, err
	}
	switch err := st.QueryRowContext(ctx, args...).Scan(dest...); {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil
	default:
		return err == nil, err
	}
}

func (s *statements) close() error {
	var errs []error
	s.byText.Range(func(_, st any) bool {
		errs = append(errs, st.(*sql.Stmt).Close())
		return true
	})
	return errors.Join(errs...)
}
