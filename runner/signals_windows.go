package runner

import (
	"os"
	"syscall"
)

var (
	stopSignals     = []os.Signal{syscall.SIGTERM}
	terminalSignals = []os.Signal{os.Interrupt}
	dumpSignals     []os.Signal
)
