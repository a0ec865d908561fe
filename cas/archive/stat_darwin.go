package archive

import (
	"io/fs"
	"syscall"
)

// identity is the inode and the time of its last change, 0 where unknown.
func identity(info fs.FileInfo) (inode uint64, ctime int64) {
	if st, is := info.Sys().(*syscall.Stat_t); is {
		return st.Ino, st.Ctimespec.Nano()
	}
	return 0, 0
}
