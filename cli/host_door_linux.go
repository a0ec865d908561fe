package cli

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peerUser is the user at the other end of a Unix socket, as the kernel knows.
func peerUser(c net.Conn) (uid int, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var err2 error
	if err := raw.Control(func(fd uintptr) { cred, err2 = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || err2 != nil {
		return 0, errors.Join(err, err2)
	}
	return int(cred.Uid), nil
}
