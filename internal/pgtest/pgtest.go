// Package pgtest gives tests a PostgreSQL of their own: a fresh schema in the
// one that SKEP_TEST_POSTGRES names.
package pgtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"net/url"
	"os"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/skepdev/skep/internal/need"
)

// DSN makes a fresh schema, which goes when the test ends, and returns a
// connection string for it. Without a PostgreSQL the test is skipped, or fails
// where SKEP_TEST_REQUIRE asks for one.
func DSN(t testing.TB) string {
	t.Helper()
	base := os.Getenv("SKEP_TEST_POSTGRES")
	if base == "" {
		need.Skip(t, "postgres", "set SKEP_TEST_POSTGRES=postgres://… to run this")
	}
	db, err := sql.Open("pgx", base)
	if err != nil {
		t.Fatal(err)
	}
	schema := "t_" + strings.ToLower(rand.Text())
	if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA "+schema); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), "DROP SCHEMA "+schema+" CASCADE") //nolint:usetesting // the test's context has ended
		if err != nil {
			t.Error(err)
		}
		_ = db.Close()
	})
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", schema)
	u.RawQuery = q.Encode()
	return u.String()
}
