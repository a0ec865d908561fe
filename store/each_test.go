package store

import (
	"path/filepath"
	"testing"

	"github.com/skepdev/skep/internal/pgtest"
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
	t.Run("postgres", func(t *testing.T) { test(t, open(t, pgtest.DSN(t))) })
}
