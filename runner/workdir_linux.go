package runner

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/skepdev/skep/internal/proc"
)

// asMade reports whether dir is as a directory of u (nil: ours) with this mode
// is made: nobody gave it away, opened it to others, or left access rules or
// other attributes that would hold for the next task too.
func asMade(dir string, mode uint32, u *proc.User) bool {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if u != nil {
		uid, gid = u.UID, u.GID
	}
	var st unix.Stat_t
	if unix.Lstat(dir, &st) != nil || st.Mode != unix.S_IFDIR|mode || st.Uid != uid || st.Gid != gid {
		return false
	}
	n, err := unix.Llistxattr(dir, nil)
	return n == 0 && (err == nil || err == unix.ENOTSUP)
}
