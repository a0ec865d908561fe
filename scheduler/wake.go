package scheduler

import "github.com/skepdev/skep"

// EndWaits answers every waiting poll with nothing, so that bots ask anew: the
// rules have changed. A poll that just gets work keeps it. decisions.md 16.
func (s *Scheduler) EndWaits() {
	qs := s.queues
	qs.changes.Add(1) // for the polls on their way, then those that wait
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for _, w := range qs.bots {
		qs.dismiss(w)
	}
}

// Wake ends the wait of a bot's poll with nothing: something that concerns the
// bot changed, and it is to ask again. A poll that just gets work keeps it.
func (s *Scheduler) Wake(bot skep.BotID) {
	s.queues.changes.Add(1)
	s.queues.rouse(bot)
}

// Changes counts the calls of EndWaits and Wake. Who reads it before what a
// poll is due to, and hands it over as Poll.Changes, does not wait with what
// has changed since.
func (s *Scheduler) Changes() uint64 { return s.queues.changes.Load() }
