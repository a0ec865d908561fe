package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// News is a hint to the other processes that share a database: look here, and
// do not wait for your next look at everything. It may be lost, come twice, or
// before what it tells of can be read.
type News struct {
	Topic Topic
	Key   string
}

// Topic says what a Key is of.
type Topic string

// The topics.
const (
	NewsQueue   Topic = "queue"   // a task came into this queue; Key is its number
	NewsBot     Topic = "bot"     // a bot came, died or ended
	NewsDeleted Topic = "deleted" // a bot was deleted
	NewsMachine Topic = "machine" // a machine or a pool of them is to be looked at; Key is its reconciler's
	newsLost    Topic = "lost"    // there was more than can be told, or could not be told
)

// Bounds of what is told: the processes are few, and what they would be told
// one by one they can as well look for.
const (
	newsPace    = 10 * time.Millisecond // between two messages of a process
	newsAtOnce  = 10_000                // hints that wait to be told
	newsMessage = 7000                  // bytes; PostgreSQL takes 8000
	newsKey     = 1000                  // bytes of a Key: six times as many at most, escaped, fit into a message
)

// teller tells other processes of news, many in one message.
type teller struct {
	from    string // names this process
	channel string
	pool    *pgxpool.Pool

	mu   sync.Mutex
	news map[News]bool
	more chan struct{} // holds one: news is not empty
	stop chan struct{}
	done chan struct{}
}

// newsChannel is the name under which processes with this schema hear of each
// other: names of channels are the whole database's.
func newsChannel(ctx context.Context, pool *pgxpool.Pool) (string, error) {
	var schema *string
	if err := pool.QueryRow(ctx, "SELECT current_schema()").Scan(&schema); err != nil {
		return "", fmt.Errorf("read the schema's name: %w", err)
	}
	if schema == nil {
		return "", errors.New("the search_path names no schema that exists")
	}
	sum := sha256.Sum256([]byte(*schema))
	return "skep_" + hex.EncodeToString(sum[:8]), nil
}

func (s *Store) startTeller(ctx context.Context) error {
	channel, err := newsChannel(ctx, s.pgPool)
	if err != nil {
		return err
	}
	s.teller = newTeller(channel, s.pgPool)
	go s.teller.run()
	return nil
}

func newTeller(channel string, pool *pgxpool.Pool) *teller {
	return &teller{
		from: rand.Text(), channel: channel, pool: pool, news: map[News]bool{}, more: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
}

// Tell gives other processes on this database a hint, soon. It does not wait,
// and does nothing on SQLite, which has one process.
func (s *Store) Tell(n News) {
	t := s.teller
	if t == nil {
		return
	}
	t.mu.Lock()
	if len(t.news) < newsAtOnce && len(n.Key) <= newsKey {
		t.news[n] = true
	} else {
		t.news[News{Topic: newsLost}] = true
	}
	t.mu.Unlock()
	t.wake()
}

func (t *teller) wake() {
	select {
	case t.more <- struct{}{}:
	default:
	}
}

func (t *teller) run() {
	defer close(t.done)
	pace := time.NewTimer(0)
	defer pace.Stop()
	pause := newsPace
	for {
		select {
		case <-t.stop:
			_ = t.send() // what happened last is worth the most
			return
		case <-t.more:
		}
		if t.send() == nil {
			pause = newsPace
		} else {
			t.lose()
			pause = min(max(2*pause, newsAgain), newsAway)
		}
		pace.Reset(pause)
		select {
		case <-t.stop:
		case <-pace.C:
		}
	}
}

func (t *teller) close() {
	close(t.stop)
	<-t.done
}

// lose has the others told, as soon as that is possible, that they missed
// something.
func (t *teller) lose() {
	t.mu.Lock()
	t.news[News{Topic: newsLost}] = true
	t.mu.Unlock()
	t.wake()
}

// send tells what there is to tell. When something is lost, the others look at
// everything, and there is nothing else to tell them.
func (t *teller) send() error {
	t.mu.Lock()
	news := t.news
	t.news = map[News]bool{}
	t.mu.Unlock()
	if lost := (News{Topic: newsLost}); news[lost] {
		news = map[News]bool{lost: true}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var items []json.RawMessage
	size := 0
	for n := range news {
		item, err := json.Marshal([2]string{string(n.Topic), n.Key})
		if err != nil {
			return err
		}
		if size > 0 && size+len(item) > newsMessage {
			if err := t.tell(ctx, items); err != nil {
				return err
			}
			items, size = nil, 0
		}
		items, size = append(items, item), size+len(item)+1
	}
	if len(items) == 0 {
		return nil
	}
	return t.tell(ctx, items)
}

// tell sends one message. Nothing is lost with a hint: nobody waits for the
// disk.
func (t *teller) tell(ctx context.Context, items []json.RawMessage) error {
	text, err := json.Marshal(message{From: t.from, News: items})
	if err != nil {
		return err
	}
	_, err = t.pool.Exec(ctx, "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)", t.channel, string(text))
	return err
}

// message is what one notification carries.
type message struct {
	From string            `json:"from"`
	News []json.RawMessage `json:"news"` // each [topic, key]
}

// newsAgain, growing to newsAway, is how often who listens is told to look for
// itself, and who tells tries again, while there is no connection, and newsAlive how often a silent one is
// tried.
const (
	newsAgain = 100 * time.Millisecond
	newsAway  = 5 * time.Second
	newsAlive = 20 * time.Second
)

// Listen calls hear for each hint of another process on this database, until
// ctx ends. It calls missed when hints may have been lost: with nil when it
// hears again, and with the cause now and then while it does not. On SQLite
// there is nothing to hear.
func (s *Store) Listen(ctx context.Context, hear func(News), missed func(error)) error {
	if s.teller == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	pause := newsAgain
	for {
		err := s.listen(ctx, hear, func(err error) {
			pause = newsAgain
			missed(err)
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		missed(err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, newsAway)
	}
}

func (s *Store) listen(ctx context.Context, hear func(News), missed func(error)) error {
	conn, err := pgx.ConnectConfig(ctx, s.pgPool.Config().ConnConfig.Copy())
	if err != nil {
		return fmt.Errorf("connect: %w", redact(err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+s.teller.channel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	take := func(n *pgconn.Notification) (own bool) {
		var m message
		if err := json.Unmarshal([]byte(n.Payload), &m); err != nil || m.From == s.teller.from {
			return err == nil
		}
		for _, item := range m.News {
			var pair [2]string
			if err := json.Unmarshal(item, &pair); err != nil {
				continue
			}
			if Topic(pair[0]) == newsLost {
				missed(nil)
			} else {
				hear(News{Topic(pair[0]), pair[1]})
			}
		}
		return false
	}
	if err := s.echo(ctx, conn, take); err != nil {
		return err
	}
	missed(nil)
	for {
		wait, cancel := context.WithTimeout(ctx, newsAlive)
		n, err := conn.WaitForNotification(wait)
		quiet := wait.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && quiet && !conn.IsClosed() {
			if err = conn.Ping(ctx); err == nil {
				continue
			}
		}
		if err != nil {
			return fmt.Errorf("wait for news: %w", err)
		}
		take(n)
	}
}

// echo makes sure that what is told is heard: behind a pooler that hands
// connections from one client to another, LISTEN succeeds and nothing comes.
func (s *Store) echo(ctx context.Context, conn *pgx.Conn, take func(*pgconn.Notification) bool) error {
	ctx, cancel := context.WithTimeout(ctx, newsAway)
	defer cancel()
	if err := s.teller.tell(ctx, nil); err != nil {
		return fmt.Errorf("tell: %w", err)
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return fmt.Errorf("this process does not hear itself, as behind a pooler in transaction mode: %w", err)
		}
		if take(n) {
			return nil
		}
	}
}
