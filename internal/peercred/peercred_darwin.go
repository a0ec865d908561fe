package peercred

import (
	"errors"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of returns who is at the other end of c.
func Of(c net.Conn) (Cred, error) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return Cred{}, errors.New("not a socket")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return Cred{}, err
	}
	var cred *unix.Xucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	})
	if err := errors.Join(err, optErr); err != nil {
		return Cred{}, err
	}
	return Cred{UID: int(cred.Uid), GID: -1}, nil
}
