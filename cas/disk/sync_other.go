//go:build !linux

package disk

import "os"

// syncData makes the content of a file durable, and its size.
func syncData(f *os.File) error { return f.Sync() }

// writeBehind is a hint that only Linux takes.
func writeBehind(*os.File, int64, int64) {}
