// Package store keeps everything that must survive a restart, in SQLite or in
// PostgreSQL: one query text, two dialects.
//
// Reads are methods of Store and see what is committed. Every write goes
// through Update, which queues a function for the group commit: one
// transaction serves many callers, and each is answered after its own change
// is durable.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib" // and driver "pgx"
	_ "modernc.org/sqlite"           // driver "sqlite"

	"github.com/skepdev/skep"
)

// dialect holds the few words in which the engines differ.
type dialect struct {
	name       string // directory of its migrations
	skipLocked string // leaves rows to another server that is about to take them
	writers    int    // connections that write

	// insertSure inserts rows of which none can be there. SQLite keeps a journal
	// for each statement that could fail half way, and so is told that it cannot.
	insertSure string
}

var (
	sqlite   = dialect{name: "sqlite", writers: 1, insertSure: "INSERT OR IGNORE INTO "}
	postgres = dialect{
		name: "postgres", writers: 2, skipLocked: "FOR UPDATE OF t SKIP LOCKED", insertSure: "INSERT INTO ",
	}
)

// Store is an open database. All methods may be called at once by many.
type Store struct {
	reads

	dialect dialect
	pool    *sql.DB                                // readers; on PostgreSQL a view of pgPool
	wpool   *sql.DB                                // the writer's connection on SQLite; elsewhere the same as pool
	pgPool  *pgxpool.Pool                          // nil on SQLite
	connect func(context.Context) (session, error) // opens the writer's connection
	looks   looks
	tags    tagSets
	lock    *flock.Flock
	writers *writers
	teller  *teller // nil on SQLite
}

// Options of Open. Zero values mean the defaults given here.
type Options struct {
	Now func() time.Time // stamps of rows; default time.Now
}

// Open opens the database at dsn, "postgres://…" or the path of a SQLite file
// that is made when missing, and brings its schema up to date. A SQLite file
// belongs to one process: a second Open of it is a Conflict error.
func Open(ctx context.Context, dsn string, o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{}
	var err error
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		err = s.openPostgres(ctx, dsn)
	} else {
		err = s.openSQLite(dsn)
	}
	if err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	if s.pgPool != nil {
		s.reads = reads{q: pgReads{s.pgPool}}
	} else {
		s.reads = reads{q: newStatements(s.pool.PrepareContext)}
	}
	s.writers = &writers{open: s.connect, looks: &s.looks, tags: &s.tags, d: s.dialect, now: o.Now}
	if err := s.writers.start(ctx); err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	if s.pgPool != nil {
		if err := s.startTeller(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

func (s *Store) openPostgres(ctx context.Context, dsn string) error {
	s.dialect = postgres
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return fmt.Errorf("open PostgreSQL: %w", redact(err))
	}
	config.MaxConns = 8
	s.connect = func(ctx context.Context) (session, error) { return openPGSession(ctx, config.ConnConfig.Copy()) }
	if s.pgPool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return fmt.Errorf("open PostgreSQL: %w", redact(err))
	}
	s.pool = stdlib.OpenDBFromPool(s.pgPool)
	s.looks.bots, s.looks.life = map[skep.BotID]look{}, time.Second
	s.wpool = s.pool
	return nil
}

// redact keeps a connection string, which may hold a password, out of texts.
func redact(err error) error {
	if _, ok := errors.AsType[*url.Error](err); ok {
		return errors.New("the connection string does not parse")
	}
	return err
}

// sqlitePragmas make a commit survive a power cut (synchronous=full) while
// readers go on (WAL). They stand in the DSN because a PRAGMA sent through a
// pool reaches one connection only.
const sqlitePragmas = "_pragma=busy_timeout(5000)&_pragma=journal_mode(wal)&_pragma=foreign_keys(1)" +
	"&_pragma=synchronous(full)&_pragma=cache_size(-8192)&_pragma=wal_autocheckpoint(4000)"

func (s *Store) openSQLite(path string) error {
	s.dialect = sqlite
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if err := s.own(path); err != nil {
		return err
	}
	s.looks.bots = map[skep.BotID]look{}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + sqlitePragmas
	if s.wpool, err = sql.Open("sqlite", dsn); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s.wpool.SetMaxOpenConns(1)
	s.wpool.SetMaxIdleConns(0) // it is needed once, by migrate
	s.connect = func(context.Context) (session, error) { return openSQLiteSession(dsn) }
	if s.pool, err = sql.Open("sqlite", dsn+"&_pragma=query_only(1)"); err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	s.pool.SetMaxOpenConns(4)
	s.pool.SetMaxIdleConns(4)
	return nil
}

// own makes the file this process's alone.
func (s *Store) own(path string) error {
	lock := flock.New(path + ".lock")
	ok, err := lock.TryLock()
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if !ok {
		return skep.Errorf(skep.Conflict, "another process uses %s; stop it, or give this one another state directory", path)
	}
	s.lock = lock
	return nil
}

// Close ends the writer after the changes queued so far and closes the
// database.
func (s *Store) Close() error {
	s.writers.close()
	if s.teller != nil {
		s.teller.close()
	}
	var err error
	if st, ok := s.q.(*statements); ok {
		err = st.close()
	}
	return errors.Join(err, s.closePools())
}

func (s *Store) closePools() error {
	var errs []error
	if s.wpool != nil && s.wpool != s.pool {
		errs = append(errs, s.wpool.Close())
	}
	if s.pool != nil {
		errs = append(errs, s.pool.Close())
	}
	if s.pgPool != nil {
		s.pgPool.Close()
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.pool.PingContext(ctx) }

// Engine returns "sqlite" or "postgres".
func (s *Store) Engine() string { return s.dialect.name }

// Durability reads back from the engine the settings that make a commit
// survive a power cut, as name and value.
func (s *Store) Durability(ctx context.Context) (map[string]string, error) {
	names := map[string]string{"synchronous": "PRAGMA synchronous", "journal_mode": "PRAGMA journal_mode"}
	if s.dialect == postgres {
		names = map[string]string{"fsync": "SHOW fsync", "full_page_writes": "SHOW full_page_writes", "synchronous_commit": "SHOW synchronous_commit"}
	}
	out := map[string]string{}
	err := s.writers.do(ctx, func(tx *Tx) error {
		for name, query := range names {
			var v string
			if _, err := tx.q.row(tx.ctx, query, nil, &v); err != nil {
				return fmt.Errorf("read back %s: %w", name, err)
			}
			out[name] = v
		}
		return nil
	})
	if v, ok := out["synchronous"]; ok && v == "2" {
		out["synchronous"] = "FULL"
	}
	return out, err
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func instant(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
