package scheduler

// EndWaits answers every waiting poll with nothing, so that bots ask anew: the
// rules have changed. A poll that just gets work keeps it. decisions.md 16.
func (s *Scheduler) EndWaits() {
	qs := s.queues
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for _, w := range qs.bots {
		if !w.gone && !w.matching && !w.heir {
			w.reply <- Command{}
			qs.end(w)
		}
	}
}
