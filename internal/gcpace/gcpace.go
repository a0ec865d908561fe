// Package gcpace lets a small program collect its garbage seldom and a large
// one often, instead of both when they have doubled.
package gcpace

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// Percentages between which the pace moves. The lowest bounds what the
// collector of a large program may cost.
const (
	minPercent = 30
	maxPercent = 1000
)

// Start keeps the garbage of this process at about slack bytes: after each
// collection it sets the percentage of the next one (GOGC) anew. It never
// ends; only the first call counts. Where the user has set GOGC, that holds.
func Start(slack uint64) {
	once.Do(func() {
		if os.Getenv("GOGC") != "" {
			return
		}
		p := &pacer{slack: slack}
		p.set()
		p.arm()
	})
}

var once sync.Once

type pacer struct {
	slack   uint64
	percent int
}

// arm calls set after the next collection: then the object has no owner left.
func (p *pacer) arm() {
	type collected struct{ _ [16]byte }
	runtime.SetFinalizer(&collected{}, func(*collected) {
		p.set()
		p.arm()
	})
}

func (p *pacer) set() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	if live[0].Value.Kind() != metrics.KindUint64 {
		return
	}
	percent := percentOf(live[0].Value.Uint64(), p.slack)
	if percent*10 > p.percent*11 || percent*11 < p.percent*10 { // setting it stops the world for a moment
		debug.SetGCPercent(percent)
		p.percent = percent
	}
}

// percentOf returns what makes live bytes grow by slack.
func percentOf(live, slack uint64) int {
	return int(min(max(slack*100/max(live, 1), minPercent), maxPercent))
}
