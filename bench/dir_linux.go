package bench

import "golang.org/x/sys/unix"

// volatile reports whether a directory's files live in memory.
func volatile(dir string) bool {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return true
	}
	return s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC
}
