package cache

import (
	"io/fs"
	"os"
	"path/filepath"
)

// info is what the file system says of a file.
type info struct {
	ino          uint64
	size         int64
	mtime, ctime int64 // ns
	perm         uint32
	uid          uint32
	nlink        uint64
	regular      bool
	isDir        bool
}

// removeAll removes a tree, also one whose directories were made unwritable.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
