package localsocket

import (
	"errors"
	"io/fs"
	"net"

	"golang.org/x/sys/windows"
)

func refused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

// lockDir does nothing: a directory cannot be locked here.
func lockDir(string) (unlock func(), err error) { return func() {}, nil }

// bind leaves the rights to the directory's.
func bind(path string, _ fs.FileMode, _ int) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		l.SetUnlinkOnClose(false)
	}
	return l, err
}
