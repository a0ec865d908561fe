package bench

import (
	"slices"
	"time"
)

// mib is a MiB in bytes.
const mib = 1 << 20

// ms returns d in milliseconds.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile returns the value that the share q of vs does not exceed; 0 for no
// values. It sorts vs.
func quantile(vs []float64, q float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	return vs[min(len(vs)-1, int(q*float64(len(vs))))]
}

// spread is the pair that every set of samples is told by.
type spread struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
}

func spreadOf(vs []float64) spread { return spread{quantile(vs, 0.5), quantile(vs, 0.99)} }
