//go:build !linux

package proc

// Calm does nothing on this system.
func Calm() {}
