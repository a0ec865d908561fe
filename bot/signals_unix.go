//go:build unix

package bot

import (
	"os"
	"syscall"
)

var (
	termSignals   = []os.Signal{syscall.SIGTERM}
	stopSignals   = []os.Signal{syscall.SIGINT}
	stackSignals  = []os.Signal{syscall.SIGUSR1}
	bundleSignals = []os.Signal{syscall.SIGUSR2}
	allSignals    = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1, syscall.SIGUSR2}
)
