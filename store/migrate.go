package store

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/skepdev/skep"
)

//go:embed migration
var migrations embed.FS

// migrate brings the schema up to date: forward only, one transaction for
// each file. A program older than its database refuses to start.
func (s *Store) migrate(ctx context.Context) error {
	dir := "migration/" + s.dialect.name
	files, err := fs.Glob(migrations, dir+"/*.sql")
	if err != nil {
		return err
	}
	slices.Sort(files)
	conn, err := s.wpool.Conn(ctx)
	if err != nil {
		return skep.Errorf(skep.Unavailable, "the database cannot be reached: %w", err)
	}
	defer conn.Close()
	exec := func(query string, args ...any) error {
		_, err := conn.ExecContext(ctx, query, args...)
		return err
	}
	begin := "BEGIN IMMEDIATE"
	if s.dialect == postgres {
		begin = "BEGIN; SELECT pg_advisory_xact_lock(7357001)" // one server at a time
	}
	step := func(file string) (err error) {
		if err := exec(begin); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, exec("ROLLBACK"))
			}
		}()
		if err := exec("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)"); err != nil {
			return err
		}
		var have int
		if err := conn.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&have); err != nil {
			return err
		}
		if have > len(files) {
			return skep.Errorf(skep.Precondition, "the database has schema %d and this program knows %d; run a newer skep", have, len(files))
		}
		want, err := strconv.Atoi(strings.SplitN(strings.TrimPrefix(file, dir+"/"), "_", 2)[0])
		if err != nil {
			return err
		}
		if want > have {
			text, err := migrations.ReadFile(file)
			if err != nil {
				return err
			}
			if err := exec(string(text)); err != nil {
				return err
			}
			if err := exec("INSERT INTO schema_version (version) VALUES ($1)", want); err != nil {
				return err
			}
		}
		return exec("COMMIT")
	}
	for _, f := range files {
		if err := step(f); err != nil {
			return fmt.Errorf("migrate to %s: %w", f, err)
		}
	}
	return nil
}
