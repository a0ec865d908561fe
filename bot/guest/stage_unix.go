//go:build !windows

package guest

import (
	"io/fs"
	"os"
	"syscall"
)

// isOurs reports whether a file is of this account, and of no use to others.
func isOurs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid() && info.Mode().Perm()&0o077 == 0
}
