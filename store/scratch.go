package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Scratch makes an empty schema in the PostgreSQL database at dsn, for a run
// that must not meet anybody's data. It returns the connection string of the
// schema, and what removes the schema with all that came into it.
func Scratch(ctx context.Context, dsn string) (scratch string, drop func(context.Context) error, err error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", nil, errors.New("want a postgres:// URL") // the text may hold a password
	}
	schema := "skep_" + strings.ToLower(rand.Text())
	run := func(ctx context.Context, query string) error {
		db, err := sql.Open("pgx", dsn)
		if err != nil {
			return redact(err)
		}
		defer db.Close()
		_, err = db.ExecContext(ctx, query)
		return err
	}
	if err := run(ctx, "CREATE SCHEMA "+schema); err != nil {
		return "", nil, fmt.Errorf("make a scratch schema: %w", err)
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return u.String(), func(ctx context.Context) error {
		if err := run(ctx, "DROP SCHEMA "+schema+" CASCADE"); err != nil {
			return fmt.Errorf("remove the scratch schema %s: %w", schema, err)
		}
		return nil
	}, nil
}
