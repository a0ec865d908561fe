//go:build !linux

package launch

import (
	"errors"
	"syscall"
)

var errNoBot = errors.New("no process holds the bot's lock file")

func signalBot(string, string, int, syscall.Signal) error { return errors.ErrUnsupported }
