//go:build unix

package runner

import (
	"os"
	"syscall"
)

var (
	stopSignals     = []os.Signal{syscall.SIGTERM}
	terminalSignals = []os.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT}
	dumpSignals     = []os.Signal{syscall.SIGUSR1}
)
