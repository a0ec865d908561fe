package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/skepdev/skep"
)

func TestAnAbsentDatabaseIsUnavailable(t *testing.T) {
	pg := func(code string) error { return &pgconn.PgError{Code: code} }
	for _, tc := range []struct {
		name string
		err  error
		want skep.Kind
	}{
		{"refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, skep.Unavailable},
		{"closed while it answered", fmt.Errorf("read: %w", io.ErrUnexpectedEOF), skep.Unavailable},
		{"a stale connection", driver.ErrBadConn, skep.Unavailable},
		{"it is starting", pg("57P03"), skep.Unavailable},
		{"another process crashed", pg("57P02"), skep.Unavailable},
		{"too many connections", pg("53300"), skep.Unavailable},
		{"a wrong query", pg("42601"), skep.Internal},
		{"a query that was cancelled", pg("57014"), skep.Internal},
		{"no rows", sql.ErrNoRows, skep.Internal},
		{"anything else", errors.New("x"), skep.Internal},
		{"the caller went away", fmt.Errorf("dial: %w", context.Canceled), skep.Internal},
		{"a kind already", skep.Errorf(skep.NotFound, "x"), skep.NotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := away(tc.err)
			if skep.KindOf(got) != tc.want || !errors.Is(got, tc.err) {
				t.Errorf("%v is %v, want %v", got, skep.KindOf(got), tc.want)
			}
		})
	}
	if away(nil) != nil {
		t.Error("no error")
	}
}
