package bot

import (
	"os"
	"syscall"
)

var (
	termSignals   = []os.Signal{syscall.SIGTERM}
	stopSignals   = []os.Signal{os.Interrupt} // CTRL_BREAK comes as an interrupt, too
	stackSignals  []os.Signal
	bundleSignals []os.Signal
	allSignals    = []os.Signal{syscall.SIGTERM, os.Interrupt}
)
