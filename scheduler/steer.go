package scheduler

import (
	"context"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// Steer changes what an operator told a bot, and shows it on the bot's record
// at once. edit may run twice. A bot that nobody knows is a NotFound error,
// unless it was told something before.
func (s *Scheduler) Steer(ctx context.Context, bot skep.BotID, note string, edit func(*store.Orders, time.Time)) (*store.Orders, error) {
	var o *store.Orders
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		b, missing := tx.LockBot(bot)
		if missing != nil && skep.KindOf(missing) != skep.NotFound {
			return missing
		}
		var err error
		if o, err = tx.LockOrders(bot); err != nil {
			return err
		}
		if b == nil && o.None() {
			return missing
		}
		before := *o
		edit(o, tx.Now)
		if err := tx.SaveOrders(o); err != nil || b == nil {
			return err
		}
		show(b, &before, o)
		if err := tx.SaveBot(b); err != nil {
			return err
		}
		return tx.AddEvent(bot, skep.EventLog, note, 0)
	})
	if err != nil {
		return nil, err
	}
	s.queues.rouse(bot)
	return o, nil
}

// show puts orders on a bot's record: what it says of itself comes back with
// its next poll.
func show(b *skep.Bot, before, now *store.Orders) {
	if before.Drain != nil && b.Maintenance == DrainText(before.Drain) {
		b.Maintenance = ""
	}
	if before.Quarantine != nil && b.Quarantined == QuarantineText(before.Quarantine) {
		b.Quarantined = ""
	}
	Obey(b, now)
}

// Obey makes what a bot says of itself heed its orders; nil are none.
func Obey(b *skep.Bot, o *store.Orders) {
	if o == nil {
		return
	}
	if o.Drain != nil {
		b.Maintenance = DrainText(o.Drain)
	}
	if o.Quarantine != nil {
		b.Quarantined = QuarantineText(o.Quarantine)
	}
}

// DrainText is what a drained bot's maintenance says.
func DrainText(o *store.Order) string { return orderText("drained", o) }

// QuarantineText is what a bot's quarantine by an operator says.
func QuarantineText(o *store.Order) string { return orderText("quarantined", o) }

func orderText(verb string, o *store.Order) string {
	text := verb + " by " + o.By
	if o.Reason != "" {
		text += ": " + o.Reason
	}
	return text
}
