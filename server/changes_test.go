package server

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/skepdev/skep/scheduler"
)

// A poll that is on its way while the rules change does not wait with the old
// ones.
func TestRulesChangeUnderAPoll(t *testing.T) {
	var change atomic.Bool
	old := &Rules{}
	f := serve(t, func(o *Options) {
		o.Rules = func() *Rules {
			if change.Load() {
				o.Scheduler.EndWaits()
			}
			return old
		}
	})
	b := f.bot("b1")
	change.Store(true)
	begun := time.Now()
	if ans := b.poll("k1", scheduler.MaxWait.Seconds()); ans["cmd"] != "sleep" || ans["duration"] != 0.0 {
		t.Errorf("told %v", ans)
	}
	if took := time.Since(begun); took >= scheduler.MaxWait {
		t.Errorf("it waits for %v", took)
	}
}
