package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/skepdev/skep"
)

// Order is one thing that an operator told a bot.
type Order struct {
	Reason string    `json:"reason,omitempty"` // for people
	By     string    `json:"by"`               // identity
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // of a drain: what runs then is stopped; zero = the task's own limits
}

// Orders are what holds for one bot, whatever it says of itself.
type Orders struct {
	Bot        skep.BotID `json:"-"`
	Drain      *Order     `json:"drain,omitempty"`      // takes no new work
	Quarantine *Order     `json:"quarantine,omitempty"` // is ill for an operator
}

// None reports whether nothing was told.
func (o *Orders) None() bool { return o.Drain == nil && o.Quarantine == nil }

// Orders returns the bots that were told something, by id.
func (r reads) Orders(ctx context.Context) ([]*Orders, error) {
	rows, err := r.q.query(ctx, `SELECT bot, orders FROM bot_orders ORDER BY bot`)
	if err != nil {
		return nil, fmt.Errorf("read orders of bots: %w", err)
	}
	defer rows.Close()
	var out []*Orders
	for rows.Next() {
		o := &Orders{}
		var text string
		if err := rows.Scan(&o.Bot, &text); err != nil {
			return nil, fmt.Errorf("read orders of bots: %w", err)
		}
		if err := json.Unmarshal([]byte(text), o); err != nil {
			return nil, fmt.Errorf("stored orders of bot %s: %w", o.Bot, err)
		}
		out = append(out, o)
	}
	return out, rows.Err()
}

// LockOrders reads a bot's orders for changing them; without any they are
// empty. LockBot must have come before: it is what other servers wait for.
func (tx *Tx) LockOrders(bot skep.BotID) (*Orders, error) {
	o := &Orders{Bot: bot}
	var text string
	found, err := tx.q.row(tx.ctx, `SELECT orders FROM bot_orders WHERE bot = $1`, []any{bot}, &text)
	if tx.note(err) != nil {
		return nil, fmt.Errorf("read orders of bot %s: %w", bot, err)
	}
	if found {
		if err := json.Unmarshal([]byte(text), o); err != nil {
			return nil, fmt.Errorf("stored orders of bot %s: %w", bot, err)
		}
	}
	return o, nil
}

// OthersOrders returns a bot's orders where another server may have taken one
// that this one has not read yet; nil elsewhere. LockBot must have come before.
func (tx *Tx) OthersOrders(bot skep.BotID) (*Orders, error) {
	if tx.d == sqlite {
		return nil, nil //nolint:nilnil // there is no other server
	}
	return tx.LockOrders(bot)
}

// SaveOrders writes a bot's orders; none deletes them.
func (tx *Tx) SaveOrders(o *Orders) error {
	if o.None() {
		return tx.write(`DELETE FROM bot_orders WHERE bot = $1`, o.Bot)
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	err = tx.write(`INSERT INTO bot_orders (bot, orders) VALUES ($1, $2) ON CONFLICT (bot) DO UPDATE SET orders = excluded.orders`, o.Bot, string(text))
	if err != nil {
		return fmt.Errorf("store orders of bot %s: %w", o.Bot, err)
	}
	return nil
}

// Once notes a call that may be repeated for life and reports whether it is
// the first one with this key of this caller.
func (tx *Tx) Once(caller, key string, life time.Duration) (first bool, err error) {
	n, err := tx.exec(`INSERT INTO request_uuids (caller, uuid, task, expires_us) VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING`,
		caller, key, micros(tx.Now.Add(life)))
	if err != nil {
		return false, fmt.Errorf("store key of a call: %w", err)
	}
	return n > 0, nil
}
