package chaos

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

// PrivatePostgres runs a PostgreSQL of its own in dir, which must be a place
// that its user may enter, and returns how to reach it. end stops it; nothing
// else does.
func PrivatePostgres(ctx context.Context, dir string) (dsn string, end func() error, err error) {
	bin, err := postgresHome(ctx)
	if err != nil {
		return "", nil, err
	}
	k, dsn, err := newDatabase(ctx, bin, dir, filepath.Join(dir, "postgres.log"))
	if err != nil {
		return "", nil, err
	}
	done := make(chan error, 1)
	go func() { done <- k.run(context.WithoutCancel(ctx)) }()
	end = func() error {
		if !k.end(10 * time.Second) {
			return errors.Join(errors.New("the private PostgreSQL did not end when it was asked to"), <-done)
		}
		return <-done
	}
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			return dsn, end, conn.Close(ctx)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return "", nil, errors.Join(fmt.Errorf("wait for the private PostgreSQL: %w", err), end())
		}
	}
}
