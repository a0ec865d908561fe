//go:build unix

package platform

import "golang.org/x/sys/unix"

func statSpace(path string) (space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return space{}, err
	}
	bs := uint64(st.Bsize)
	return space{total: st.Blocks * bs, free: uint64(st.Bavail) * bs}, nil
}
