package guest

import "io/fs"

// isOurs cannot tell: whom a directory is for its access list says, which it has
// from the directory above.
func isOurs(fs.FileInfo) bool { return true }
