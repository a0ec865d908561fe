package bot

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerUser returns the user id of the process at the other end, as it was when
// it connected.
func peerUser(c net.Conn) (int, error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0, errors.New("not a socket")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Xucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if err := errors.Join(err, optErr); err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}
