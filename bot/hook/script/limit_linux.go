package script

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/bot/hook"
)

// limitMemory has the kernel refuse memory beyond hook.MaxData, to this process
// and each command, and leave no core.
func limitMemory() {
	lim := unix.Rlimit{Cur: hook.MaxData, Max: hook.MaxData}
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &lim)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// hostUptime is how long the host runs.
func hostUptime() (time.Duration, bool) {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0, false
	}
	return time.Duration(ts.Nano()), true
}
