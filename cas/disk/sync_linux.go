package disk

import (
	"os"
	"syscall"
)

// syncData makes the content of a file durable, and its size.
func syncData(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// writeBehind starts writing a stretch of a file to the disk, so that the sync
// at the end has less to wait for. It is a hint.
func writeBehind(f *os.File, off, n int64) {
	const start = 2 // SYNC_FILE_RANGE_WRITE
	_ = syscall.SyncFileRange(int(f.Fd()), off, n, start)
}
