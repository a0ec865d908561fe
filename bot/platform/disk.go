package platform

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/skepdev/skep/bot/hook"
)

// space is the room of a partition in bytes.
type space struct{ total, free uint64 }

// rules say how much of the two partitions must stay free.
type rules struct{ root, bot hook.Partition }

func defaultRules() rules {
	s := hook.DefaultSettings()
	return rules{s.FreePartition.Root, s.FreePartition.Bot}
}

// SetFreePartition replaces the rules of free disk space, from now on.
// spec bot.md §6.4.
func (p *Platform) SetFreePartition(root, bot hook.Partition) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next := (rules{root, bot}); p.rules != next {
		p.rules, p.dynamic = next, nil
	}
}

// MinFree returns the bytes that caches leave free on the partition of the
// bot's directory, so that it is not quarantined; 0 = not known.
// spec bot.md §4.1.
func (p *Platform) MinFree() int64 {
	s, err := statSpace(p.opt.Dir)
	if err != nil {
		return 0
	}
	p.mu.Lock()
	r := p.rules.bot
	p.mu.Unlock()
	return int64(minimum(r, s.total) + uint64(r.Wiggle))
}

// minimum returns the bytes that must be free on a partition of total bytes.
// spec bot.md §8.6.
func minimum(r hook.Partition, total uint64) uint64 {
	share := func(percent float64) uint64 { return uint64(math.Round(float64(total) * percent / 100)) }
	low := r.Size
	if m := share(r.MaxPercent); m > 0 && (low == 0 || m < low) {
		low = m
	}
	return max(low, share(r.MinPercent))
}

// diskFault says which partition is too full for tasks, "" if none.
func (p *Platform) diskFault() string {
	root := filepath.VolumeName(p.opt.Dir) + string(filepath.Separator)
	rs, rootErr := statSpace(root)
	bs, botErr := statSpace(p.opt.Dir)
	var faults []string
	check := func(what string, s space, r hook.Partition) {
		if need := minimum(r, s.total); s.free < need {
			faults = append(faults, fmt.Sprintf("%s has %d MiB free and needs %d MiB", what, s.free>>20, need>>20))
		}
	}
	if rootErr == nil {
		check("the root partition", rs, p.rules.root)
	}
	// One partition for both is told once.
	if botErr == nil && (len(faults) == 0 || bs.total != rs.total) {
		check("the partition of the bot's directory", bs, p.rules.bot)
	}
	if faults == nil {
		return ""
	}
	return "not enough disk space: " + strings.Join(faults, "; ")
}

// megabytes is bytes in MiB to one decimal, as the state shows disks.
func megabytes(b uint64) float64 { return math.Round(float64(b)/(1<<20)*10) / 10 }
