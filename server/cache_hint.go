package server

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/skepdev/skep"
)

// cacheHints tells how large a named cache will be, from what the bots of a
// pool report of theirs, so that a bot can make room first.
// spec scheduler.md §17.
type cacheHints struct {
	mu      sync.Mutex
	sizes   map[hintKey]float64 // bytes
	read    time.Time
	reading bool
}

type hintKey struct{ pool, cache, os string }

const (
	hintEvery  = 10 * time.Minute // how stale sizes may be
	hintLife   = 8 * 24 * time.Hour
	hintSmooth = 0.154  // weight of a new size
	hintJump   = 0.10   // a size that differs by more is taken at once
	maxHints   = 20_000 // keys
	maxSamples = 1000   // of one key; more bots say nothing new
	maxOfBot   = 100    // caches that one bot may speak of; it keeps 50 at most

	// A bot makes room for what it is told, so that one bot that lies must not
	// empty the caches of the others: beyond hintAlone bytes a size is at most
	// hintSpread times what half of the bots have.
	hintAlone  = 1 << 30
	hintSpread = 4
)

// hinter returns the hints for a task of pool on bot b.
func (s *Server) hinter(ctx context.Context, pool string, b *skep.Bot) func(cache string) int64 {
	h := &s.hints
	h.mu.Lock()
	first := h.read.IsZero()
	stale := !h.reading && (first || s.o.Now().Sub(h.read) > hintEvery)
	if stale {
		h.reading = true
	}
	h.mu.Unlock()
	if stale && first {
		s.readHints(ctx)
	} else if stale {
		go s.readHints(context.WithoutCancel(ctx))
	}
	os := osFamily(b.Dimensions["os"])
	return func(cache string) int64 { return h.size(pool, cache, os) }
}

// size returns the hint for a cache, that of the largest in another family of
// systems when this one has none, and -1 when nobody has it.
func (h *cacheHints) size(pool, cache, os string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v, ok := h.sizes[hintKey{pool, cache, os}]; ok {
		return int64(v)
	}
	best := -1.0
	for _, os := range append([]string{"Unknown"}, osFamilies...) {
		if v, ok := h.sizes[hintKey{pool, cache, os}]; ok {
			best = max(best, v)
		}
	}
	return int64(best)
}

// readHints looks at all bots.
func (s *Server) readHints(ctx context.Context) {
	samples := map[hintKey][]int64{}
	now := s.o.Now()
	err := s.each(ctx, "", func(b *skep.Bot) bool {
		if now.Sub(b.LastSeen) > hintLife {
			return true
		}
		os := osFamily(b.Dimensions["os"])
		caches := namedCaches(b.State)
		if len(caches) > maxOfBot {
			return true
		}
		for cache, size := range caches {
			for _, pool := range b.Dimensions["pool"] {
				k := hintKey{pool, cache, os}
				if list, known := samples[k]; len(list) < maxSamples && (known || len(samples) < maxHints) {
					samples[k] = append(list, size)
				}
			}
		}
		return true
	})
	h := &s.hints
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reading = false
	if err != nil {
		if !quiet(err) {
			s.log.WarnContext(ctx, "sizes of named caches are not known", "err", err)
		}
		return
	}
	h.read = now
	h.learn(samples)
}

// learn replaces the sizes by those of samples, smoothed.
func (h *cacheHints) learn(samples map[hintKey][]int64) {
	sizes := make(map[hintKey]float64, len(samples))
	for k, list := range samples {
		slices.Sort(list)
		size := float64(list[(len(list)*95+99)/100-1]) // 95th percentile
		sure := float64(hintAlone)
		if len(list) > 1 {
			sure = max(sure, hintSpread*float64(list[(len(list)-1)/2]))
		}
		size = min(size, sure)
		if old, ok := h.sizes[k]; ok && abs(size-old) <= hintJump*old {
			size = old + hintSmooth*(size-old)
		}
		sizes[k] = size
	}
	h.sizes = sizes
}

func abs(x float64) float64 { return max(x, -x) }

// namedCaches reads the sizes in bytes of the caches in a bot's state,
// "named_caches": {NAME: [[DIRECTORY, SIZE], TIME]}. spec bot.md §7.
func namedCaches(state json.RawMessage) map[string]int64 {
	var st struct {
		NamedCaches map[string]json.RawMessage `json:"named_caches"`
	}
	if json.Unmarshal(state, &st) != nil {
		return nil
	}
	out := make(map[string]int64, len(st.NamedCaches))
	for name, raw := range st.NamedCaches {
		var pair, entry []json.RawMessage
		var size float64
		if len(name) <= 128 && json.Unmarshal(raw, &pair) == nil && len(pair) > 0 && json.Unmarshal(pair[0], &entry) == nil && len(entry) > 1 &&
			json.Unmarshal(entry[1], &size) == nil && size >= 0 && size < 1<<60 {
			out[name] = int64(size)
		}
	}
	return out
}

var osFamilies = []string{"Windows", "Mac", "Android", "Linux"}

// osFamily returns the family of systems that values of the dimension os name:
// one of osFamilies, or else "Unknown".
func osFamily(values []string) string {
	for _, f := range osFamilies {
		if slices.Contains(values, f) {
			return f
		}
	}
	return "Unknown"
}
