package trouble

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What a program that waits may do: wake up so often in a second, and be awake
// for so much of it, which a loop without rest is all of the time.
const (
	maxWakes = 1.0
	maxAwake = 0.25
)

// slot is the grain of the measure.
const slot = 100 * time.Millisecond

// idle is a program that is to do nothing but wait.
type idle struct {
	what string // it is in
	pid  int
}

// usage is what the threads of a process have had: time on a processor in ns,
// and how often they gave it up to wait, by thread.
type usage map[string][2]uint64

func usageOf(pid int) (usage, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("process %d is gone", pid)
	}
	u := usage{}
	for _, t := range tasks {
		var had [2]uint64
		b, _ := os.ReadFile(filepath.Join(t, "schedstat"))
		_, _ = fmt.Sscanf(string(b), "%d", &had[0])
		b, _ = os.ReadFile(filepath.Join(t, "status"))
		for line := range strings.Lines(string(b)) {
			_, _ = fmt.Sscanf(line, "voluntary_ctxt_switches: %d", &had[1])
		}
		u[t] = had
	}
	return u, nil
}

// since is what was had since an earlier look. What a thread that has ended had
// last is not seen.
func (u usage) since(old usage) (had [2]uint64) {
	for t, now := range u {
		for i := range had {
			had[i] += max(now[i], old[t][i]) - old[t][i]
		}
	}
	return had
}

// wakes watches programs for a while. A program is awake in a tenth of a second
// in which any of its threads ran, as the kernel accounts it (schedstat), and
// wakes up where it was not in the one before. What it does when a pause is over
// counts too.
func wakes(all []idle, length time.Duration) error {
	last, had, woken, awake, slots := make([]usage, len(all)), make([][2]uint64, len(all)), make([]int, len(all)), make([]int, len(all)), 0
	was := make([]bool, len(all))
	look := func(i int) error {
		u, err := usageOf(all[i].pid)
		if err != nil {
			return fmt.Errorf("%s: %w", all[i].what, err)
		}
		if last[i] != nil {
			more := u.since(last[i])
			if more[0] > 0 {
				awake[i]++
				if !was[i] {
					woken[i]++
				}
			}
			was[i] = more[0] > 0
			had[i][0] += more[0]
			had[i][1] += more[1]
		}
		last[i] = u
		return nil
	}
	began := time.Now()
	tick := time.NewTicker(slot)
	defer tick.Stop()
	for time.Since(began) < length {
		for i := range all {
			if err := look(i); err != nil {
				return err
			}
		}
		slots++
		<-tick.C
	}
	took := time.Since(began).Seconds()
	var errs []error
	for i, p := range all {
		rate := float64(woken[i]) / took
		share := float64(awake[i]) / float64(slots)
		fmt.Printf("idle  %-48s %.2f wake-ups/s (bound %.0f), awake %2.0f %% (bound %.0f), %5.2f waits of threads/s, %.2f %% of a processor\n", p.what, rate, maxWakes,
			100*share, 100*maxAwake, float64(had[i][1])/took, float64(had[i][0])/took/1e7)
		if rate > maxWakes || share > maxAwake {
			errs = append(errs, fmt.Errorf("%s: it wakes up %.2f times a second and is awake for %.0f %% of it", p.what, rate, 100*share))
		}
	}
	return errors.Join(errs...)
}
