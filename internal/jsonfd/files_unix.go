//go:build unix

package jsonfd

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// oobSize holds the descriptors of one receive.
const oobSize = 16 + 4*16

// wait returns when there is something to receive, or the end.
func (c *Conn) wait() error {
	return c.raw.Read(func(fd uintptr) bool {
		for {
			var one [1]byte
			_, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
}

func received(oob []byte, flags int) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials and the like
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, errors.New("too many open files in one message")
	}
	return files, nil
}

func rights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	defer runtime.KeepAlive(files)
	return unix.UnixRights(fds...), nil
}
