// Package bench measures skep on the machine it runs on, and ships with it as
// `skep bench`. A case starts what it needs, real processes on a free loopback
// port with a state directory of their own, and leaves nothing behind.
//
// Every report carries yardsticks measured in the same minute, as figures of
// different machines and hours compare only as ratios; and the settings that
// make a commit durable, read back from the engine, as a figure without them
// says nothing. docs/benchmarks.md tells how to read the cases.
package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skepdev/skep/internal/debris"
)

// Report is what a case found. Its JSON form is a promise (design.md "The
// command line"): times in ms, rates in 1/s, memory in MiB.
type Report struct {
	Case       string         `json:"case"`
	Unit       string         `json:"unit"` // of Median and P99: ms, 1/s or MiB
	Median     float64        `json:"median"`
	P99        float64        `json:"p99"` // 99 % of the samples are no worse than this
	N          int            `json:"n"`   // samples behind Median and P99
	Yardsticks Yardsticks     `json:"yardsticks"`
	Extra      map[string]any `json:"extra"` // numbers, texts, and maps of them
}

// Options of Run. Zero values mean the defaults given here.
type Options struct {
	Exe    string // the skep executable; default: this program
	BotDir string // holds skep-bot; default: where Exe lies
	Dir    string // where a temporary directory is made; default: os.TempDir, if that is on a disk
	N      int    // samples; 0 = as many as the case's time allows, at least 300 but for slow cases
	DB     string // postgres URL for lifecycle; a schema of its own is made and dropped there. Default: SQLite
	Bots   int    // simulated bots of lifecycle (64) or idle (10,000)
	Large  int64  // bytes of the large file of cas; 0 = 1 GiB, less = none

	ServerArgs []string  // more arguments of the server, such as --cpuprofile
	Progress   io.Writer // short lines while it works; default: nobody reads them
}

// minSamples is what a median and a p99 need. decisions.md 31.
const minSamples = 300

// patience bounds a whole case. It ends within 20 s, most of them in half of
// that; the rest is room for a slow machine to end with a reason.
const patience = 5 * time.Minute

// slowCases take seconds for one sample, as what they measure does: a few
// samples have to do. docs/benchmarks.md#cas
var slowCases = map[string]int{"cas": 1, "cleanroom": 100, "refill": 40}

// A measurement is one case: it fills in everything but Case and Yardsticks.
type measurement func(context.Context, *run) (*Report, error)

var cases = map[string]measurement{
	"cas":       storage,
	"dispatch":  dispatch,
	"lifecycle": lifecycle,
	"overhead":  overhead,
	"idle":      idle,
	"pool":      warmPool,
	"cleanroom": cleanRoom,
	"refill":    refill,
}

// Cases returns the names of all cases, sorted.
func Cases() []string { return slices.Sorted(maps.Keys(cases)) }

// run is one case under way.
type run struct {
	Options
	dir string // of this run, on a disk, removed at its end; others may enter it
}

// Run measures one case. An error says why there is no figure.
func Run(ctx context.Context, name string, o Options) (rep *Report, err error) {
	measure := cases[name]
	if measure == nil {
		return nil, fmt.Errorf("no such case: %q; there are %s", name, strings.Join(Cases(), ", "))
	}
	least := cmp.Or(slowCases[name], minSamples)
	if o.N < 0 || o.N > 0 && o.N < least {
		return nil, fmt.Errorf("-n %d: %s needs at least %d samples", o.N, name, least)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := &run{Options: o}
	if r.Progress == nil {
		r.Progress = io.Discard
	}
	if r.dir, err = makeDir(o.Dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, debris.Remove(r.dir)) }()
	fmt.Fprintln(r.Progress, "yardsticks")
	ys, err := measureYardsticks(r.dir)
	if err != nil {
		return nil, err
	}
	if rep, err = measure(ctx, r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if rep.N < least {
		return nil, fmt.Errorf("%s: only %d samples in the time it has, want %d", name, rep.N, least)
	}
	rep.Case, rep.Yardsticks = name, ys
	maps.Copy(rep.Extra, map[string]any{"machine": Machine()})
	return rep, nil
}

// samples returns how many samples to take when the user named no number.
func (r *run) samples(def int) int {
	if r.N > 0 {
		return r.N
	}
	return def
}

// Number returns a number of Extra by its name and those of the maps that it
// lies in; ok is false when there is none.
func (r *Report) Number(path ...string) (v float64, ok bool) {
	b, err := json.Marshal(r.Extra)
	if err != nil {
		return 0, false
	}
	var at any
	if err := json.Unmarshal(b, &at); err != nil {
		return 0, false
	}
	for _, name := range path {
		m, isMap := at.(map[string]any)
		if !isMap {
			return 0, false
		}
		at = m[name]
	}
	v, ok = at.(float64)
	return v, ok
}
