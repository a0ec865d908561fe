package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// each runs a test on every engine. PostgreSQL is used where
// SKEP_TEST_POSTGRES names one, in a schema of its own.
func each(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Helper()
	open := func(t *testing.T, dsn string) *Store {
		s, err := Open(t.Context(), dsn, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return s
	}
	t.Run("sqlite", func(t *testing.T) { test(t, open(t, filepath.Join(t.TempDir(), "skep.db"))) })
	t.Run("postgres", func(t *testing.T) { test(t, open(t, postgresDSN(t))) })
}

// postgresDSN makes a fresh schema and returns a connection string for it.
func postgresDSN(t *testing.T) string {
	t.Helper()
	base := os.Getenv("SKEP_TEST_POSTGRES")
	if base == "" {
		if strings.Contains(os.Getenv("SKEP_TEST_REQUIRE"), "postgres") {
			t.Fatal("SKEP_TEST_POSTGRES names no PostgreSQL, and SKEP_TEST_REQUIRE asks for one")
		}
		t.Skip("set SKEP_TEST_POSTGRES=postgres://… to run this on PostgreSQL")
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
