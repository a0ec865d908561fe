package store

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/internal/pgtest"
)

// A database whose tables are not those of this program is refused at start:
// else the server would come up and fail at every task.
func TestOtherSchemaIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change []string
		want   skep.Kind // 0 = it opens
	}{
		"untouched":                    {nil, 0},
		"another first migration":      {[]string{"UPDATE meta SET value = 'x' WHERE key = 'schema 1'"}, skep.Precondition},
		"no digests, tables of now":    {[]string{"DELETE FROM meta WHERE key LIKE 'schema %'"}, 0},
		"no digests, tables of before": {[]string{"DELETE FROM meta WHERE key LIKE 'schema %'", "ALTER TABLE tasks RENAME COLUMN tags TO t"}, skep.Precondition},
		"a newer program":              {[]string{"INSERT INTO schema_version (version) VALUES (99)"}, skep.Precondition},
	} {
		t.Run(name, func(t *testing.T) {
			for engine, dsn := range map[string]func(t *testing.T) (dsn, driver, source string){
				"sqlite": func(t *testing.T) (string, string, string) {
					p := filepath.Join(t.TempDir(), "skep.db")
					return p, "sqlite", p
				},
				"postgres": func(t *testing.T) (string, string, string) {
					d := pgtest.DSN(t)
					return d, "pgx", d
				},
			} {
				t.Run(engine, func(t *testing.T) {
					dsn, driver, source := dsn(t)
					s, err := Open(t.Context(), dsn, Options{})
					if err != nil {
						t.Fatal(err)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					db, err := sql.Open(driver, source)
					if err != nil {
						t.Fatal(err)
					}
					for _, q := range tc.change {
						if _, err := db.ExecContext(t.Context(), q); err != nil {
							t.Fatal(err)
						}
					}
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
					for range 2 { // a refusal changes nothing
						s, err := Open(t.Context(), dsn, Options{})
						if err == nil {
							err = s.Close()
						}
						if (err == nil) != (tc.want == 0) || err != nil && skep.KindOf(err) != tc.want {
							t.Errorf("got %v, want kind %v", err, tc.want)
						}
					}
				})
			}
		})
	}
}

func TestSchemaDigestLeavesOutComments(t *testing.T) {
	if schemaDigest("CREATE TABLE a ( -- what\n\tb  INTEGER\n);") != schemaDigest("-- told\nCREATE TABLE a (\nb INTEGER );") {
		t.Error("comments or blanks count")
	}
	if schemaDigest("CREATE TABLE a (b INTEGER);") == schemaDigest("CREATE TABLE a (b TEXT);") {
		t.Error("another table has the same digest")
	}
}
