package bench

import (
	"maps"
	"slices"
)

// Moments of a round at which the yardsticks are taken.
const (
	beforeArchive = iota
	between       // archives and downloads
	afterCold     // and before what is warm
	moments
)

// ratio is a figure in units of yardsticks: of those taken before and after it,
// so that what changes on the machine meanwhile changes both.
type ratio struct {
	figure string
	unit   string
	of     func(y map[string]float64) float64
	when   []int
}

// ratios are all that are told.
func ratios() (list []ratio) {
	one := func(name string) func(map[string]float64) float64 {
		return func(y map[string]float64) float64 { return y[name] }
	}
	slower := func(y map[string]float64) float64 { return max(y["sha256"], y["write_fsync"]) }
	up, down, warm := []int{beforeArchive, between}, []int{between, afterCold}, []int{afterCold}
	for _, f := range []string{"cold", "cold_overlay"} {
		list = append(list, ratio{f, "cp", one("cp"), down}, ratio{f, "sha256", one("sha256"), down}, ratio{f, "slower", slower, down})
	}
	for _, f := range []string{"warm_link", "warm_overlay", "warm_copy", "warm_reflink"} {
		list = append(list, ratio{f, "cp", one("cp"), warm})
	}
	for _, f := range []string{"archive_empty", "archive_present", "archive_unchanged"} {
		list = append(list, ratio{f, "sha256", one("sha256"), up})
	}
	return append(list,
		ratio{"archive_empty", "slower", slower, up},
		ratio{"archive_empty", "two_ends", one("two_ends"), up}, ratio{"cold", "two_ends", one("two_ends"), down},
		ratio{"archive_empty", "(sha256+write)", func(y map[string]float64) float64 { return y["sha256"] + y["write_fsync"] }, up},
	)
}

// ratio returns r of every round; nil where there is no figure, or no yardstick.
func (t *casTree) ratio(r ratio) (each []float64) {
	took := t.took[r.figure]
	if len(took) != t.rounds {
		return nil
	}
	for n, v := range took {
		var unit float64
		for _, at := range r.when {
			y := map[string]float64{}
			for name, all := range t.yards {
				y[name] = all[moments*n+at]
			}
			unit += r.of(y) / float64(len(r.when))
		}
		if unit == 0 {
			return nil
		}
		each = append(each, v/unit)
	}
	return each
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// report adds what was measured with a tree: medians in ms, ratios to the
// yardsticks of the same minute, of each round and their median, and for one
// file rates.
func (t *casTree) report(extra map[string]any) {
	took := map[string]float64{}
	for _, from := range []map[string][]float64{t.took, t.yards} {
		for name, all := range from {
			took[name] = median(all)
		}
	}
	extra[t.name] = map[string]any{"source": t.source, "files": t.files, "mib": float64(t.bytes) / mib, "rounds": t.rounds, "server_rss_mib": t.rss}
	extra[t.name+"_ms"] = took
	of, each := map[string]float64{}, map[string][]float64{}
	for _, r := range ratios() {
		if list := t.ratio(r); list != nil {
			of[r.figure+"/"+r.unit], each[r.figure+"/"+r.unit] = median(list), list
		}
	}
	extra[t.name+"_ratio"], extra[t.name+"_ratio_rounds"] = of, each
	if t.files == 1 {
		rates := map[string]float64{}
		for name, v := range took {
			if v > 0 {
				rates[name] = float64(t.bytes) / mib / (v / 1000)
			}
		}
		extra[t.name+"_mib_per_s"] = rates
	}
	if len(t.lacks) > 0 {
		extra[t.name+"_not_here"] = maps.Clone(t.lacks)
	}
}
