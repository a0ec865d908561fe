package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skepdev/skep"
	"github.com/skepdev/skep/api/botapi"
)

// TestOddStatisticsCountAsNone: a clock that was set back does not fail the
// end of a task, and no client gets a number that it cannot read.
func TestOddStatisticsCountAsNone(t *testing.T) {
	r, err := Report("b", &botapi.TaskUpdate{
		TaskID: "7c331d29697c2e11", ExitCode: new(int64), Duration: new(1.0), BotOverhead: new(0.5),
		CIPDStats: &botapi.OperationStats{Duration: -1}, CleanupStats: &botapi.OperationStats{Duration: 2},
		CacheTrimStats:   &botapi.OperationStats{Duration: 1e300},
		NamedCachesStats: &botapi.CachesStats{Install: botapi.OperationStats{Duration: -3}, Uninstall: botapi.OperationStats{Duration: 4}},
		IsolatedStats:    &botapi.IsolatedStats{Download: &botapi.TransferStats{Duration: -5, InitialNumberItems: -6, InitialSize: -7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &skep.Stats{BotOverhead: 0.5, Cleanup: 2, CachesRemove: 4, Download: &skep.TransferStats{}}
	if d := cmp.Diff(want, r.Outcome.Stats); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
