package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/skepdev/skep"
)

// away makes an error Unavailable that only says that the database is not
// there at the moment: a caller may try again, and nobody has to look for a bug.
func away(err error) error {
	if err == nil || !isAway(err) {
		return err
	}
	return skep.Errorf(skep.Unavailable, "the database cannot be reached; try again: %w", err)
}

func isAway(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || skep.KindOf(err) == skep.Unavailable {
		return false // the caller gave up, or it is said already
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		// Connection trouble, no room, and an operator's or a crash's shutdown.
		return strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "53") || strings.HasPrefix(pg.Code, "57P")
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || pgconn.SafeToRetry(err)
}
