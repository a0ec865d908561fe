package scheduler

import (
	"context"
	"strconv"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// tell gives other processes on this database a hint.
func (s *Scheduler) tell(topic store.Topic, key string) {
	s.store.Tell(store.News{Topic: topic, Key: key})
}

// happened tells whoever watches, here and elsewhere, that a bot came, died or
// ended.
func (s *Scheduler) happened(bot skep.BotID) {
	s.o.Watch(bot)
	s.tell(store.NewsBot, string(bot))
}

// deleted forgets what is kept here of a bot.
func (s *Scheduler) deleted(bot skep.BotID) {
	s.fleet.drop(bot)
	s.Wake(bot) // one that is alive comes back at once
	s.o.Watch(bot)
}

// Heard takes a hint of another process on this database: a poll that waits
// here may have work, and who watches bots is told. A hint that is lost is made
// good by the next look at everything.
func (s *Scheduler) Heard(ctx context.Context, n store.News) {
	switch n.Topic {
	case store.NewsBot:
		s.o.Watch(skep.BotID(n.Key))
	case store.NewsDeleted:
		s.deleted(skep.BotID(n.Key))
	case store.NewsQueue:
		if s.o.NoPolls {
			return
		}
		key, err := strconv.ParseInt(n.Key, 10, 64)
		if err != nil {
			return
		}
		id := skep.QueueID(key)
		if !s.queues.has(id) {
			q, found, err := s.store.Queue(ctx, id)
			if err != nil || !found {
				return
			}
			s.queues.add(q)
		}
		s.queues.filled(id)
	case store.NewsMachine:
	}
}
