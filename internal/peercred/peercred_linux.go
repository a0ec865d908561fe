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
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return Cred{}, err
	}
	return Cred{UID: int(cred.Uid), GID: int(cred.Gid), PID: int(cred.Pid)}, nil
}
