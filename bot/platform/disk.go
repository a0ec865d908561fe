package platform

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
)

// space is the room of a partition in bytes.
type space struct{ total, free uint64 }

// rule says how much of a partition must stay free. spec bot.md §6.4, §8.6.
type rule struct {
	size                   uint64 // bytes
	maxPercent, minPercent float64
}

var (
	rootRule = rule{1 << 30, 10, 6}
	botRule  = rule{4 << 30, 15, 7}
)

// minimum returns the bytes that must be free on a partition of total bytes.
func (r rule) minimum(total uint64) uint64 {
	share := func(percent float64) uint64 { return uint64(math.Round(float64(total) * percent / 100)) }
	low := r.size
	if m := share(r.maxPercent); m > 0 && (low == 0 || m < low) {
		low = m
	}
	return max(low, share(r.minPercent))
}

// diskFault says which partition is too full for tasks, "" if none.
func (p *Platform) diskFault() string {
	root := filepath.VolumeName(p.opt.Dir) + string(filepath.Separator)
	rs, rootErr := statSpace(root)
	bs, botErr := statSpace(p.opt.Dir)
	var faults []string
	check := func(what string, s space, r rule) {
		if need := r.minimum(s.total); s.free < need {
			faults = append(faults, fmt.Sprintf("%s has %d MiB free and needs %d MiB", what, s.free>>20, need>>20))
		}
	}
	if rootErr == nil {
		check("the root partition", rs, rootRule)
	}
	// One partition for both is told once.
	if botErr == nil && (len(faults) == 0 || bs.total != rs.total) {
		check("the partition of the bot's directory", bs, botRule)
	}
	if faults == nil {
		return ""
	}
	return "not enough disk space: " + strings.Join(faults, "; ")
}

// megabytes is bytes in MiB to one decimal, as the state shows disks.
func megabytes(b uint64) float64 { return math.Round(float64(b)/(1<<20)*10) / 10 }
