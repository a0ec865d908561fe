package disk

import "syscall"

// mountSmall mounts a file system of that size, which only root may.
func mountSmall(dir, size string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700")
}

func unmount(dir string) { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }
