package disk

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// syncDir does nothing: Windows cannot sync a directory.
func syncDir(*os.Root, string) error { return nil }

// isFull says that an error means a full disk.
func isFull(err error) bool {
	const handleDiskFull, diskFull = syscall.Errno(39), syscall.Errno(112)
	return errors.Is(err, handleDiskFull) || errors.Is(err, diskFull)
}

// isUnreadable says that an error means a damaged medium, and will come again.
func isUnreadable(err error) bool {
	const crc, ioDevice = syscall.Errno(23), syscall.Errno(1117)
	return errors.Is(err, crc) || errors.Is(err, ioDevice)
}

var getDiskFreeSpaceEx = syscall.NewLazyDLL("kernel32.dll").NewProc("GetDiskFreeSpaceExW")

// freeBytes returns the free bytes of the file system of dir.
func freeBytes(dir string) (int64, error) {
	p, err := syscall.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if ok, _, err := getDiskFreeSpaceEx.Call(uintptr(unsafe.Pointer(p)), uintptr(unsafe.Pointer(&free)), 0, 0); ok == 0 {
		return 0, err
	}
	return int64(free), nil
}
