package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/skepdev/skep/internal/pgtest"
)

// ears are what a process hears of others.
type ears struct {
	news   chan News
	missed chan error
}

// listen opens a store and listens with it until the test ends.
func listen(t *testing.T, dsn string) (*Store, *ears) {
	t.Helper()
	s, err := Open(t.Context(), dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := &ears{news: make(chan News, 3*newsAtOnce), missed: make(chan error, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Listen(ctx, func(n News) { e.news <- n }, func(err error) { e.missed <- err }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Listen: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if s.Engine() == "postgres" {
		if err := <-e.missed; err != nil { // it listens
			t.Fatal(err)
		}
	}
	return s, e
}

// Processes on one schema hear each other, and neither themselves nor those of
// another schema.
func TestNews(t *testing.T) {
	dsn := pgtest.DSN(t)
	a, atA := listen(t, dsn)
	_, atB := listen(t, dsn)
	other, _ := listen(t, pgtest.DSN(t))

	other.Tell(News{NewsBot, "not ours"})
	odd := "a \"bot\"\n\x00" + strings.Repeat("é", 100)
	want := map[News]bool{{NewsBot, odd}: true}
	for i := range 2000 { // more than one message holds
		want[News{NewsQueue, fmt.Sprint(i)}] = true
	}
	for n := range want {
		a.Tell(n)
		a.Tell(n)
	}
	for len(want) > 0 {
		n := <-atB.news
		if !want[n] && n.Key == "not ours" {
			t.Fatalf("heard %v", n)
		}
		delete(want, n)
	}
	select {
	case n := <-atA.news:
		t.Errorf("it hears itself: %v", n)
	default:
	}
}

// What is told last, before a process ends, is heard.
func TestLastNews(t *testing.T) {
	dsn := pgtest.DSN(t)
	_, e := listen(t, dsn)
	s, err := Open(t.Context(), dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Tell(News{NewsBot, "b"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := <-e.news; n != (News{NewsBot, "b"}) {
		t.Errorf("heard %v", n)
	}
}

// More than can be told one by one is told as a whole.
func TestTooMuchNews(t *testing.T) {
	dsn := pgtest.DSN(t)
	_, e := listen(t, dsn)
	s, err := Open(t.Context(), dsn, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.teller.mu.Lock() // nothing is sent meanwhile
	for i := range newsAtOnce {
		s.teller.news[News{NewsBot, fmt.Sprint(i)}] = true
	}
	s.teller.mu.Unlock()
	s.Tell(News{NewsBot, "one more"})
	if err := <-e.missed; err != nil {
		t.Error(err)
	}
	s.Tell(News{NewsBot, strings.Repeat("\x00", newsKey+1)})
	if err := <-e.missed; err != nil {
		t.Error(err)
	}
	longest := News{NewsBot, strings.Repeat("\x00", newsKey)}
	s.Tell(longest)
	if n := <-e.news; n != longest {
		t.Errorf("of a long key it hears %q", n)
	}
	select {
	case n := <-e.news:
		t.Errorf("%v is told before it", n)
	default:
	}
}

// What could not be told is not forgotten: it is said that there was something.
func TestNewsThatFails(t *testing.T) {
	dsn := pgtest.DSN(t)
	s, e := listen(t, dsn)
	c := s.pgPool.Config()
	var tries atomic.Int64
	c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		if tries.Add(1) <= 3 {
			return errors.New("the network is away")
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	far := &Store{teller: newTeller(s.teller.channel, pool)}
	go far.teller.run()
	defer far.teller.close()
	far.Tell(News{NewsBot, "b"})
	if err := <-e.missed; err != nil {
		t.Error(err)
	}
	far.Tell(News{NewsBot, "c"})
	if n := <-e.news; n != (News{NewsBot, "c"}) {
		t.Errorf("heard %v", n)
	}
}

// Who lost the connection is told so, and hears again.
func TestListenAgain(t *testing.T) {
	dsn := pgtest.DSN(t)
	a, _ := listen(t, dsn)
	_, e := listen(t, dsn)
	_, err := a.pool.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = $1`, "LISTEN "+a.teller.channel)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-e.missed; err == nil {
		t.Error("nobody says that the connection is away")
	}
	if err := <-e.missed; err != nil {
		t.Error(err)
	}
	a.Tell(News{NewsBot, "b"})
	if n := <-e.news; n != (News{NewsBot, "b"}) {
		t.Errorf("heard %v", n)
	}
}

// On SQLite there is nobody to tell.
func TestNoNews(t *testing.T) {
	s, e := listen(t, t.TempDir()+"/skep.db")
	s.Tell(News{NewsBot, "b"})
	select {
	case n := <-e.news:
		t.Errorf("heard %v", n)
	case err := <-e.missed:
		t.Errorf("missed: %v", err)
	default:
	}
}
