package bot

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestSignals(t *testing.T) {
	tests := []struct {
		name       string
		gaps       []time.Duration // before each SIGTERM
		drain, end bool
	}{
		{"one", []time.Duration{0}, true, false},
		{"two far apart", []time.Duration{0, 4 * time.Second}, true, false},
		{"two within 3 s", []time.Duration{0, 3 * time.Second}, true, true},
		{"the second pair counts too", []time.Duration{0, time.Minute, 2 * time.Second}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				c := make(chan os.Signal)
				go f.obey(t.Context(), c)
				for _, gap := range tt.gaps {
					time.Sleep(gap)
					c <- termSignals[0]
				}
				synctest.Wait()
				if got := f.idle.Err() != nil; got != tt.drain {
					t.Errorf("draining = %v, want %v", got, tt.drain)
				}
				if got := f.hard.Err() != nil; got != tt.end {
					t.Errorf("stopping = %v, want %v", got, tt.end)
				}
			})
		})
	}
	t.Run("SIGINT", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, nil)
			c := make(chan os.Signal)
			go f.obey(t.Context(), c)
			c <- stopSignals[0]
			synctest.Wait()
			if f.hard.Err() == nil {
				t.Error("SIGINT did not stop the bot")
			}
		})
	})
	t.Run("diagnostics go on", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, nil)
			c := make(chan os.Signal)
			go f.obey(t.Context(), c)
			for _, s := range append(append([]os.Signal{}, stackSignals...), bundleSignals...) {
				c <- s
			}
			synctest.Wait()
			if f.idle.Err() != nil {
				t.Error("a diagnostic signal drained the bot")
			}
		})
	})
}
