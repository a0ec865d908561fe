//go:build !linux

package script

import "time"

// limitMemory leaves the work to the watch of each run.
func limitMemory() {}

func hostUptime() (time.Duration, bool) { return 0, false }
