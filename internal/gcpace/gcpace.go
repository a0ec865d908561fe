// Package gcpace fits the garbage collection of a server to its size: a small
// one collects seldom, a large one often, and one that has come to rest gives
// its memory back.
package gcpace

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Percentages between which the pace moves. The lowest bounds what the
// collector of a large program costs, and so how much garbage it keeps.
const (
	minPercent = 12
	maxPercent = 1000
)

// A process rests when it has allocated less than this for calmLooks times
// calmLook.
const (
	calmBytes = 2 << 20
	calmLook  = time.Second
	calmLooks = 2
)

// Run lets the heap of this process grow to about target bytes before it is
// collected, and when more than that is in use, by an eighth: after each
// collection it sets the percentage of the next one (GOGC) anew. When the
// process comes to rest, memory goes back to the system. Run ends with ctx;
// where the user has set GOGC, that holds and it ends at once.
func Run(ctx context.Context, target uint64) {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := &pacer{ctx: ctx, target: target}
	p.set()
	p.arm()
	p.rest()
}

type pacer struct {
	ctx     context.Context
	target  uint64
	percent int
}

// arm calls set after the next collection: then the object has no owner left.
func (p *pacer) arm() {
	type collected struct{ _ [16]byte }
	runtime.SetFinalizer(&collected{}, func(*collected) {
		if p.ctx.Err() == nil {
			p.set()
			p.arm()
		}
	})
}

func (p *pacer) set() {
	// What GOGC is a percentage of.
	live := read("/gc/heap/live:bytes", "/gc/scan/stack:bytes", "/gc/scan/globals:bytes")
	percent := percentOf(live, p.target)
	if percent*10 > p.percent*11 || percent*11 < p.percent*10 { // setting it stops the world for a moment
		debug.SetGCPercent(percent)
		p.percent = percent
	}
}

// percentOf returns what makes live bytes grow to target.
func percentOf(live, target uint64) int {
	if live >= target {
		return minPercent
	}
	return int(min(max((target-live)*100/max(live, 1), minPercent), maxPercent))
}

// rest gives memory back each time the process has come to rest.
func (p *pacer) rest() {
	tick := time.NewTicker(calmLook)
	defer tick.Stop()
	before, since, calm := uint64(0), uint64(0), 0
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
		now := read("/gc/heap/allocs:bytes")
		allocated := now - before
		before = now
		if since += allocated; allocated > calmBytes {
			calm = 0
			continue
		}
		if calm++; calm >= calmLooks && since > 8*calmBytes {
			debug.FreeOSMemory()
			since = 0
		}
	}
}

// read returns the sum of metrics of the runtime.
func read(names ...string) (sum uint64) {
	samples := make([]metrics.Sample, len(names))
	for i, name := range names {
		samples[i].Name = name
	}
	metrics.Read(samples)
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			sum += s.Value.Uint64()
		}
	}
	return sum
}
