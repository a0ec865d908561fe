package runner

import (
	"os"
	"os/signal"
	"runtime"
)

// catchSignals returns where stop signals arrive. Those of a terminal are
// dropped, not ignored: an ignored signal would stay ignored in the task. The
// one that asks for it writes all stacks to the raw log.
func catchSignals() <-chan os.Signal {
	stop := make(chan os.Signal, 8)
	signal.Notify(stop, stopSignals...)
	signal.Notify(make(chan os.Signal, 1), terminalSignals...)
	if len(dumpSignals) > 0 {
		dump := make(chan os.Signal, 1)
		signal.Notify(dump, dumpSignals...)
		go func() {
			for range dump {
				buf := make([]byte, 1<<20)
				_, _ = os.Stderr.Write(buf[:runtime.Stack(buf, true)])
			}
		}()
	}
	return stop
}
