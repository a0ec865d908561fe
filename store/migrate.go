package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
		text, err := migrations.ReadFile(file)
		if err != nil {
			return err
		}
		if want <= have {
			if err := checkApplied(ctx, conn, want, string(text)); err != nil {
				return err
			}
		} else {
			if err := exec(string(text)); err != nil {
				return err
			}
			if err := exec("INSERT INTO schema_version (version) VALUES ($1)", want); err != nil {
				return err
			}
		}
		if err := exec("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", appliedKey(want), schemaDigest(string(text))); err != nil {
			return err
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

// checkApplied refuses a database in which migration n was another text than
// the one that this program has: it would start, and then fail at every task.
func checkApplied(ctx context.Context, conn *sql.Conn, n int, text string) error {
	var digest string
	err := conn.QueryRowContext(ctx, "SELECT value FROM meta WHERE key = $1", appliedKey(n)).Scan(&digest)
	switch {
	case err == nil && digest == schemaDigest(text):
		return nil
	case errors.Is(err, sql.ErrNoRows):
		// Written before digests were. Those whose tables are of now go on.
		if _, err = conn.ExecContext(ctx, "SELECT t.tags, t.bot_prev, b.last_seq, s.version FROM tasks t, bots b, bot_snapshots s WHERE 1 = 0"); err == nil {
			return nil
		}
	case err != nil:
		return err
	}
	return skep.Errorf(skep.Precondition, "the database was made by an unreleased skep whose tables were others (schema %d), and cannot be read by this one; "+
		"start with an empty state directory or database, or run the program that made it", n)
}

// appliedKey is where the digest of an applied migration is kept.
func appliedKey(n int) string { return "schema " + strconv.Itoa(n) }

// schemaDigest names what a migration does: comments and blanks do not count.
func schemaDigest(text string) string {
	sum := sha256.New()
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "--")
		for _, word := range strings.Fields(line) {
			_, _ = io.WriteString(sum, word+" ")
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}
