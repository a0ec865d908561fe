package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/skepdev/skep"
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
	// until the next exec, query or commit, and its error comes from there.
	write(ctx context.Context, text string, args ...any) error

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
		v, err := plainValue(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		out[i] = v
	}
	return out, nil
}

func plainValue(a any) (driver.Value, error) {
	switch a := a.(type) {
	case int64, string, []byte, float64, nil:
		return a, nil
	case skep.TaskID:
		return int64(a), nil
	case skep.BotID:
		return string(a), nil
	}
	return driver.DefaultParameterConverter.ConvertValue(a)
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
