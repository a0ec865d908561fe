package floors

import (
	"io"
	"testing"

	"github.com/skepdev/skep/bench"
)

func TestJudge(t *testing.T) {
	rep := &bench.Report{Median: 5, Yardsticks: bench.Yardsticks{ForkExec: 0.5}}
	for _, tc := range []struct {
		name  string
		f     floor
		slack float64
		want  bool
	}{
		{"at most, below", floor{bound: at(6), get: median}, 1, true},
		{"at most, just so", floor{bound: forks(10), get: median}, 1, true},
		{"at most, above", floor{bound: at(4), get: median}, 1, false},
		{"at most, above, with slack", floor{bound: at(4), get: median}, 2, true},
		{"at least, above", floor{least: true, bound: at(4), get: median}, 1, true},
		{"at least, below", floor{least: true, bound: at(6), get: median}, 1, false},
		{"at least, below, with slack", floor{least: true, bound: at(6), get: median}, 2, true},
		{"not measured", floor{bound: at(6), get: extra("nothing")}, 1, false},
	} {
		if got := tc.f.judge(io.Discard, rep, tc.slack); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}
