// Package peercred tells who is at the other end of a Unix socket, as the
// kernel knows it.
package peercred

import (
	"os/user"
	"slices"
	"strconv"
)

// Cred is a process as it was when it connected.
type Cred struct {
	UID int
	GID int // its primary group; −1 where the system does not say
	PID int // 0 where the system does not say
}

// InGroup reports whether its user belongs to a group, as the process itself
// said or the system's database does.
func (c Cred) InGroup(gid int) bool {
	if gid < 0 {
		return false
	}
	if c.GID == gid {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(c.UID))
	if err != nil {
		return false
	}
	ids, err := u.GroupIds()
	return err == nil && slices.Contains(ids, strconv.Itoa(gid))
}
