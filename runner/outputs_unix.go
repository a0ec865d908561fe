//go:build unix

package runner

import (
	"io/fs"
	"syscall"

	"github.com/skepdev/skep/internal/proc"
)

const nonBlock = syscall.O_NONBLOCK

// readable reports whether u, nil = ourselves, may read a file: links, and
// what was there before, can lead to files of others.
func readable(fi fs.FileInfo, u *proc.User) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if u == nil || !ok {
		return true
	}
	switch mode := fi.Mode().Perm(); {
	case st.Uid == u.UID:
		return true
	case st.Gid == u.GID:
		return mode&0o040 != 0
	default:
		return mode&0o004 != 0
	}
}
