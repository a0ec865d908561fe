package scheduler

import (
	"crypto/sha256"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// fleet is what this process remembers of the bots: which exist, for telling
// whether a slice could ever run, and when each was last heard of, so that not
// every contact is a write.
type fleet struct {
	mu      sync.Mutex
	bots    map[skep.BotID]*member
	sources map[Source]skep.BotID
	values  map[string][]string // equal values of all bots are kept once
	upSince time.Time
}

type member struct {
	dimensions skep.Dimensions
	key        int64     // names dimensions, see skep.Bot
	source     Source    // text that dimensions were read from; zero = not known
	seen       time.Time // last contact with this process
	written    time.Time // last contact that the store knows
}

// Source is the digest of the text that a bot sent as its dimensions.
type Source [16]byte

// SourceOf returns the digest of text.
func SourceOf(text []byte) Source {
	sum := sha256.Sum256(text)
	return Source(sum[:16])
}

// Dimensions returns what a bot's dimensions were when it last polled with a
// text of this digest. They are valid, and must not be changed.
func (s *Scheduler) Dimensions(source Source) (skep.Dimensions, bool) {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.bots[f.sources[source]]
	if m == nil || m.source != source {
		return nil, false
	}
	return m.dimensions, true
}

// DimensionsOf returns the dimensions of a bot if this process knows them by
// the key that they are stored with. They must not be changed.
func (s *Scheduler) DimensionsOf(bot skep.BotID, key int64) (skep.Dimensions, bool) {
	f := s.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.bots[bot]
	if m == nil || m.key != key {
		return nil, false
	}
	return m.dimensions, true
}

// read notes the text that a bot's dimensions, as they are stored, came from.
func (f *fleet) read(b *skep.Bot, source Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.bots[b.ID]
	if m == nil || m.source == source || m.key != b.DimensionsKey || source == (Source{}) {
		return
	}
	delete(f.sources, m.source)
	m.source = source
	f.sources[source] = b.ID
}

func newFleet() *fleet {
	return &fleet{bots: map[skep.BotID]*member{}, sources: map[Source]skep.BotID{}, values: map[string][]string{}}
}

func (f *fleet) setUpSince(t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.upSince = t
}

// served returns t, or since when the fleet has been served if that is later.
func (f *fleet) served(t time.Time) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.Before(f.upSince) {
		return f.upSince
	}
	return t
}

// put notes a bot as it is stored. Its dimensions become those that the fleet
// keeps: nobody changes them.
func (f *fleet) put(b *skep.Bot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.bots[b.ID]; m != nil && m.key == b.DimensionsKey {
		m.seen, m.written, b.Dimensions = b.LastSeen, b.LastSeen, m.dimensions
		return
	}
	if m := f.bots[b.ID]; m != nil {
		delete(f.sources, m.source)
	}
	b.Dimensions = f.share(b.Dimensions)
	f.bots[b.ID] = &member{dimensions: b.Dimensions, key: b.DimensionsKey, seen: b.LastSeen, written: b.LastSeen}
}

// same reports whether b says of itself what is stored, which is named by key;
// source is the text that it says it with. Then b gets that key, and its
// dimensions become those that the fleet keeps.
func (f *fleet) same(b *skep.Bot, key int64, source Source) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.bots[b.ID]
	if m == nil || m.key != key {
		return false
	}
	if (source == (Source{}) || m.source != source) && !m.dimensions.Equal(b.Dimensions) {
		return false
	}
	b.Dimensions, b.DimensionsKey = m.dimensions, key
	return true
}

// maxShared bounds the lists that are kept for sharing: some dimensions change
// all the time.
const maxShared = 1 << 16

// share replaces value lists by equal ones of other bots.
func (f *fleet) share(d skep.Dimensions) skep.Dimensions {
	if len(f.values) > maxShared {
		clear(f.values)
	}
	out := make(skep.Dimensions, len(d))
	for k, vs := range d {
		if k == "id" {
			out[k] = vs
			continue
		}
		key := k
		for _, v := range vs {
			key += "\x00" + v
		}
		if have, ok := f.values[key]; ok {
			vs = have
		} else {
			f.values[key] = vs
		}
		out[k] = vs
	}
	return out
}

func (f *fleet) drop(id skep.BotID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.bots[id]; m != nil {
		delete(f.sources, m.source)
	}
	delete(f.bots, id)
}

// keep drops the bots that are not known, unless heard of since t.
func (f *fleet) keep(known map[skep.BotID]bool, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.bots {
		if !known[id] && m.seen.Before(t) {
			delete(f.bots, id)
		}
	}
}

// heard notes a contact at now and reports whether the store should learn of
// it: at most every 20 s a bot. spec/scheduler.md §8.2.
func (f *fleet) heard(id skep.BotID, now time.Time) (write bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.bots[id]
	if m == nil {
		return true
	}
	m.seen = now
	return now.Sub(m.written) >= 20*time.Second
}

// unwritten returns the contacts that the store does not know and counts them
// as written.
func (f *fleet) unwritten() map[skep.BotID]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[skep.BotID]time.Time{}
	for id, m := range f.bots {
		if m.seen.After(m.written) {
			out[id] = m.seen
			m.written = m.seen
		}
	}
	return out
}

// canRun reports whether any known bot, dead ones included, meets cs.
func (f *fleet) canRun(cs skep.Constraints) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ids := cs.Get("id"); len(ids) > 0 {
		for _, id := range ids {
			if m := f.bots[skep.BotID(id)]; m != nil && cs.Match(m.dimensions) {
				return true
			}
		}
		return false
	}
	for _, m := range f.bots {
		if cs.Match(m.dimensions) {
			return true
		}
	}
	return false
}
