package cache

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
