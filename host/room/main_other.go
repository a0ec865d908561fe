//go:build !linux

package room

// Main is for Linux; elsewhere it fails.
func Main() int { return 2 }
