//go:build !linux

package bench

// volatile cannot be told here.
func volatile(string) bool { return false }

func settleDisk(string) {}
