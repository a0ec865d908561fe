package bench

import (
	"maps"
	"slices"
)

// report adds what was measured with a tree: medians (of two the lower) in ms, ratios to the
// yardsticks of the same rounds, and for one file rates.
func (t *casTree) report(extra map[string]any) {
	took := map[string]float64{}
	for name, all := range t.took {
		slices.Sort(all)
		took[name] = all[(len(all)-1)/2]
	}
	extra[t.name] = map[string]any{"source": t.source, "files": t.files, "mib": float64(t.bytes) / mib, "rounds": t.rounds, "server_rss_mib": t.rss}
	extra[t.name+"_ms"] = took
	ratios := map[string]float64{}
	per := func(name, figure string, yardstick float64) {
		if v, ok := took[figure]; ok && yardstick > 0 {
			ratios[name] = v / yardstick
		}
	}
	for _, f := range []string{"cold", "warm_link", "warm_overlay", "warm_copy", "warm_reflink"} {
		per(f+"/cp", f, took["cp"])
	}
	per("archive_empty/(sha256+write)", "archive_empty", took["sha256"]+took["write_fsync"])
	for _, f := range []string{"archive_empty", "archive_present", "archive_unchanged", "cold"} {
		per(f+"/sha256", f, took["sha256"])
		per(f+"/sha256_all", f, took["sha256_all"])
	}
	slower := max(took["sha256"], took["write_fsync"])
	for _, f := range []string{"archive_empty", "cold"} {
		per(f+"/slower", f, slower)
	}
	extra[t.name+"_ratio"] = ratios
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
