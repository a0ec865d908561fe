//go:build !linux

package cli

import (
	"errors"
	"net"
)

func peerUser(net.Conn) (int, error) { return 0, errors.ErrUnsupported }
