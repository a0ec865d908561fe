package scheduler

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/store"
)

// queues knows which demands exist, in which of them a task may wait, and
// which polls of this process wait for which of them.
type queues struct {
	mu   sync.Mutex
	all  map[skep.QueueID]*queue
	bots map[skep.BotID]*waiter // the one waiting poll of each bot
	once map[*waiter]bool       // those of them that cannot wait
	wake chan struct{}

	closed  bool          // no poll waits any more
	changes atomic.Uint64 // see Scheduler.Changes; from 1
}

type queue struct {
	store.Queue
	fill    uint64    // counts the times a task may have come in; 0 = surely empty
	waiters []*waiter // in order of arrival; those gone are skipped
}

// waiter is one poll that waits for work.
type waiter struct {
	ctx   context.Context
	bot   *skep.Bot
	key   string
	once  bool // answer after one look
	ill   bool // it gets no new work
	end   bool // but it may be told to end
	reply chan Command

	changes uint64 // those that its poll knows of; 0 = all

	unnoted *skep.Bot // the bot, unless it is noted that it is idle; of its poll alone

	// guarded by queues.mu
	gone     bool // answered or given up
	matching bool // a claim for it is under way
	heir     bool // a claim for an earlier sending of it is under way
	leaving  bool // it does not go on waiting after that claim
}

// serves reports whether w may get a task of q. Only terminations ask for
// nothing but an id.
func (w *waiter) serves(q *queue) bool {
	if w.ill && !(w.end && len(q.Dimensions) == 1 && q.Dimensions[0].Key == "id") {
		return false
	}
	return q.Dimensions.Match(w.bot.Dimensions)
}

func newQueues() *queues {
	qs := &queues{all: map[skep.QueueID]*queue{}, bots: map[skep.BotID]*waiter{}, once: map[*waiter]bool{}, wake: make(chan struct{}, 1)}
	qs.changes.Store(1)
	return qs
}

func (qs *queues) kick() {
	select {
	case qs.wake <- struct{}{}:
	default:
	}
}

// add makes a queue known; polls that wait already may serve it.
func (qs *queues) add(q store.Queue) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if have := qs.all[q.ID]; have != nil {
		if q.Expires.After(have.Expires) {
			have.Expires = q.Expires
		}
		return
	}
	n := &queue{Queue: q}
	qs.all[q.ID] = n
	for _, w := range qs.bots {
		if !w.gone && w.serves(n) {
			n.waiters = append(n.waiters, w)
		}
	}
}

// knows reports whether a queue is registered until at least t.
func (qs *queues) knows(id skep.QueueID, t time.Time) bool {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.all[id]
	return q != nil && !q.Expires.Before(t)
}

// has reports whether a queue is known.
func (qs *queues) has(id skep.QueueID) bool {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	return qs.all[id] != nil
}

// filled notes that a task may wait in a queue.
func (qs *queues) filled(id skep.QueueID) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q := qs.all[id]; q != nil {
		q.fill++
		if len(q.waiters) > 0 {
			qs.kick()
		}
	}
}

// forget drops the queues that no task used for long and no poll serves.
func (qs *queues) forget(now time.Time) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for id, q := range qs.all {
		if q.waiters = compact(q.waiters); q.Expires.Before(now) && len(q.waiters) == 0 {
			delete(qs.all, id)
		}
	}
}

// waits reports whether a poll of the bot with this key waits here already.
func (qs *queues) waits(bot skep.BotID, key string) bool {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	w := qs.bots[bot]
	return w != nil && w.key == key
}

// enter starts the wait of w and ends that of an earlier poll of its bot.
// work tells whether a look is worth it.
func (qs *queues) enter(w *waiter) (work bool) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if old := qs.bots[w.bot.ID]; old != nil && !old.gone {
		old.gone = true
		w.heir = (old.matching || old.heir) && w.key != "" && w.key == old.key
		if !old.matching {
			old.reply <- Command{}
		}
	}
	for _, q := range qs.all {
		if w.serves(q) {
			q.waiters = append(q.waiters, w)
			work = work || q.fill > 0
		}
	}
	qs.bots[w.bot.ID] = w
	if w.once {
		qs.once[w] = true
	}
	if work {
		qs.kick()
	}
	if qs.closed || !w.once && w.changes != 0 && w.changes != qs.changes.Load() {
		qs.dismiss(w)
	}
	return work
}

// dismiss has w not wait any more: it is answered with nothing, or as a claim
// that is under way for it ends.
func (qs *queues) dismiss(w *waiter) {
	switch {
	case w.gone:
	case w.matching || w.heir:
		w.leaving = true
	default:
		w.reply <- Command{}
		qs.end(w)
	}
}

// leave ends the wait of w. While a claim for it is under way it stays for
// that, and its reply comes then.
func (qs *queues) leave(w *waiter) (left bool) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if w.matching || w.heir {
		w.leaving = true
		return false
	}
	qs.end(w)
	return true
}

func (qs *queues) end(w *waiter) {
	w.gone = true
	delete(qs.once, w)
	if qs.bots[w.bot.ID] == w {
		delete(qs.bots, w.bot.ID)
	}
}

// round is one look at the queues: the polls that may get work and where.
type round struct {
	queues  []roundQueue
	waiters []*waiter
}

type roundQueue struct {
	id      skep.QueueID
	fill    uint64
	waiters []*waiter
}

// maxRound bounds the polls of one queue that one round serves.
const maxRound = 64

// begin draws the polls for which a task may wait and marks them as being
// matched.
func (qs *queues) begin() round {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	var r round
	drawn := map[*waiter]bool{}
	for id, q := range qs.all {
		q.waiters = compact(q.waiters)
		if q.fill == 0 || len(q.waiters) == 0 {
			continue
		}
		rq := roundQueue{id: id, fill: q.fill}
		for _, w := range q.waiters {
			if w.gone || (w.matching && !drawn[w]) {
				continue
			}
			rq.waiters = append(rq.waiters, w)
			if !drawn[w] {
				drawn[w] = true
				w.matching = true
				r.waiters = append(r.waiters, w)
			}
			if len(rq.waiters) == maxRound {
				break
			}
		}
		if len(rq.waiters) > 0 {
			r.queues = append(r.queues, rq)
		}
	}
	return r
}

// direct begins a round for the one poll that can have a task which is about to
// come into queue id in the commit that takes it in: it waits, and as far as
// is known here no other task does, for it or in the queue. The round is empty
// when there is no such poll.
func (qs *queues) direct(id skep.QueueID) round {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	q := qs.all[id]
	if q == nil || q.fill > 0 {
		return round{}
	}
	q.waiters = compact(q.waiters)
	for _, w := range q.waiters {
		if w.gone || w.matching || w.once || w.heir || qs.hopes(w) {
			continue
		}
		w.matching = true
		ws := []*waiter{w}
		return round{queues: []roundQueue{{id: id, waiters: ws}}, waiters: ws}
	}
	return round{}
}

// hopes reports whether a task may wait for w already.
func (qs *queues) hopes(w *waiter) bool {
	for _, q := range qs.all {
		if q.fill > 0 && w.serves(q) {
			return true
		}
	}
	return false
}

// compact drops polls that are gone, once they are the larger part or the
// list is short.
func compact(ws []*waiter) []*waiter {
	gone := 0
	for _, w := range ws {
		if !w.gone {
			break
		}
		gone++
	}
	ws = ws[gone:]
	if len(ws) > 2*maxRound {
		return ws
	}
	kept := ws[:0:0]
	for _, w := range ws {
		if !w.gone {
			kept = append(kept, w)
		}
	}
	return kept
}

// finish ends a round: emptied queues are remembered as empty unless filled
// since, matched polls are answered, the others go on waiting.
func (qs *queues) finish(r round, emptied []roundQueue, claims map[*waiter]Command, err error) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	for _, rq := range emptied {
		if q := qs.all[rq.id]; q != nil && q.fill == rq.fill {
			q.fill = 0
		}
	}
	again := false
	for _, w := range r.waiters {
		w.matching = false
		cmd, claimed := claims[w]
		switch {
		case err != nil:
			cmd.Err = err
		case !claimed && !w.once && !w.gone && !w.leaving && !qs.closed:
			again = true
			continue
		}
		w.reply <- cmd
		if now := qs.bots[w.bot.ID]; now != nil && now != w && now.heir {
			now.heir = false
			if claimed || err != nil || now.once || now.leaving {
				now.reply <- cmd
				qs.end(now)
			}
		}
		qs.end(w)
	}
	qs.endOnce()
	if again || len(claims) > 0 {
		for _, q := range qs.all {
			if q.fill > 0 && len(q.waiters) > 0 {
				qs.kick()
				break
			}
		}
	}
}

// endOnce answers the polls that cannot wait and have no queue left to look
// into: a round draws only the first polls of each queue, and it may have
// emptied the queue that others were to look at.
func (qs *queues) endOnce() {
	if len(qs.once) == 0 {
		return
	}
	hope := map[*waiter]bool{}
	for _, q := range qs.all {
		if q.fill > 0 {
			for _, w := range q.waiters {
				hope[w] = true
			}
		}
	}
	for w := range qs.once {
		if w.gone {
			delete(qs.once, w)
		} else if !w.matching && !w.heir && !hope[w] {
			w.reply <- Command{}
			qs.end(w)
		}
	}
}

// drop ends the wait of a bot that is known not to listen any more.
func (qs *queues) drop(bot skep.BotID) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if w := qs.bots[bot]; w != nil && !w.gone {
		w.gone = true
		delete(qs.bots, bot)
		if !w.matching {
			w.reply <- Command{}
		}
	}
}

// rouse is drop for a bot that goes on: a claim under way keeps its poll.
func (qs *queues) rouse(bot skep.BotID) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if w := qs.bots[bot]; w != nil {
		qs.dismiss(w)
	}
}

// close answers all waits, those to come too, with nothing.
func (qs *queues) close() {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	qs.closed = true
	for _, w := range qs.bots {
		qs.dismiss(w)
	}
}
